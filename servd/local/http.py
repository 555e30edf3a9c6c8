"""HTTP and WebSocket requests to an application of this process: what stands between client and handler, without sockets."""

import asyncio
import concurrent.futures
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from servd.calls.failures import ClientGoneError, says_client_left, tell_or_log
from servd.calls.request_context import RequestContext
from servd.exceptions import BackPressureError, DeploymentUnavailableError
from servd.ground.ids import random_letters
from servd.local.mode import LocalCaller
from servd.replica.responses import error_response
from servd.wire.http_answers import REQUEST_ID, check_final

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OVER = "over"
"""Type of the message that says: the handler has ended, nothing more comes."""
_INTERNAL_SERVER_ERROR = 500
_REFUSALS = (BackPressureError, DeploymentUnavailableError)
_LEAVE_LIMIT_S = 5.0
"""A handler whose WebSocket's client has left is cancelled after so long, as in a replica."""


class LocalExchange:
    """One request, in this process.

    Attributes:
        answers_error: the handler has answered, whole, that it failed.
    """

    whole_below = sys.maxsize

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send, request_id: str) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self._own = (REQUEST_ID, request_id.encode("latin-1"))
        self._whole: list[Message] = []
        self.has_begun = self.is_finished = self.answers_error = False
        self._status = 0

    def __repr__(self) -> str:
        return f"LocalExchange({self.scope.get('method', 'WEBSOCKET')} {self.scope['path']})"

    async def send(self, message: Message) -> None:
        """ASGI `send`.

        Raises:
            ClientGoneError: the client has left. RuntimeError: the message does not fit the state of the response.
        """
        kind = message["type"]
        if kind == "http.response.start":
            if self.has_begun:
                raise RuntimeError("the response has begun already")
            check_final(message["status"])
            self._status = message["status"]
        elif kind == "http.response.body":
            if not self.has_begun:
                raise RuntimeError("the response has not begun")
            if self.is_finished:
                raise RuntimeError("the response is complete already")
            self.is_finished = not message.get("more_body", False)
            self.answers_error = self.is_finished and self._status == _INTERNAL_SERVER_ERROR
        if "headers" in message or kind in ("http.response.start", "websocket.accept"):
            kept = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
            own = [*(pair for pair in kept if pair[0] != REQUEST_ID), self._own]
            message = {**message, "headers": own}
        self.has_begun = True
        await self._send(message)

    def finish(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Answer with a whole response, once the handler has ended."""
        check_final(status)
        pairs = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        pairs.append((b"content-length", b"%d" % len(body)))
        self._whole = [
            {"type": "http.response.start", "status": status, "headers": pairs},
            {"type": "http.response.body", "body": body, "more_body": False},
        ]

    async def answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """As `finish`, and at once."""
        self.finish(status, headers, body)
        await self._send_whole()

    async def end(self) -> None:
        """The handler has ended.

        Raises:
            RuntimeError: without a complete response.
        """
        await self._send_whole()
        if self.scope["type"] == "http" and not self.is_finished:
            raise RuntimeError("the handler ended without a complete response")

    async def fail(self, error: BaseException, request_id: str) -> None:
        """The handler raised this, or there was no slot for it. The client of a response that has begun sees it break off."""
        if self.scope["type"] == "websocket":
            await self._send({"type": "websocket.close", "code": 1011})
        elif not self.has_begun:
            await self.answer(*error_response(error, request_id))

    async def _send_whole(self) -> None:
        whole, self._whole = self._whole, []
        for message in whole:
            await self.send(message)


class LocalCall:
    """One request on its way, for clients on any thread or loop.

    Args:
        caller: of the application. loop: on which that runs.
        scope: ASGI scope, type "http" or "websocket".
        body: of the request; a WebSocket has none.
        raises: what the handler raises is raised by `next` and `leave`, not answered, unless it has an answer of its own for it.
    """

    def __init__(
        self,
        caller: LocalCaller,
        loop: asyncio.AbstractEventLoop,
        scope: dict[str, Any],
        body: bytes = b"",
        *,
        raises: bool = True,
    ) -> None:
        self._loop, self._scope, self._raises = loop, scope, raises
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        # one piece at a time: a stream goes on when its reader does
        self._from_app: asyncio.Queue[Message] = asyncio.Queue(1)
        if scope["type"] == "http":
            self._to_app.put_nowait({"type": "http.request", "body": body, "more_body": False})
        else:
            self._to_app.put_nowait({"type": "websocket.connect"})
        self._has_left = self._is_told = self._is_answered = False
        # made on the loop, ahead of whatever is asked of it
        self._task: asyncio.Task[None]
        loop.call_soon_threadsafe(self._begin, caller)

    def __repr__(self) -> str:
        return f"LocalCall({self._scope['type']} {self._scope['path']})"

    def put(self, message: Message) -> None:
        """Let the application receive this."""
        self._loop.call_soon_threadsafe(self._to_app.put_nowait, message)

    def next(self) -> "concurrent.futures.Future[Message]":
        """What the application sends next; of type `OVER` once its handler has ended, what that does in the background included.

        Raises:
            Exception: what the handler raised, where errors are raised. RuntimeError: it was cancelled.
        """
        return asyncio.run_coroutine_threadsafe(self._next(), self._loop)

    def leave(self, code: int = 1005, reason: str = "") -> "concurrent.futures.Future[None]":
        """The client goes; done when the handler has ended, or does not for long.

        Args:
            code, reason: with which it closes a WebSocket.

        Raises:
            Exception: what the handler of a WebSocket raised, where errors are raised.
        """
        return asyncio.run_coroutine_threadsafe(self._leave(code, reason), self._loop)

    def _begin(self, caller: LocalCaller) -> None:
        self._task = self._loop.create_task(self._serve(caller))
        # nobody may ever ask for it
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _next(self) -> Message:
        if self._from_app.empty() and not self._task.done():
            piece = asyncio.ensure_future(self._from_app.get())
            try:
                await asyncio.wait((piece, self._task), return_when=asyncio.FIRST_COMPLETED)
                if piece.done():
                    return piece.result()
            finally:
                # also where whoever asked waits no longer
                piece.cancel()
        if not self._from_app.empty():
            return self._from_app.get_nowait()
        return self._end()

    def _end(self) -> Message:
        if self._task.cancelled():
            raise RuntimeError("the handler was cancelled")
        self._raise_once()
        return {"type": OVER}

    def _raise_once(self) -> None:
        error = None if self._task.cancelled() or self._is_told else self._task.exception()
        if error is not None:
            self._is_told = True
            raise error

    async def _leave(self, code: int, reason: str) -> None:
        is_http = self._scope["type"] == "http"
        if not self._task.done():
            await self._end_task(code, reason, is_http=is_http)
        if self._task.done() and not is_http:
            self._raise_once()

    async def _end_task(self, code: int, reason: str, *, is_http: bool) -> None:
        self._has_left = True
        left = (
            {"type": "http.disconnect"} if is_http else {"type": "websocket.disconnect", "code": code, "reason": reason}
        )
        self._to_app.put_nowait(left)
        # whoever waits to send goes on, and finds that nobody reads
        while not self._from_app.empty():
            self._from_app.get_nowait()
        if is_http:
            self._task.cancel()
        await asyncio.wait((self._task,), timeout=_LEAVE_LIMIT_S)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=_LEAVE_LIMIT_S)

    async def _receive(self) -> Message:
        if self._is_answered and self._to_app.empty():
            # nobody tells of a client that has its answer
            return {"type": "http.disconnect"}
        return await self._to_app.get()

    async def _send(self, message: Message) -> None:
        if not self._has_left:
            await self._from_app.put(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self._is_answered = True
                # for whoever waits already
                self._to_app.put_nowait({"type": "http.disconnect"})
        elif message["type"] != "websocket.close":
            raise ClientGoneError("the client is gone")

    async def _serve(self, caller: LocalCaller) -> None:
        given = dict(self._scope["headers"])
        context = RequestContext(
            given.get(REQUEST_ID, b"").decode("latin-1") or random_letters(10),
            caller.route_prefix or "/",
            multiplexed_model_id=given.get(b"serve_multiplexed_model_id", b"").decode("latin-1"),
        )
        own = (REQUEST_ID, context.request_id.encode("latin-1"))
        self._scope["headers"] = [*(pair for pair in self._scope["headers"] if pair[0] != REQUEST_ID), own]
        exchange = LocalExchange(self._scope, self._receive, self._send, context.request_id)
        try:
            async with caller.ingress(context) as ingress:
                await ingress.handle_http(exchange)
                await exchange.end()
        except Exception as error:
            # how a handler hears that its client has left
            if self._has_left and says_client_left(error):
                return
            if self._raises and not isinstance(error, _REFUSALS) and not exchange.answers_error:
                raise
            tell_or_log(error, "__call__")
            if not self._has_left:
                await exchange.fail(error, context.request_id)
