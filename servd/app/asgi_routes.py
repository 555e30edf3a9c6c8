"""The routes of an ASGI application, described so that other processes know which of them answers a path.

Loaded only by applications that have routes.
"""

import sys
from collections.abc import Iterable
from typing import Any

from starlette.routing import Mount, Route, WebSocketRoute

from servd.calls.routes.patterns import (
    HTTP,
    MAX_DEPTH,
    MAX_PATH_LENGTH,
    MOST_PATH_PARAMETERS,
    MOUNT,
    WEBSOCKET,
    Described,
)

MAX_ROUTES = 2000
"""An application with more is described as far as that."""


def described(routes: Any) -> tuple[Described, ...]:
    """The `routes` of a Starlette or FastAPI application, in its order; none of anything else."""
    return _described(routes, 0, [MAX_ROUTES])


def _described(routes: Any, depth: int, room: list[int]) -> tuple[Described, ...]:
    found: list[Described] = []
    if depth >= MAX_DEPTH or not isinstance(routes, list | tuple):
        return ()
    for route in _each(routes):
        if room[0] <= 0:
            break
        one = _described_one(route, depth, room)
        if one is not None:
            room[0] -= 1
            found.append(one)
    return tuple(found)


def _described_one(route: Any, depth: int, room: list[int]) -> Described | None:
    """None of what is no path (a host, a route of the application's own kind), and of what would take long to match."""
    path = getattr(route, "path", None)
    if not isinstance(path, str) or len(path) > MAX_PATH_LENGTH or path.count(":path}") > MOST_PATH_PARAMETERS:
        return None
    original = getattr(route, "original_route", route)
    if isinstance(original, Mount):
        mounted = getattr(route, "routes", None)
        # who mounts files, or an application that tells nothing, has no routes there
        return MOUNT, path, (), _described(mounted, depth + 1, room) if mounted else None
    if isinstance(original, WebSocketRoute):
        return WEBSOCKET, path, (), None
    if isinstance(original, Route):
        return HTTP, path, tuple(sorted(map(str, route.methods or ()))), None
    return None


def _each(routes: Iterable[Any]) -> Iterable[Any]:
    """The routes, those of included routers in their places."""
    for route in routes:
        if not hasattr(route, "original_router"):
            yield route
            continue
        # FastAPI keeps included routers as they are, and tells what comes of them
        yield from sys.modules["fastapi.routing"].iter_route_contexts([route])
