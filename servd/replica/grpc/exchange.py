"""One call of gRPC inside a replica: its messages as bytes, and the way back to the client."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from servd.calls.failures import ClientGoneError
from servd.calls.request_context import RequestContext
from servd.wire.grpc.codes import Code
from servd.wire.grpc.messages import Authentication
from servd.wire.records import BODY, CREDIT, CREDIT_BYTES, HEAD, MESSAGE_COST_BYTES, RESPONSE, Outbox, answer_block

_GRANT_BYTES = CREDIT_BYTES // 4


class Peer(Protocol):
    """What a call asks of the caller that it came from."""

    @property
    def outbox(self) -> Outbox:
        """What goes out at the end of this turn."""
        ...

    def send(self, record: tuple[Any, ...]) -> None:
        """Send a record."""
        ...

    def ongoing_after(self) -> int:
        """Requests that run when the one that ends now is not counted."""
        ...

    def finish_exchange(self, call_id: int, record: tuple[Any, ...]) -> None:
        """Send the last record of a call."""
        ...


class GrpcExchange:
    """One call.

    Attributes:
        method: full name. message: the request, where there is one. client, metadata, authentication: as gRPC has them.
        is_unheard: the client is gone.
    """

    has_started = False
    task: asyncio.Task[None] | None = None

    def __init__(
        self,
        peer: Peer,
        call_id: int,
        method: str,
        message: bytes,
        context: RequestContext,
        client: str = "",
        metadata: tuple[tuple[str, str | bytes], ...] = (),
        authentication: Authentication | None = None,
        *,
        credit: int = CREDIT_BYTES,
    ) -> None:
        self._peer = peer
        self.call_id = call_id
        self.method = method
        self.message = message
        self.context = context
        self.client = client
        self.metadata = metadata
        self.authentication = authentication
        self._credit = credit
        self._taken = 0
        self.is_unheard = False
        self._is_complete = False
        self._messages: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"GrpcExchange({self.method} id={self.call_id})"

    def expect_messages(self) -> None:
        """The requests come one by one: let the first ones come."""
        self._peer.send((CREDIT, self.call_id, CREDIT_BYTES))

    def feed_body(self, data: bytes, more: bool) -> None:
        """A further request message arrived, or the end of them."""
        if more:
            self._messages.append(data)
        else:
            self._is_complete = True
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def receive(self) -> bytes | None:
        """The next request message; None after the last.

        Raises:
            ClientGoneError: the client is gone, and the method goes on all the same, or waits in a thread, which no cancellation
            reaches.
        """
        while not self._messages:
            if self._is_complete:
                return None
            if self.is_unheard:
                raise ClientGoneError("the client has left before the end of its requests")
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._messages.popleft()
        self._taken += len(message) + MESSAGE_COST_BYTES
        if self._taken >= _GRANT_BYTES:
            self._peer.send((CREDIT, self.call_id, self._taken))
            self._taken = 0
        return message

    def compress(self, kind: int) -> None:
        """Let the messages of the answer be compressed; before the first. kind: of `grpc.Compression`."""
        self._peer.send((HEAD, self.call_id, kind, b""))

    async def send(self, message: bytes) -> None:
        """Send one message of an answer that streams, once the client has taken enough of those before."""
        while self._credit <= 0 and not self.is_unheard:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer
        if self.is_unheard:
            # nothing holds it up any more, so let others have their turn
            await asyncio.sleep(0)
            return
        self._credit -= len(message) + MESSAGE_COST_BYTES
        peer = self._peer
        peer.send((BODY, self.call_id, peer.outbox.attach(message), True))

    def finish(
        self, code: Code, details: str = "", trailing: Sequence[tuple[str, str | bytes]] = (), message: bytes = b""
    ) -> None:
        """End the call."""
        # the limit was for the answer: what goes on in the background has none
        self.context.deadline = None
        peer = self._peer
        block = answer_block(details, trailing)
        record = (RESPONSE, self.call_id, peer.ongoing_after(), int(code), block, peer.outbox.attach(message))
        peer.finish_exchange(self.call_id, record)

    def add_credit(self, size: int) -> None:
        """The client took `size` bytes of the answer."""
        self._credit += size
        if self._credit > 0:
            self._wake_writer()

    def disconnect(self) -> None:
        """As `let_go`: no cancellation reaches a thread that waits for the next message."""
        self.let_go()

    def let_go(self) -> None:
        """The client is gone, and the method shall complete all the same: what it sends is dropped."""
        self.is_unheard = True
        self._wake_writer()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _wake_writer(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
