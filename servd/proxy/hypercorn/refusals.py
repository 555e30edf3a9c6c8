"""Requests of HTTP/2 that nobody is asked for. Pure."""

from collections.abc import Awaitable, Callable
from typing import Any

from servd.proxy.forwarded_call import Send

Headers = list[tuple[bytes, bytes]]

Refuse = Callable[[dict[str, Any], int, Send], Awaitable[None]]
"""Answers the request of a scope with a status, and notes it."""


def refusal_of(headers: Headers) -> int:
    """The status for a request that would end its whole connection in Hypercorn, or be taken for a WebSocket; 0 = none."""
    said = dict(headers)
    path = said.get(b":path", b"")
    if said[b":method"] == b"CONNECT" and said.get(b":protocol") != b"websocket":
        return 501
    return 0 if path and path.isascii() else 400


def scope_of(headers: Headers, client: tuple[str, int] | None) -> dict[str, Any]:
    """What Hypercorn would give an application, as far as whoever refuses wants to know."""
    said = dict(headers)
    return {
        "method": said[b":method"].decode("latin-1"),
        "raw_path": said.get(b":path", b"-").partition(b"?")[0],
        "headers": headers,
        "client": client,
    }
