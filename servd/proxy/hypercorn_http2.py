"""Hypercorn's HTTP/2 with cures: windows that open as bodies are taken, writers that wait, streams that are broken off."""

import struct
from typing import Any

from h2.errors import ErrorCodes
from h2.events import DataReceived, PriorityUpdated, RemoteSettingsChanged, RequestReceived, StreamReset
from h2.exceptions import ProtocolError
from h2.utilities import SizeLimitDict
from hypercorn.asyncio.worker_context import EventWrapper
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import Body
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BUFFER_LOW_WATER, BufferCompleteError, H2Protocol, StreamBuffer

from servd.proxy.app_queue import AppQueue

_STREAM_WINDOW_BYTES = 65_535
_HEADS_BYTES = 1024 * 1024
_HEADER_BYTES = 200
"""The heads of all requests under way together, and what a header costs beside its bytes. A request beyond is refused so that
its client sends it again."""
_TABLE_BYTES = 4096
_CHANGES_TO_TELL = 2
"""Of the table's size: the least and the last (RFC 7541, 4.2)."""
_CLOSED_STREAMS = 1000
_FREE_RESETS = 1_000
"""So many requests of a connection may be taken back; beyond, no more than half of them all."""


class _LaneBuffer(StreamBuffer):
    """What waits for a stream's window. The base class lets its writer go on after each frame that leaves: a slow reader
    would cost memory without a bound.
    """

    async def push(self, data: bytes) -> None:
        if self._complete:
            raise BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class _LaneBuffers(dict[int, StreamBuffer]):
    def __setitem__(self, stream_id: int, buffer: StreamBuffer) -> None:
        super().__setitem__(stream_id, _LaneBuffer(EventWrapper))


class LaneHttp2(H2Protocol):
    """One HTTP/2 connection. A stream whose body nobody takes stops alone: its window stays shut."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.stream_buffers = _LaneBuffers()
        self._queues: dict[int, AppQueue] = {}
        self._untold: dict[int, int] = {}
        self.connection._closed_streams = SizeLimitDict(size_limit=_CLOSED_STREAMS)
        self._heads: dict[int, int] = {}
        self._heads_bytes = 0
        self._resets = 0

    async def initiate(self, headers: Any = None, settings: bytes | None = None) -> None:
        """Begin, with a window of the connection that holds all streams' windows.

        Settings of an upgrade that are none end the connection: its client has been told nothing yet.
        """
        try:
            await super().initiate(headers, settings)
        except (ProtocolError, struct.error, ValueError):
            await self.send(Closed())
            return
        self.connection.increment_flow_control_window(
            _STREAM_WINDOW_BYTES * (self.config.h2_max_concurrent_streams - 1)
        )
        await self._flush()

    def open_queue(self, stream_id: int) -> AppQueue:
        """What a stream's messages go through."""

        async def acknowledge() -> None:
            if queue.has_room:
                self._acknowledge(stream_id)
                await self._flush()

        queue = self._queues[stream_id] = AppQueue(is_patient=False, on_taken=acknowledge)
        return queue

    def unsent_bytes(self, stream_id: int) -> int:
        """Bytes that wait for the stream's window."""
        buffer = self.stream_buffers.get(stream_id)
        return 0 if buffer is None else len(buffer.buffer)

    async def break_off(self, stream_id: int, code: int) -> None:
        """Reset a stream, if it is still there."""
        try:
            self.connection.reset_stream(stream_id, code)
        except ProtocolError:
            return
        await self._flush()

    def _acknowledge(self, stream_id: int) -> None:
        size = self._untold.pop(stream_id, 0)
        if size and not self.closed:
            try:
                self.connection.acknowledge_received_data(size, stream_id)
            except ProtocolError:
                # the connection is over
                pass

    async def handle(self, event: Event) -> None:
        """As the base class, and at the end nobody goes on waiting to send."""
        await super().handle(event)
        if self.closed:
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()

    async def _handle_events(self, events: list[Any]) -> None:
        for event in events:
            if self.closed:
                # lost meanwhile: a stream begun now would never hear of it
                return
            if isinstance(event, DataReceived):
                stream = self.streams.get(event.stream_id)
                # empty ones cost their client no window
                if stream is not None and event.data:
                    await stream.handle(Body(stream_id=event.stream_id, data=event.data))
                self._untold[event.stream_id] = self._untold.get(event.stream_id, 0) + event.flow_controlled_length
                queue = self._queues.get(event.stream_id)
                # answered before its body had arrived: nobody will take it
                if queue is None or queue.has_room:
                    self._acknowledge(event.stream_id)
            elif isinstance(event, StreamReset):
                await self._close_stream(event.stream_id)
                await self._forget_answer(event.stream_id)
                self._resets += 1
                # clients number their streams 1, 3, 5 ...
                if self._resets > max(_FREE_RESETS, event.stream_id // 4):
                    await self._send_away()
                    return
            elif isinstance(event, RequestReceived) and not self._has_room_for(event):
                await self.break_off(event.stream_id, ErrorCodes.REFUSED_STREAM)
            elif not isinstance(event, PriorityUpdated):
                # priorities are deprecated, and a tree of streams that are not there costs memory
                await super()._handle_events([event])
            if isinstance(event, RemoteSettingsChanged):
                self._bound_table()
        await self._flush()

    def _has_room_for(self, request: RequestReceived) -> bool:
        size = sum(len(name) + len(value) + _HEADER_BYTES for name, value in request.headers)
        if self._heads and self._heads_bytes + size > _HEADS_BYTES:
            return False
        self._heads[request.stream_id] = size
        self._heads_bytes += size
        return True

    def _bound_table(self) -> None:
        # a larger table for what is sent here would only cost memory, and so would a list of all changes
        encoder = self.connection.encoder
        encoder.header_table_size = min(_TABLE_BYTES, encoder.header_table_size)
        changes = encoder.table_size_changes
        if len(changes) > _CHANGES_TO_TELL:
            changes[:] = [min(changes), changes[-1]]

    async def _send_away(self) -> None:
        # requests taken back at once cost a client next to nothing
        self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        await self._flush()
        await self.send(Closed())

    async def _forget_answer(self, stream_id: int) -> None:
        # at once: the base class leaves it to its writer, which many resets in one read do not let run
        buffer = self.stream_buffers.pop(stream_id, None)
        if buffer is not None:
            await buffer.close()
            self.priority.remove_stream(stream_id)

    async def _send_data(self, stream_id: int) -> None:
        try:
            await super()._send_data(stream_id)
        except KeyError:
            # forgotten while a piece of it was being sent
            pass

    async def _close_stream(self, stream_id: int) -> None:
        self._queues.pop(stream_id, None)
        self._heads_bytes -= self._heads.pop(stream_id, 0)
        await super()._close_stream(stream_id)
        self._acknowledge(stream_id)
