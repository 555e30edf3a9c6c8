"""Which route of an ASGI application answers a path, known from the patterns of its routes alone. Pure.

How this works: the framework is asked once for its routes, in its order (`app/asgi_routes.py`). A path goes down them as it does
there: the first route for its path and method answers; where there is none, the path that has a slash more or fewer at its end is
what the client is sent to. What is mounted goes on with the rest of the path. A method that no route of a path takes has no
route, as with Ray Serve 2.60. Routes are looked at by the path's first part, so that an application with many has few to try.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

HTTP, WEBSOCKET, MOUNT = 0, 1, 2
"""What a route is for."""

Described = tuple[int, str, tuple[str, ...], tuple[Any, ...] | None]
"""A route as it travels: what it is for, its path as written, methods (none = all), and of what is mounted its own routes, None
where nobody can tell."""

MAX_DEPTH = 8
MAX_PATH_LENGTH = 512
"""Longer paths have no route here: clients choose what they ask for, and all requests of a proxy would wait."""
MOST_PATH_PARAMETERS = 2
"""A route with more parameters of the kind `path`, each of which may end anywhere, is left out for the same reason."""

_MOST_KNOWN = 512
"""Requests of which the whole pattern is remembered: clients choose what they ask for."""
_PARAMETER = re.compile(r"{[a-zA-Z_]\w*(?::([a-zA-Z_]\w*))?}")
_EXPRESSIONS = {
    "path": ".*",
    "int": "[0-9]+",
    "float": r"[0-9]+(?:\.[0-9]+)?",
    "uuid": "[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}",
}
_ANYTHING = "[^/]+"
"""Of a parameter of another kind: an application's own expressions run in none of servd's processes."""


class _Route:
    """A route that can be tried. first_part: of every path that it matches, None where that can be any."""

    __slots__ = ("_match", "below", "first_part", "kind", "methods", "path")

    def __init__(self, described: Described, depth: int) -> None:
        self.kind, self.path, methods, below = described
        self._match: Callable[[str], re.Match[str] | None] | None = None
        self.methods = frozenset(methods)
        self.first_part = _first_part(self.path)
        self.below = None if below is None else _Level(below, depth + 1)

    def match(self, path: str) -> re.Match[str] | None:
        """How the path fits; None where it does not."""
        if self._match is None:
            # many are never asked for: none is compiled before
            rest = "/(.*)" if self.kind == MOUNT else ""
            self._match = re.compile(f"{_expression(self.path)}{rest}$").match
        return self._match(path)


class _Level:
    """The routes of one application, in its order."""

    __slots__ = ("_by_first_part", "_others")

    def __init__(self, described: Iterable[Described], depth: int = 0) -> None:
        routes = [_Route(one, depth) for one in described] if depth < MAX_DEPTH else []
        firsts = {route.first_part for route in routes}
        self._others = [route for route in routes if route.first_part is None]
        self._by_first_part = {
            first: [route for route in routes if route.first_part in (first, None)]
            for first in firsts
            if first is not None
        }

    def find(self, kind: int, method: str, path: str) -> str | None:
        """The pattern below this level that answers; None where none does."""
        found = self._find(kind, method, path)
        if found is not None or kind != HTTP or path == "/":
            return found
        # the client is sent to the path with a slash more, or without
        if path.endswith("/"):
            found = self._find(kind, method, path[:-1])
            return None if found is None else found + "/"
        found = self._find(kind, method, path + "/")
        return None if found is None else found.removesuffix("/")

    def _find(self, kind: int, method: str, path: str) -> str | None:
        for route in self._by_first_part.get(path.split("/", 2)[1] if path.startswith("/") else "", self._others):
            if route.kind != MOUNT and route.kind != kind:
                continue
            matched = route.match(path)
            if matched is None:
                continue
            if route.kind == MOUNT:
                if route.below is None:
                    return route.path
                below = route.below.find(kind, method, f"/{matched[1]}")
                return None if below is None else route.path + below
            if not route.methods or method in route.methods:
                return route.path
        return None


class RoutePatterns:
    """The routes of an ASGI application.

    Args:
        described: in the application's order.

    Attributes:
        described: the same, to be sent.
    """

    def __init__(self, described: Sequence[Described]) -> None:
        self.described = tuple(described)
        self._level = _Level(self.described)
        self._known: dict[tuple[str, str, str], str] = {}

    def __repr__(self) -> str:
        return f"RoutePatterns({[route[1] for route in self.described]})"

    def find(self, kind: int, method: str, path: str) -> str | None:
        """The pattern that answers, as it is written in the application; None where none does.

        Args:
            kind: `HTTP` or `WEBSOCKET`.
            path: decoded, without the application's prefix.
        """
        return self._level.find(kind, method, path) if len(path) <= MAX_PATH_LENGTH else None

    def whole(self, prefix: str, method: str, path: str) -> str:
        """The pattern with the application's prefix before it; "" where it would say no more than the prefix.

        Args:
            prefix: of the application, "/" or without a slash at its end.
            method: of HTTP, or "WEBSOCKET".
            path: decoded, without the prefix.
        """
        key = prefix, method, path
        whole = self._known.get(key)
        if whole is None:
            found = self.find(WEBSOCKET if method == "WEBSOCKET" else HTTP, method, path)
            whole = "" if found is None else ("" if prefix == "/" else prefix) + found
            if whole == prefix:
                whole = ""
            if len(path) <= MAX_PATH_LENGTH:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[key] = whole
        return whole


def packed_route(prefix: str, pattern: str) -> str:
    """Prefix and pattern as one text: prefixes have no braces."""
    return f"{prefix}{{}}{pattern}"


def unpacked_route(text: str) -> tuple[str, str]:
    """Prefix and pattern behind `packed_route`; pattern "" of a prefix alone."""
    prefix, _, pattern = text.partition("{}")
    return prefix, pattern


def _expression(path: str) -> str:
    """What matches a path as it is written in the application."""
    parts: list[str] = []
    end = 0
    for found in _PARAMETER.finditer(path):
        parts += (re.escape(path[end : found.start()]), _EXPRESSIONS.get(found[1], _ANYTHING))
        end = found.end()
    return "".join((*parts, re.escape(path[end:])))


def _first_part(path: str) -> str | None:
    fixed = path.partition("{")[0]
    first, slash, _ = fixed.removeprefix("/").partition("/")
    return first if fixed.startswith("/") and (slash or fixed == path) else None
