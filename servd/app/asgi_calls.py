"""One call of an ASGI application: its unhandled exceptions are the caller's to answer, and its response may be a value."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from servd.app.deployment import ROUTES_ATTRIBUTE
from servd.app.framework_telemetry import leave_out
from servd.calls.failures import ClientGoneError, tell_logged, tell_or_log
from servd.calls.request_context import NO_REQUEST, current_request
from servd.calls.routes.patterns import Described, RoutePatterns

Message = MutableMapping[str, Any]
Send = Callable[[Any], Awaitable[None]]
Asgi = Callable[[Any, Any, Send], Awaitable[None]]

_INTERNAL_ERROR = 1011
"""Code with which a WebSocket ends whose handler failed: RFC 6455, 7.4.1."""
_RAISED_WITHIN_S = 0.02
"""An application that goes on for longer after its 500 has answered so itself, and works in the background."""


async def call_app(app: Asgi, scope: Any, receive: Any, send: Send, *, answers_errors: bool = False) -> None:
    """Run the application for one request.

    Starlette answers an unhandled exception with a bare 500 and raises it again. That answer is held back here, so
    the caller can give one that says what happened. Others answer it so, log it, and raise nothing: what was logged is told.

    Args:
        answers_errors: the application has a handler for any exception: its answer is sent.

    Raises:
        Exception: what the application raised, also where it has answered that itself.
    """
    leave_out(scope)
    if scope["type"] != "http":
        await _call_websocket(app, scope, receive, send)
        return
    held: list[Message] = []
    is_failed = False
    releasing: asyncio.Task[None] | None = None

    async def hold(message: Message) -> None:
        nonlocal is_failed, releasing
        is_failed = True
        held.append(message)
        # a stream is the application's own: nothing to hold back any more
        if message.get("more_body", False) or len(held) > 2:
            await _flush(held, send)
        elif len(held) == 2 and releasing is None:
            releasing = asyncio.create_task(_flush_late(held, send))

    def hold_500(message: Message) -> Awaitable[None]:
        # most messages: spares them a coroutine
        if held or (message["type"] == "http.response.start" and message["status"] == 500):
            return hold(message)
        return send(message)

    try:
        try:
            await app(scope, receive, hold_500)
        finally:
            if releasing is not None and held:
                releasing.cancel()
            elif releasing is not None:
                await asyncio.wait((releasing,))
    except Exception:
        if answers_errors and held:
            # that the client has left says nothing of what was raised
            with suppress(ClientGoneError):
                await _flush(held, send)
        raise
    if is_failed:
        tell_logged("__call__")
    if held:
        await _flush(held, send)
    elif releasing is not None:
        releasing.result()


async def _call_websocket(app: Asgi, scope: Any, receive: Any, send: Send) -> None:
    is_failed = False

    def watch(message: Message) -> Awaitable[None]:
        nonlocal is_failed
        if message.get("code") == _INTERNAL_ERROR or message.get("status") == 500:
            is_failed = True
        return send(message)

    await app(scope, receive, watch)
    if is_failed:
        tell_logged("__call__")


async def call_with_request(app: Asgi, request: Request) -> Response:
    """The application's whole response to a request that came through a handle.

    Raises:
        TypeError: the argument is no Request.
        Exception: what the application raised before its response was complete; later ones are told.
    """
    if not isinstance(request, Request):
        raise TypeError(f"an ASGI ingress is called with a Request, got {type(request).__name__}")
    answer = Response()
    body = bytearray()
    is_complete = False

    async def send(message: dict[str, Any]) -> None:
        nonlocal is_complete
        if message["type"] == "http.response.start":
            answer.status_code = message["status"]
            answer.raw_headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))
            is_complete = not message.get("more_body", False)

    try:
        await app(request.scope, request.receive, send)
    except Exception as error:
        if not is_complete:
            raise
        tell_or_log(error, "__call__")
    answer.body = bytes(body)
    return answer


def routes_behind(instance: Any) -> tuple[Described, ...]:
    """Routes of an instance's ASGI application, described, as far as it has told any."""
    patterns: RoutePatterns | None = getattr(instance, ROUTES_ATTRIBUTE, None)
    return () if patterns is None else patterns.described


def let_find_pattern(patterns: RoutePatterns, scope: Any) -> None:
    """Let the request that came in with this scope find the pattern of its route, if anybody asks."""
    request = current_request.get()
    # a call through a handle is part of a request that came in elsewhere
    if request is not NO_REQUEST and not request.depth:
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
        request.let_find_pattern(patterns.whole, method, scope["path"], scope["root_path"])


async def _flush_late(held: list[Message], send: Send) -> None:
    await asyncio.sleep(_RAISED_WITHIN_S)
    # whoever works in the background has sent its answer
    with suppress(ClientGoneError):
        await _flush(held, send)


async def _flush(held: list[Message], send: Send) -> None:
    waiting = held[:]
    held.clear()
    for message in waiting:
        await send(message)
