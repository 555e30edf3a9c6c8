"""The forwarder as an ASGI application, for HTTP."""

import asyncio

from servd.calls.request_router import IDEMPOTENT_METHODS
from servd.proxy.app_queue import AppQueue
from servd.proxy.asgi_form import AsgiForm
from servd.proxy.body_stream import BodyStream
from servd.proxy.forwarded_call import ForwardedCall, NotedSend, response_headers
from servd.proxy.forwarder import answer_failure, answer_timeout
from servd.proxy.limits import WHOLE_BODY_BYTES
from servd.proxy.probes import TEXT, Answer
from servd.wire.http_answers import framing, has_content
from servd.wire.records import STREAMED_BODY

_VERSION = "2"
_TOO_SLOW: Answer = (408, TEXT, b"the request's body took too long")


class HttpForm(AsgiForm):
    """Forwards one HTTP request per call."""

    async def answer(self, send: NotedSend, answer: Answer) -> None:
        """Send a whole response."""
        status, block, body = answer
        how = framing(send.method, status, _VERSION, block, len(body))
        headers = response_headers(how.block, send.request_id)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if how.content_bytes else b"", "more_body": False})

    async def forward(self, call: ForwardedCall, queue: AppQueue, send: NotedSend) -> None:
        """Send it on and the answer back, to the end."""
        try:
            body, is_complete = await self._read_body(queue, call)
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
        if is_complete:
            call.prepare(self.tail(call, body, send.request_id), 0)
        else:
            call.stream = BodyStream(call, room.set)
            call.stream.feed(bytes(body))
            call.prepare(self.tail(call, b"", send.request_id), STREAMED_BODY)
        self._forwarder.caller.submit(call, call.target.router)
        queue.when_over(lambda: call.tell("disconnect"))
        reader = self._loop.create_task(self._read_on(queue, call, room))
        is_left = False
        try:
            is_left = await self._respond(send, call)
        finally:
            reader.cancel()
            if is_left and call.outlives_client:
                call.let_go()
            else:
                self._forwarder.caller.cancel(call)

    async def _read_body(self, queue: AppQueue, call: ForwardedCall) -> tuple[bytearray | None, bool]:
        body = bytearray()
        async with asyncio.timeout_at(call.deadline):
            while len(body) <= WHOLE_BODY_BYTES:
                async with asyncio.timeout(self._forwarder.limits.idle_s):
                    message = await queue.get()
                if message["type"] == "http.disconnect":
                    return None, True
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    return body, True
        return body, False

    async def _read_on(self, queue: AppQueue, call: ForwardedCall, room: asyncio.Event) -> None:
        limit = self._forwarder.limits.body_bytes
        while True:
            stream = call.stream
            if stream is not None and stream.is_full:
                room.clear()
                await room.wait()
            is_body_open = stream is not None and not stream.is_complete
            try:
                async with asyncio.timeout(self._forwarder.limits.idle_s if is_body_open else None):
                    message = await queue.get()
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

    async def _respond(self, send: NotedSend, call: ForwardedCall) -> bool:
        """Send the answer as it comes; whether the client was gone before its end."""
        has_begun = is_mute = False
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
                is_mute = not has_content(send.method, news[1])
                headers = response_headers(
                    framing(send.method, news[1], _VERSION, news[2], None).block, send.request_id
                )
                await send({"type": "http.response.start", "status": news[1], "headers": headers})
                continue
            elif kind == "body":
                if not is_mute:
                    await send({"type": "http.response.body", "body": news[1], "more_body": True})
                call.take(len(news[1]))
                continue
            elif kind == "end" and news[1] is None:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif kind != "disconnect":
                raise ConnectionAbortedError("the response was broken off")
            return bool(kind == "disconnect")
