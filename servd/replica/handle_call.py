"""One handle call inside a replica."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from servd.calls.pickling import dumps
from servd.calls.request_context import RequestContext
from servd.replica.caller_peer import CallerPeer
from servd.wire.records import CREDIT_BYTES, ITEM, REPLY

_ITEM_COST_BYTES = 64


class HandleCall:
    """One call: its arguments, its context, and the way back to the caller."""

    __slots__ = (
        "_call_id",
        "_credit",
        "_is_unheard",
        "_peer",
        "_writer",
        "context",
        "has_started",
        "is_stream",
        "method",
        "parts",
        "task",
    )

    def __init__(
        self,
        peer: CallerPeer,
        call_id: int,
        method: str,
        parts: list[Any],
        is_stream: bool,
        context: RequestContext,
    ) -> None:
        self._peer = peer
        self._call_id = call_id
        self.method = method
        self.parts = parts
        self.is_stream = is_stream
        self.context = context
        self.task: asyncio.Task[None] | None = None
        self.has_started = False
        self._credit = CREDIT_BYTES
        self._is_unheard = False
        self._writer: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"HandleCall({self.method} id={self._call_id})"

    def reply(self, succeeded: bool, parts: list[Any]) -> None:
        """End the call with a result, or with an exception's parts."""
        # the limit was for the answer: what goes on in the background has none
        self.context.deadline = None
        peer = self._peer
        record = (REPLY, self._call_id, peer.ongoing_after(), succeeded, peer.outbox.attach_all(parts))
        peer.finish_exchange(self._call_id, record)

    def end(self) -> None:
        """End a stream."""
        self.reply(True, [])

    async def send_all(self, items: AsyncGenerator[Any, None]) -> None:
        """Send a stream, and end it. However that ends, the generator has ended then: it may hold what the next call needs."""
        async with aclosing(items):
            async for item in items:
                await self.send_item(dumps(item))
        self.end()

    async def send_item(self, parts: list[Any]) -> None:
        """Send one item of a stream; waits while the caller has too much that it did not take."""
        while self._credit <= 0 and not self._is_unheard:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer
        if self._is_unheard:
            # nothing holds it up any more, so let others have their turn
            await asyncio.sleep(0)
            return
        cost = _ITEM_COST_BYTES + sum(memoryview(part).nbytes for part in parts)
        self._credit -= cost
        peer = self._peer
        peer.send((ITEM, self._call_id, peer.outbox.attach_all(parts), cost))

    def add_credit(self, size: int) -> None:
        """The caller took `size` bytes of the stream."""
        self._credit += size
        if self._credit > 0:
            self._wake_writer()

    def disconnect(self) -> None:
        """As `let_go`: no cancellation reaches a thread that waits for the next message."""
        self.let_go()

    def let_go(self) -> None:
        """The caller is gone, and the method shall complete all the same: what it yields is dropped."""
        self._is_unheard = True
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
