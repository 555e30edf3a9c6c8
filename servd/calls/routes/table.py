"""Longest-prefix table from request paths to ingress deployments."""

from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from servd.wire.messages import Route

_MAX_REMEMBERED = 2048
_MAX_REMEMBERED_PATH_BYTES = 256


def decoded_path(raw: bytes) -> str:
    """The path as text: percent-decoded, UTF-8, bytes that are none replaced."""
    if b"%" not in raw and raw.isascii():
        return raw.decode("ascii")
    return unquote_to_bytes(raw).decode("utf-8", "replace")


class RouteTable:
    """Which deployment serves a path.

    `/a` matches `/a` and everything under `/a/`, not `/ab`; `/` matches everything; the longest prefix wins.

    Args:
        root_path: removed before matching, "" or with a leading and no trailing slash; a path outside it matches nothing.
    """

    def __init__(self, root_path: str = "") -> None:
        self.root_path = root_path.rstrip("/")
        self.generation = -1
        self._routes: dict[str, Route] = {}
        self._remembered: dict[bytes, Route] = {}

    def __repr__(self) -> str:
        return f"RouteTable({self.as_document()}, root_path={self.root_path!r}, generation={self.generation})"

    def update(self, routes: Iterable[Route], generation: int) -> None:
        """Replace the whole table."""
        self._routes = {route.prefix.rstrip("/") or "/": route for route in routes}
        self._remembered = {}
        self.generation = generation

    def as_document(self, *, by_application: bool = False) -> dict[str, str]:
        """prefix -> full deployment name, or application name: as `/-/routes` shows it."""
        shown = {prefix: route for prefix, route in self._routes.items() if not route.is_starting}
        return {prefix: route.app if by_application else route.deployment for prefix, route in shown.items()}

    def match(self, raw_path: bytes) -> Route | None:
        """The route of a request path.

        Args:
            raw_path: as the client sent it, percent-encoded, without the query.
        """
        route = self._remembered.get(raw_path)
        if route is None:
            route = self._find(decoded_path(raw_path))
            if route is not None and len(raw_path) <= _MAX_REMEMBERED_PATH_BYTES:
                if len(self._remembered) >= _MAX_REMEMBERED:
                    self._remembered.clear()
                self._remembered[raw_path] = route
        return route

    def inner_path(self, path: str) -> str | None:
        """The path without the root path; None when it lies outside."""
        root = self.root_path
        if not root:
            return path
        if path == root:
            return "/"
        return path[len(root) :] if path.startswith(root + "/") else None

    def _find(self, path: str) -> Route | None:
        inner = self.inner_path(path)
        if inner is None:
            return None
        candidate = inner.rstrip("/") if inner != "/" else "/"
        while candidate and candidate != "/":
            route = self._routes.get(candidate)
            if route is not None:
                return route
            candidate = candidate.rpartition("/")[0]
        return self._routes.get("/")
