"""A request of the ASGI form: what is sent for it, what happens to it, and the note of how it ended."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from typing import Any

from servd.calls.affinity import affinity_of_http
from servd.calls.outgoing import Outgoing
from servd.calls.routing_rules import Rule
from servd.calls.traced import note_wait
from servd.observability.access_log import Labels
from servd.observability.head_traces import TracedId
from servd.proxy.body_stream import BodyStream
from servd.proxy.forwarder import CLIENT_GONE, Forwarder, Target, id_headers
from servd.proxy.http1_rules import outlives_client
from servd.wire.connection_room import Share, Window
from servd.wire.records import FRAME_BYTES, HTTP, TRACED, WEBSOCKET, Outbox

Send = Callable[[dict[str, Any]], Awaitable[None]]


class ForwardedCall(Outgoing):
    """A request of the ASGI form; what happens to it is read with `next_news`.

    News are tuples: ("answer", Answer), ("head", status, block), ("body", data), ("end", error text or None),
    ("event", message, cost), ("failure", error).
    """

    __slots__ = (
        "_flags",
        "_is_unheard",
        "_loop",
        "_news",
        "_now",
        "_tail",
        "_waiter",
        "_window",
        "client",
        "deadline",
        "limit_s",
        "scope",
        "sent_at",
        "share",
        "stream",
        "subprotocols",
        "target",
        "traced",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
        scope: dict[str, Any],
        target: Target,
        share: Share,
    ) -> None:
        self.scope = scope
        self.client: tuple[str, int] | None = scope["client"]
        self.target = target
        self._loop = loop
        self._now = now
        self.sent_at = 0.0
        self._news: deque[tuple[Any, ...]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._tail: tuple[Any, ...] = ()
        self._flags = 0
        self.share = share
        self._window = Window(share)
        self._is_unheard = False
        self.peer = None
        self.model_id = ""
        self.traced: TracedId | None = None
        self.waits_since = 0.0
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
        flags |= self._window.open(lasts=bool(self._flags & WEBSOCKET))
        if self.traced is not None:
            flags |= TRACED
            note_wait(self, self.traced.span)
        left = None if self.deadline is None else max(0.0, self.deadline - self._loop.time())
        return (HTTP, call_id, flags | self._flags, *tail, (left, self.model_id, self.subprotocols))

    @property
    def outlives_client(self) -> bool:
        """Whether it shall be served to its end though its client is gone."""
        is_whole = self.stream is None or self.stream.is_complete
        return is_whole and bool(self._tail) and outlives_client(self._tail[3])

    def affinity(self, rule: Rule) -> str:
        # headers are of one case here
        return affinity_of_http(rule, self._tail[3], self._tail[4])

    def is_abandoned(self) -> bool:
        return ("disconnect",) in self._news and not self.outlives_client

    def let_go(self) -> None:
        """Nobody reads its news any more, and it goes on."""
        self._is_unheard = True

    def take(self, size: int) -> None:
        """The client took so many bytes of the answer."""
        self._grant_bytes(self._window.took(size))

    async def next_news(self) -> tuple[Any, ...]:
        """What happened next.

        Raises:
            TimeoutError: the time limit passed.
        """
        if not self._news:
            # most have no limit, and its clock costs as much as the wait
            async with nullcontext() if self.deadline is None else asyncio.timeout_at(self.deadline):
                while not self._news:
                    self._waiter = self._loop.create_future()
                    await self._waiter
        return self._news.popleft()

    def tell(self, *news: Any) -> None:
        """Add news."""
        if self._is_unheard:
            return
        self._news.append(news)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def on_response(self, status: int, block: bytes, body: bytes) -> None:
        self.tell("answer", (abs(status), block, body))

    def on_head(self, status: int, block: bytes) -> None:
        self.tell("head", abs(status), block)

    def on_piece(self, data: bytes) -> None:
        if self._is_unheard:
            self.take(len(data))
        self._grant_bytes(self._window.widened(len(data)))
        self.tell("body", data)

    def on_end(self, error: str | None) -> None:
        self.tell("end", error)

    def on_event(self, message: dict[str, Any], cost: int) -> None:
        self._grant_bytes(self._window.widened(cost))
        self.tell("event", message, cost)

    def on_failure(self, error: Exception) -> None:
        self.tell("failure", error)

    def on_parts(self) -> None:
        if self._flags & WEBSOCKET and self.stream is not None:
            self.stream.take_parts()

    def on_credit(self, size: int) -> None:
        if self.stream is not None:
            self.stream.add_credit(size)


class NotedSend:
    """An ASGI `send` that notes in the journal how a request ended, when its block is left.

    method: of the request. status: of the response as far as it was sent; `CLIENT_GONE` before, and where the client has left
    amid it. sent_bytes: of its body.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        scope: dict[str, Any],
        labels: Labels,
        request_id: bytes,
        send: Send,
        call: ForwardedCall | None = None,
    ) -> None:
        self._forwarder = forwarder
        self.method = method = scope.get("method", "WEBSOCKET")
        self._noted_method = method if method.isalpha() else "-"
        self._path: bytes = scope["raw_path"]
        self._scope = scope
        self.sent_bytes = 0
        self._labels = labels
        self.request_id = request_id
        self._send = send
        self._call = call
        self._began = forwarder.journal.now()
        self.status = CLIENT_GONE

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        journal = self._forwarder.journal
        if journal.is_on or type(self.request_id) is TracedId:
            peer = None if self._call is None else self._call.peer
            client = self._scope["client"] if self._call is None else self._call.client
            client_ip = str(client[0]) if client else ""
            about = (self._path, self.sent_bytes, client_ip, "" if peer is None else peer.replica_id)
            journal.note((self._labels, self._noted_method, self.status), self._began, self.request_id, *about)

    async def __call__(self, message: dict[str, Any]) -> None:
        """Send one message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._forwarder.limits.server_timing:
                message = {**message, "headers": self._timed(message["headers"])}
        elif message["type"] == "http.response.body":
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)

    def _timed(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        sent_at = self._call.sent_at if self._call is not None else 0.0
        block = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        return response_headers(self._forwarder.timed(block, self._began, sent_at), None)


def response_headers(block: bytes, request_id: bytes | None) -> list[tuple[bytes, bytes]]:
    """Header pairs of a header block, with those that the proxy adds."""
    pairs = [line.partition(b": ")[::2] for line in block.split(b"\r\n") if line]
    if request_id is not None:
        pairs += [(b"server", b"servd"), *id_headers(request_id)]
    return pairs
