"""A call of gRPC on its way to a replica: messages are bytes here, whatever they mean."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from servd.calls.affinity import affinity_of_grpc
from servd.calls.outgoing import Outgoing
from servd.calls.routing_rules import Rule
from servd.calls.traced import note_wait
from servd.observability.head_traces import TracedId
from servd.wire.connection_room import Share, Window
from servd.wire.grpc.messages import Authentication, GrpcMethod
from servd.wire.records import GRPC, MESSAGE_COST_BYTES, STREAMED_BODY, TRACED, Outbox

Metadata = tuple[tuple[str, "str | bytes"], ...]


class GrpcCall(Outgoing):
    """One call; look at what it has become each time `heard` returns.

    Args:
        share: what it holds of its connection's room, for an answer that streams.
        message: the request, b"" where many come.
        client: as gRPC names it, `ipv4:127.0.0.1:1234`.
        metadata: reads what the client has sent. Those of a hundred calls are many objects: none is kept while a call is served.
        deadline: loop's seconds, None = no limit.
        authentication: of the client's connection; None = it is plain.
        traced: its id, if it is part of a trace.

    Attributes:
        messages: of the answer, not taken yet; `took` says when one was.
        compression: of its messages, as a number of `grpc.Compression`.
        answer: code, answer block and message, once it has ended. failure: why it has not.
    """

    __slots__ = (
        "_authentication",
        "_client",
        "_credit",
        "_loop",
        "_message",
        "_metadata",
        "_method",
        "_request_id",
        "_room",
        "_traced",
        "_waiter",
        "_window",
        "answer",
        "compression",
        "deadline",
        "failure",
        "messages",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        method: GrpcMethod,
        message: bytes,
        share: Share,
        *,
        request_id: str,
        model_id: str,
        client: str,
        metadata: Callable[[], Metadata],
        deadline: float | None,
        authentication: Authentication | None = None,
        traced: TracedId | None = None,
    ) -> None:
        self._loop = loop
        self._method = method
        self._message = message
        self._window = Window(share)
        self._request_id = request_id
        self._client = client
        self._metadata = metadata
        self._authentication = authentication
        self.deadline = deadline
        self._traced = traced
        self.waits_since = 0.0
        self._credit = 0
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self.messages: deque[bytes] = deque()
        self.compression = 0
        self.answer: tuple[int, bytes, bytes] | None = None
        self.failure: Exception | None = None
        self.peer = None
        self.model_id = model_id
        # a stream is not: what was granted of it is gone
        self.is_idempotent = method.is_idempotent and not method.streams_in

    def __repr__(self) -> str:
        return f"GrpcCall({self._method.name}{', over' if self.is_over else ''})"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be heard of it."""
        return self.answer is not None or self.failure is not None

    def record(self, call_id: int, flags: int, outbox: Outbox) -> tuple[Any, ...]:
        left = None if self.deadline is None else max(0.0, self.deadline - self._loop.time())
        about = (left, self.model_id, self._client, self._metadata(), self._authentication)
        if self._method.streams_in:
            flags |= STREAMED_BODY
        if self._method.streams_out:
            flags |= self._window.open()
        if self._traced is not None:
            flags |= TRACED
            note_wait(self, self._traced.span)
        return (GRPC, call_id, flags, self._method.name, outbox.attach(self._message), self._request_id, about)

    def affinity(self, rule: Rule) -> str:
        return affinity_of_grpc(rule, self._metadata(), self._message)

    async def heard(self) -> None:
        """Return when something has happened to it; one waits at a time."""
        self._waiter = self._loop.create_future()
        await self._waiter

    def took(self, message: bytes) -> None:
        """The client has got a message of the answer: there is room for as much."""
        self._grant_bytes(self._window.took(len(message) + MESSAGE_COST_BYTES))

    async def send(self, message: bytes) -> None:
        """Send a further request message, once the replica has room for it."""
        await self._wait_for_room()
        self._credit -= len(message) + MESSAGE_COST_BYTES
        if self.peer is not None:
            self.peer.send_body(self, message, True)

    async def send_end(self) -> None:
        """Say that the client has sent everything."""
        await self._wait_for_room()
        if self.peer is not None:
            self.peer.send_body(self, b"", False)

    async def _wait_for_room(self) -> None:
        # the first credit comes with the word that the replica has taken it
        while self._credit <= 0:
            self._room = self._loop.create_future()
            await self._room

    def on_head(self, status: int, block: bytes) -> None:  # noqa: ARG002 - the form of all requests
        self.compression = status

    def on_response(self, status: int, block: bytes, body: bytes) -> None:
        self.answer = (status, block, bytes(body))
        self._wake()

    def on_piece(self, data: bytes) -> None:
        self.messages.append(bytes(data))
        self._grant_bytes(self._window.widened(len(data)))
        self._wake()

    def on_end(self, error: str | None) -> None:
        self.on_failure(RuntimeError(error or "the replica broke the call off"))

    def on_failure(self, error: Exception) -> None:
        self.failure = error
        self._wake()

    def on_credit(self, size: int) -> None:
        self._credit += size
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
