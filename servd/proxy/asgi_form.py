"""The forwarder as an ASGI application, for connections that are not HTTP/1.1."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from servd.journal import Labels
from servd.outgoing import Outgoing
from servd.proxy.body_stream import BodyStream
from servd.proxy.forwarder import CLIENT_GONE, Forwarder, Target, answer_failure, answer_timeout
from servd.proxy.limits import WHOLE_BODY_BYTES
from servd.proxy.probes import TEXT, Answer
from servd.records import FRAME_BYTES, HTTP, STREAMED_BODY, Outbox, origin
from servd.request_router import IDEMPOTENT_METHODS

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class ForwardedCall(Outgoing):
    """A request of the ASGI form; what happens to it is read with `next_news`.

    News are tuples: ("answer", Answer), ("head", status, block), ("body", data), ("end", error text or None),
    ("event", message, cost), ("failure", error).
    """

    __slots__ = (
        "_flags",
        "_loop",
        "_news",
        "_now",
        "_tail",
        "_waiter",
        "deadline",
        "limit_s",
        "sent_at",
        "stream",
        "subprotocols",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, now: Callable[[], float]) -> None:
        self._loop = loop
        self._now = now
        self.sent_at = 0.0
        self._news: deque[tuple[Any, ...]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._tail: tuple[Any, ...] = ()
        self._flags = 0
        self.peer = None
        self.model_id = ""
        self.is_idempotent = False
        self.stream: BodyStream | None = None
        self.deadline: float | None = None
        self.limit_s = 0.0
        self.subprotocols: tuple[str, ...] = ()

    def prepare(self, tail: tuple[Any, ...], flags: int) -> None:
        """Set what is sent: method, path, query, headers, body, request id, prefix, origin."""
        self._tail = tail
        self._flags = flags

    def record(self, call_id: int, flags: int, outbox: Outbox) -> tuple[Any, ...]:
        tail = self._tail
        if len(tail[4]) >= FRAME_BYTES:
            tail = (*tail[:4], outbox.attach(tail[4]), *tail[5:])
        self.sent_at = self._now()
        left = None if self.deadline is None else max(0.0, self.deadline - self._loop.time())
        return (HTTP, call_id, flags | self._flags, *tail, (left, self.model_id, self.subprotocols))

    async def next_news(self) -> tuple[Any, ...]:
        """What happened next.

        Raises:
            TimeoutError: the time limit passed.
        """
        async with asyncio.timeout_at(self.deadline):
            while not self._news:
                self._waiter = self._loop.create_future()
                await self._waiter
        return self._news.popleft()

    def tell(self, *news: Any) -> None:
        """Add news."""
        self._news.append(news)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def on_response(self, status: int, block: bytes, body: bytes) -> None:
        self.tell("answer", (status, block, body))

    def on_head(self, status: int, block: bytes) -> None:
        self.tell("head", status, block)

    def on_piece(self, data: bytes) -> None:
        self.tell("body", data)

    def on_end(self, error: str | None) -> None:
        self.tell("end", error)

    def on_event(self, message: dict[str, Any], cost: int) -> None:
        self.tell("event", message, cost)

    def on_failure(self, error: Exception) -> None:
        self.tell("failure", error)

    def on_credit(self, size: int) -> None:
        if self.stream is not None:
            self.stream.add_credit(size)


class NotedSend:
    """An ASGI `send` that notes in the journal how a request ended, when its block is left.

    status: of the response as far as it was sent; `CLIENT_GONE` before.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        method: str,
        labels: Labels,
        request_id: bytes,
        send: Send,
        call: ForwardedCall | None = None,
    ) -> None:
        self._forwarder = forwarder
        self._method = method if method.isalpha() else "-"
        self._labels = labels
        self._request_id = request_id
        self._send = send
        self._call = call
        self._began = forwarder.journal.now()
        self.status = CLIENT_GONE

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        journal = self._forwarder.journal
        if journal.is_on:
            journal.note((self._labels, self._method, self.status), self._began, self._request_id)

    async def __call__(self, message: dict[str, Any]) -> None:
        """Send one message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._forwarder.limits.server_timing:
                message = {**message, "headers": self._timed(message["headers"])}
        await self._send(message)

    def _timed(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        sent_at = self._call.sent_at if self._call is not None else 0.0
        block = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        return response_headers(self._forwarder.timed(block, self._began, sent_at), None)


class AsgiForwarder:
    """Forwards one HTTP request per call."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._loop = forwarder.loop

    def new_call(self, scope: dict[str, Any], target: Target) -> tuple[ForwardedCall, bytes]:
        """A call prepared from a scope, without its body, and its request id."""
        headers = dict(scope["headers"])
        call = ForwardedCall(self._loop, self._forwarder.journal.now)
        call.model_id = headers.get(b"serve_multiplexed_model_id", b"").decode("latin-1")
        limit_s = self._forwarder.time_limit(target, headers.get(b"x-request-timeout-seconds"))
        if limit_s is not None:
            call.limit_s = limit_s
            call.deadline = self._loop.time() + limit_s
        return call, self._forwarder.request_id(headers.get(b"x-request-id"))

    def tail(
        self, scope: dict[str, Any], target: Target, body: bytes | bytearray, request_id: bytes
    ) -> tuple[Any, ...]:
        """What `ForwardedCall.prepare` wants."""
        source = origin(
            scope["client"],
            scope["server"],
            scope["scheme"],
            scope["http_version"],
            self._forwarder.table.root_path,
        )
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        method = scope.get("method", "GET")
        query = scope["query_string"]
        return (method, scope["raw_path"], query, headers, body, request_id.decode(), target.prefix, source)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Forward one HTTP request."""
        forwarder = self._forwarder
        target = forwarder.resolve(scope["raw_path"])
        if target is None:
            request_id = forwarder.request_id(dict(scope["headers"]).get(b"x-request-id"))
            noted = NotedSend(
                forwarder, scope["method"], forwarder.labels_of_unrouted(scope["raw_path"]), request_id, send
            )
            with noted:
                await _send_answer(noted, forwarder.answer_unrouted(scope["raw_path"]), request_id)
            return
        call, request_id = self.new_call(scope, target)
        noted = NotedSend(forwarder, scope["method"], target.labels, request_id, send, call)
        with noted:
            await self._forward(scope, receive, noted, target, call, request_id)

    async def _forward(
        self,
        scope: dict[str, Any],
        receive: Receive,
        send: Send,
        target: Target,
        call: ForwardedCall,
        request_id: bytes,
    ) -> None:
        try:
            body, is_complete = await self._read_body(receive, call)
        except TimeoutError:
            await _send_answer(send, answer_timeout(call.limit_s, "reading the body"), request_id)
            return
        limit = self._forwarder.limits.body_bytes
        if body is None:
            return
        if limit and len(body) > limit:
            text = f"the request's body is larger than {limit} bytes".encode()
            await _send_answer(send, (413, TEXT, text), request_id)
            return
        call.is_idempotent = scope["method"] in IDEMPOTENT_METHODS
        room = asyncio.Event()
        if is_complete:
            call.prepare(self.tail(scope, target, body, request_id), 0)
        else:
            call.stream = BodyStream(call, room.set)
            call.stream.feed(bytes(body))
            call.prepare(self.tail(scope, target, b"", request_id), STREAMED_BODY)
        self._forwarder.caller.submit(call, target.router)
        reader = self._loop.create_task(self._read_on(receive, call, room))
        try:
            await self._respond(send, call, request_id)
        finally:
            reader.cancel()
            self._forwarder.caller.cancel(call)

    async def _read_body(self, receive: Receive, call: ForwardedCall) -> tuple[bytearray | None, bool]:
        body = bytearray()
        async with asyncio.timeout_at(call.deadline):
            while len(body) <= WHOLE_BODY_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None, True
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    return body, True
        return body, False

    async def _read_on(self, receive: Receive, call: ForwardedCall, room: asyncio.Event) -> None:
        limit = self._forwarder.limits.body_bytes
        while True:
            stream = call.stream
            if stream is not None and stream.is_full:
                room.clear()
                await room.wait()
            message = await receive()
            if message["type"] == "http.disconnect":
                call.tell("disconnect")
                return
            if stream is None:
                continue
            body = message.get("body", b"")
            if limit and stream.received + len(body) > limit:
                call.tell("answer", (413, TEXT, f"the request's body is larger than {limit} bytes".encode()))
                return
            if body:
                stream.feed(body)
            if not message.get("more_body", False):
                stream.close()

    async def _respond(self, send: Send, call: ForwardedCall, request_id: bytes) -> None:
        has_begun = False
        while True:
            try:
                news = await call.next_news()
            except TimeoutError:
                if not has_begun:
                    stage = "waiting for a replica" if call.peer is None else "in the handler"
                    await _send_answer(send, answer_timeout(call.limit_s, stage), request_id)
                    return
                raise
            kind = news[0]
            if kind == "answer":
                await _send_answer(send, news[1], request_id)
            elif kind == "failure" and not has_begun:
                await _send_answer(send, answer_failure(news[1]), request_id)
            elif kind == "head":
                has_begun = True
                headers = response_headers(news[2], request_id)
                await send({"type": "http.response.start", "status": news[1], "headers": headers})
                continue
            elif kind == "body":
                await send({"type": "http.response.body", "body": news[1], "more_body": True})
                if call.peer is not None:
                    call.peer.grant(call, len(news[1]))
                continue
            elif kind == "end" and news[1] is None:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif kind != "disconnect":
                raise ConnectionAbortedError(f"the response was broken off: {news[1]}")
            return


def response_headers(block: bytes, request_id: bytes | None) -> list[tuple[bytes, bytes]]:
    """Header pairs of a header block, with those that the proxy adds."""
    pairs = [line.partition(b": ")[::2] for line in block.split(b"\r\n") if line]
    if request_id is not None:
        pairs += [(b"server", b"servd"), (b"x-request-id", request_id)]
    return pairs


async def _send_answer(send: Send, answer: Answer, request_id: bytes) -> None:
    status, block, body = answer
    headers = response_headers(block, request_id)
    has_body = status >= 200 and status not in (204, 304)
    if has_body and not any(name == b"content-length" for name, _ in headers):
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
