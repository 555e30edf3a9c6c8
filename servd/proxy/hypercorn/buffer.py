"""What waits of an HTTP/2 stream's answer for its window: bounded by what the connection's room gives it."""

from typing import Any, Protocol

from hypercorn.asyncio.worker_context import EventWrapper
from hypercorn.protocol.h2 import BufferCompleteError, StreamBuffer

LEAST_HIGH_BYTES = 2 * 1024
"""So much may wait in any case."""


class Answering(Protocol):
    """What a buffer asks of its connection."""

    priority: Any
    has_data: Any

    def answer_bytes(self, stream_id: int) -> int:
        """How much of a stream's answer may wait for its client."""
        ...


class LaneBuffer(StreamBuffer):
    """What waits for a stream's window. The base class takes all that it is given, and lets its writer go on after each frame
    that leaves: a slow reader would cost memory without a bound.
    """

    def __init__(self, protocol: Answering, stream_id: int) -> None:
        super().__init__(EventWrapper)
        self._protocol = protocol
        self._stream_id = stream_id
        self._high_bytes = LEAST_HIGH_BYTES

    async def push(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            if self._complete:
                raise BufferCompleteError
            self._high_bytes = high = self._protocol.answer_bytes(self._stream_id)
            size = max(high - len(self.buffer), 0)
            self.buffer += rest[:size]
            rest = rest[size:]
            await self._is_empty.clear()
            # its writer may have found nothing to send
            self._protocol.priority.unblock(self._stream_id)
            await self._protocol.has_data.set()
            if len(self.buffer) < high:
                return
            await self._paused.clear()
            await self._paused.wait()
            if not rest:
                return

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if 2 * len(self.buffer) <= self._high_bytes:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class LaneBuffers(dict[int, StreamBuffer]):
    """The buffers of a connection's streams, by their numbers. The base class puts its own in."""

    def __init__(self, protocol: Answering) -> None:
        super().__init__()
        self._protocol = protocol

    def __setitem__(self, stream_id: int, buffer: StreamBuffer) -> None:
        super().__setitem__(stream_id, LaneBuffer(self._protocol, stream_id))
