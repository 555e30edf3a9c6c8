"""The forwarder as an ASGI application, for HTTP."""

import asyncio
from contextlib import suppress
from typing import Any

from servd.calls.request_router import IDEMPOTENT_METHODS
from servd.observability.journal import NOWHERE
from servd.proxy.app_queue import AppQueue
from servd.proxy.asgi_form import AsgiForm
from servd.proxy.body_stream import BodyStream
from servd.proxy.forwarded_call import ForwardedCall, NotedSend, Send, response_headers
from servd.proxy.forwarder import CLIENT_GONE, answer_failure, answer_timeout
from servd.proxy.limits import MUTE_S, WHOLE_BODY_BYTES
from servd.proxy.probes import TEXT, Answer
from servd.wire.http_answers import REQUEST_ID, framing, has_content
from servd.wire.records import CREDIT_BYTES, STREAMED_BODY

_VERSION = "2"
_PIECE_BYTES = 64 * 1024
_WAITING_BYTES = 16 * 1024
"""What of a body may wait for the replica on a connection that has others."""
_TOO_SLOW: Answer = (408, TEXT, b"the request's body took too long")
_TURNED_AWAY: Answer = (
    503,
    TEXT + b"retry-after: 1\r\n",
    b"too many uploads wait in line on this connection: others could not go on",
)


def _is_turned_away(call: ForwardedCall) -> bool:
    if call.peer is not None:
        return False
    call.tell("answer", _TURNED_AWAY)
    return True


class HttpForm(AsgiForm):
    """Forwards one HTTP request per call."""

    async def answer(self, send: NotedSend, answer: Answer) -> None:
        """Send a whole response."""
        status, block, body = answer
        how = framing(send.method, status, _VERSION, block, len(body))
        headers = response_headers(how.block, send.request_id)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        rest = memoryview(body if how.content_bytes else b"")
        while len(rest) > _PIECE_BYTES:
            # whoever sends it copies it: not all at once
            await send({"type": "http.response.body", "body": rest[:_PIECE_BYTES], "more_body": True})
            rest = rest[_PIECE_BYTES:]
        await send({"type": "http.response.body", "body": rest, "more_body": False})

    async def refuse(self, scope: dict[str, Any], status: int, send: Send) -> None:
        """Answer a request that nobody is asked for, with a head alone."""
        said = self._said(scope).client or scope["client"]
        request_id = self._forwarder.request_id(dict(scope["headers"]).get(REQUEST_ID))
        noted = NotedSend(self._forwarder, {**scope, "client": said}, NOWHERE, request_id, send)
        with noted:
            await self.answer(noted, (status, b"", b""))

    async def forward(self, call: ForwardedCall, queue: AppQueue, send: NotedSend) -> None:
        """Send it on and the answer back, to the end."""
        if queue.is_expecting and (refused := call.target.router.refused_now()) is not None:
            # its client need not send the body in vain
            await self.answer(send, answer_failure(refused))
            return
        try:
            body, is_complete, is_whole = await self._read_body(queue, call)
        except TimeoutError:
            is_over = call.deadline is not None and self._loop.time() >= call.deadline
            answer = answer_timeout(call.limit_s, "reading the body") if is_over else _TOO_SLOW
            await self.answer(send, answer)
            return
        limit = self._forwarder.limits.body_bytes
        if body is None:
            return
        if limit and len(body) > limit:
            text = f"the request's body is larger than {limit} bytes".encode()
            await self.answer(send, (413, TEXT, text))
            return
        call.is_idempotent = call.scope["method"] in IDEMPOTENT_METHODS
        room = asyncio.Event()
        if is_whole:
            call.prepare(self.tail(call, body, send.request_id), 0)
        else:
            share = call.share
            room_bytes = CREDIT_BYTES if share.is_alone else _WAITING_BYTES
            call.stream = BodyStream(call, room.set, room_bytes=room_bytes, on_sent=share.sent)
            call.stream.feed(body)
            if is_complete:
                call.stream.close()
            call.prepare(self.tail(call, b"", send.request_id), STREAMED_BODY)
            stream = call.stream
            share.is_hungry = lambda: call.peer is not None and stream.is_hungry
            share.turn_away = lambda: _is_turned_away(call)
        # whoever sends it on holds it, and no longer than that
        del body
        self._forwarder.caller.submit(call, call.target.router)
        queue.when_over(lambda: call.tell("disconnect"))
        # where nothing more can come, the queue tells of a client that goes
        reader = None if is_complete else self._loop.create_task(self._read_on(queue, call, room))
        is_left = False
        try:
            is_left = await self._respond(send, call)
        finally:
            if reader is not None:
                reader.cancel()
            if is_left and call.outlives_client:
                call.let_go()
            else:
                self._forwarder.caller.cancel(call)

    async def _read_body(self, queue: AppQueue, call: ForwardedCall) -> tuple[bytearray | None, bool, bool]:
        """The body, or its begin; whether it is complete; whether it may be kept until it is answered."""
        body = bytearray()
        async with asyncio.timeout_at(call.deadline):
            while len(body) <= WHOLE_BODY_BYTES:
                message = await self._next(queue, call, self._forwarder.limits.idle_s)
                if message["type"] == "http.disconnect":
                    return None, True, True
                piece = message.get("body", b"")
                body += piece
                is_kept = call.share.keep(len(piece))
                if not message.get("more_body", False):
                    return body, True, is_kept
                if not is_kept:
                    break
        return body, False, False

    async def _read_on(self, queue: AppQueue, call: ForwardedCall, room: asyncio.Event) -> None:
        limit = self._forwarder.limits.body_bytes
        while True:
            stream = call.stream
            if stream is not None and stream.is_full:
                room.clear()
                await room.wait()
            is_body_open = stream is not None and not stream.is_complete
            try:
                message = await self._next(queue, call, self._forwarder.limits.idle_s if is_body_open else None)
            except TimeoutError:
                call.tell("answer", _TOO_SLOW)
                return
            if message["type"] == "http.disconnect" or stream is None:
                return
            body = message.get("body", b"")
            if limit and stream.received + len(body) > limit:
                call.tell("answer", (413, TEXT, f"the request's body is larger than {limit} bytes".encode()))
                return
            if body:
                stream.feed(body)
            if not message.get("more_body", False):
                stream.close()

    async def _next(self, queue: AppQueue, call: ForwardedCall, idle_s: float | None) -> dict[str, Any]:
        """The next message. TimeoutError: the client sent none for so long, though it could have."""
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    return await queue.get()
            except TimeoutError:
                if not call.share.is_shut():
                    raise

    async def _respond(self, send: NotedSend, call: ForwardedCall) -> bool:
        """Send the answer as it comes; whether the client was gone before its end."""
        has_begun = False
        left: int | None = None
        while True:
            try:
                news = await call.next_news()
            except TimeoutError:
                if not has_begun:
                    stage = "waiting for a replica" if call.peer is None else "in the handler"
                    await self.answer(send, answer_timeout(call.limit_s, stage))
                    return False
                raise ConnectionAbortedError("the time limit passed") from None
            kind = news[0]
            if kind == "answer" and not has_begun:
                await self.answer(send, news[1])
            elif kind == "failure" and not has_begun:
                await self.answer(send, answer_failure(news[1]))
            elif kind == "head":
                has_begun = True
                how = framing(send.method, news[1], _VERSION, news[2], None)
                left = how.content_bytes
                headers = response_headers(how.block, send.request_id)
                await send({"type": "http.response.start", "status": news[1], "headers": headers})
                if not has_content(send.method, news[1]):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    await self._see_out(call)
                    return False
                continue
            elif kind == "body":
                if left is not None and (left := left - len(news[1])) < 0:
                    raise ConnectionAbortedError("the response is longer than its content-length")
                await send({"type": "http.response.body", "body": news[1], "more_body": True})
                call.take(len(news[1]))
                continue
            elif kind == "end" and news[1] is None and not left:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif kind != "disconnect":
                raise ConnectionAbortedError("the response was broken off")
            if is_left := kind == "disconnect":
                # however much of it has been sent
                send.status = CLIENT_GONE
            return bool(is_left)

    async def _see_out(self, call: ForwardedCall) -> None:
        """The client has all of the answer: let the handler end, for a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if call.outlives_client else MUTE_S):
                while (news := await call.next_news())[0] not in ("end", "failure"):
                    if news[0] == "body":
                        call.take(len(news[1]))
