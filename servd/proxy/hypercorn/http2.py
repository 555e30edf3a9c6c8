"""Hypercorn's HTTP/2 with cures: windows that open as bodies are taken, writers that wait, streams that are broken off."""

import asyncio
import struct
from contextlib import suppress
from typing import Any

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    PriorityUpdated,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError
from h2.utilities import SizeLimitDict
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Body
from hypercorn.protocol.h2 import H2Protocol
from hyperframe.frame import GoAwayFrame

from servd.proxy.app_queue import AppQueue
from servd.proxy.hypercorn.buffer import LEAST_HIGH_BYTES, LaneBuffers
from servd.proxy.hypercorn.h2_connection import LaneH2Connection
from servd.proxy.hypercorn.refusals import Refuse, refusal_of, scope_of
from servd.proxy.hypercorn.shared_window import WINDOW_BYTES, SharedWindow
from servd.proxy.hypercorn.websocket import LaneWebSocket
from servd.wire.connection_room import ConnectionRoom, Share

_STREAM_WINDOW_BYTES = 65_535
_BODY_BYTES = 20 * 1024
_MESSAGES_BYTES = 8 * 1024
"""What may wait of a stream's body, and of a WebSocket's messages, before its own window stays shut."""
_MOST_HIGH_BYTES = 64 * 1024
"""What may wait of an answer until its client takes it: in between half of what it has of the connection's room."""
_FRAME_BYTES = 16 * 1024
_TURN_BYTES = 2 * _FRAME_BYTES
"""What clients take in one frame, and what a stream sends before others have their turn."""
_HEADS_BYTES = 1024 * 1024
_HEADER_BYTES = 200
"""The heads of all requests under way together, and what a header costs beside its bytes. A request beyond is refused so that
its client sends it again."""
_TABLE_BYTES = 4096
_CHANGES_TO_TELL = 2
"""Of the table's size: the least and the last (RFC 7541, 4.2)."""
_CLOSED_STREAMS = 1000
_MOST_ENDING = 150
"""Requests under way, those included that were taken back and are not over yet."""
_LAST_WORDS_S = 1.0
"""What a WebSocket's client had said before it reset its stream has so long to be heard."""
_FROM_NOW_ON = GoAwayFrame(0, last_stream_id=2**31 - 1).serialize()
"""The farewell that takes nothing back: all that has been sent is answered (RFC 9113, 6.8)."""
_FREE_RESETS = 1_000
"""So many requests of a connection may be taken back; beyond, no more than half of them all."""


class LaneHttp2(H2Protocol):
    """One HTTP/2 connection. A stream whose body nobody takes stops alone: its window stays shut.

    Attributes:
        is_unwelcome: with its next request the client is asked to send further ones elsewhere.
        is_left: the client has said that it sends no further ones. parted: it has closed.
    """

    def __init__(self, refuse: Refuse, *args: Any) -> None:
        self.refuse = refuse
        super().__init__(*args)
        LaneH2Connection.take_over(self.connection)
        self.stream_buffers = LaneBuffers(self)
        self._room = ConnectionRoom()
        self._shares: dict[int, Share] = {}
        self._queues: dict[int, AppQueue] = {}
        self._untold: dict[int, int] = {}
        self._window = SharedWindow()
        self.connection._closed_streams = SizeLimitDict(size_limit=_CLOSED_STREAMS)
        self._heads: dict[int, int] = {}
        self._heads_bytes = self._resets = 0
        self.is_unwelcome = self.is_left = self._is_asked = self._is_over = self._has_body = False
        self.parted = asyncio.Event()

    async def initiate(self, headers: Any = None, settings: bytes | None = None) -> None:
        """Begin, with a window of the connection that all streams share.

        Settings of an upgrade that are none end the connection: its client has been told nothing yet.
        """
        try:
            await super().initiate(headers, settings)
        except (ProtocolError, struct.error, ValueError):
            await self.send(Closed())
            return
        self.connection.increment_flow_control_window(WINDOW_BYTES - _STREAM_WINDOW_BYTES)
        await self._flush()

    def open_queue(self, stream_id: int, *, is_websocket: bool, is_expecting: bool) -> AppQueue:
        """What a stream's messages go through. is_expecting: its client waits until somebody wants its body."""
        if is_websocket:
            queue = AppQueue(room_bytes=_MESSAGES_BYTES)
        else:

            async def acknowledge() -> None:
                if queue.has_room and self._acknowledge(stream_id):
                    await self._flush()

            async def ask_for_body() -> None:
                with suppress(ProtocolError):
                    self.connection.send_headers(stream_id, [(":status", "100")])
                await self._flush()

            queue = AppQueue(
                is_patient=False,
                room_bytes=_BODY_BYTES,
                on_taken=acknowledge,
                ask=ask_for_body if is_expecting and self._has_body else None,
            )
        self._queues[stream_id] = queue
        return queue

    def open_share(self, stream_id: int) -> Share:
        """What a stream's request holds of what the whole connection may hold."""
        share = self._shares[stream_id] = Share(
            self._room,
            lambda size: self._release(stream_id, size),
            lambda: self._window.is_half_held,
        )
        return share

    def close_share(self, stream_id: int) -> None:
        """The stream's request is over."""
        self._shares.pop(stream_id).close()

    def answer_bytes(self, stream_id: int) -> int:
        """How much of a stream's answer may wait for its client."""
        share = self._shares.get(stream_id)
        lent = 0 if share is None else share.lent
        high = min(max(lent // 2, LEAST_HIGH_BYTES), _MOST_HIGH_BYTES)
        # a small frame costs as much as a whole one
        return high - high % _FRAME_BYTES if high > _FRAME_BYTES else high

    async def handled(self, stream_id: int, size: int) -> None:
        """So many bytes of a WebSocket's client have become messages that somebody took."""
        self._release(stream_id, size)
        if self._acknowledge(stream_id):
            await self._flush()

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
        await self._forget_answer(stream_id)
        await self._flush()

    def turn(self) -> None:
        """Once a second: what has stopped goes on."""
        is_shut = self.connection.inbound_flow_control_window < _FRAME_BYTES
        is_stuck = is_shut and any(share.is_hungry() for share in self._shares.values())
        further, count = self._window.turn(is_stuck=is_stuck)
        if further and self._open(further):
            self.task_group.spawn(self._flush)
        for stream_id in sorted(self._shares, reverse=True):
            if count:
                count -= self._shares[stream_id].turn_away()

    def _acknowledge(self, stream_id: int) -> bool:
        """Open the window of a stream as far as it was taken from; whether there is something to tell."""
        size = self._untold.get(stream_id, 0)
        if 2 * size < _STREAM_WINDOW_BYTES:
            return False
        del self._untold[stream_id]
        return self._open(size, stream_id)

    def _release(self, stream_id: int, size: int) -> None:
        """So many bytes of a stream are held no more: others may come, of any stream."""
        opened = self._window.release(stream_id, size)
        if opened and self._open(opened):
            self.task_group.spawn(self._flush)

    def _open(self, size: int, stream_id: int | None = None) -> bool:
        try:
            self.connection.increment_flow_control_window(size, stream_id)
        except (ProtocolError, KeyError):
            # the stream or the whole connection is over
            return False
        return True

    def _forget_body(self, stream_id: int) -> None:
        self._window.forget(stream_id)
        self._untold.pop(stream_id, None)

    async def _take_data(self, event: DataReceived) -> None:
        stream_id, size = event.stream_id, len(event.data)
        stream = self.streams.get(stream_id)
        self._untold[stream_id] = self._untold.get(stream_id, 0) + event.flow_controlled_length
        self._window.hold(stream_id, event.flow_controlled_length)
        # nobody holds what only fills a frame
        self._release(stream_id, event.flow_controlled_length - size)
        queue = self._queues.get(stream_id)
        if isinstance(stream, LaneWebSocket):
            stream.feed(event.data)
            return
        # empty ones cost their client no window
        if stream is not None and event.data:
            await stream.handle(Body(stream_id=stream_id, data=event.data))
        if stream is None or queue is None:
            # answered before its body had arrived: nobody will take it
            self._release(stream_id, size)
        if queue is None or queue.has_room:
            self._acknowledge(stream_id)

    async def say_goodbye(self) -> bool:
        """Take no further request. False: there is one."""
        if not self.idle:
            return False
        if not self._is_over:
            self._is_over = True
            self.connection.close_connection()
            await self._flush()
        return True

    async def _ask_to_leave(self) -> None:
        # by hand: the library sends nothing more after its own, and clients that are built on it hear nothing more. So only who
        # would go on until the connection is cut is asked
        self._is_asked = True
        await self.send(RawData(_FROM_NOW_ON))

    async def handle(self, event: Event) -> None:
        """As the base class, and at the end nobody goes on waiting to send."""
        if self._is_over and isinstance(event, RawData):
            # its client sends it again elsewhere
            return
        await super().handle(event)
        if self.closed:
            self.parted.set()
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()

    async def _handle_events(self, events: list[Any]) -> None:
        for event in events:
            if self.closed:
                # lost meanwhile: a stream begun now would never hear of it
                return
            if isinstance(event, RequestReceived):
                self._has_body = event.stream_ended is None
                if self.is_unwelcome and not self._is_asked:
                    await self._ask_to_leave()
            if isinstance(event, DataReceived):
                await self._take_data(event)
            elif isinstance(event, StreamReset):
                await self._forget_answer(event.stream_id)
                await self._take_reset(event.stream_id)
                if await self._is_sent_away(event.stream_id):
                    return
            elif isinstance(event, RequestReceived) and (status := refusal_of(event.headers)):
                await self._refuse(event, status)
            elif isinstance(event, RequestReceived) and not self._has_room_for(event):
                await self.break_off(event.stream_id, ErrorCodes.REFUSED_STREAM)
                # no client has so many under way that does not take them back
                if len(self._shares) >= _MOST_ENDING and await self._is_sent_away(event.stream_id):
                    return
            elif isinstance(event, ConnectionTerminated) and event.error_code == ErrorCodes.NO_ERROR and not self.idle:
                self.is_left = True
            elif not isinstance(event, PriorityUpdated):
                # priorities are deprecated, and a tree of streams that are not there costs memory
                await super()._handle_events([event])
            if isinstance(event, StreamEnded):
                stream = self.streams.get(event.stream_id)
                if stream is None:
                    self._forget_body(event.stream_id)
                elif isinstance(stream, LaneWebSocket):
                    stream.end()
            if isinstance(event, RemoteSettingsChanged):
                self._bound_table()
        await self._flush()

    async def _refuse(self, request: RequestReceived, status: int) -> None:
        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                pairs = [(b":status", b"%d" % message["status"]), *message["headers"]]
                self.connection.send_headers(request.stream_id, pairs, end_stream=True)

        await self.refuse(scope_of(request.headers, self.client), status, send)

    async def _take_reset(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if not isinstance(stream, LaneWebSocket) or stream.is_heard:
            await self._close_stream(stream_id)
            return
        # a farewell that came in the same read is heard, unless the handler takes nothing
        stream.end()
        self.task_group.spawn(self._close_late, stream_id)

    async def _close_late(self, stream_id: int) -> None:
        await asyncio.sleep(_LAST_WORDS_S)
        await self._close_stream(stream_id)

    def _has_room_for(self, request: RequestReceived) -> bool:
        if len(self._shares) >= _MOST_ENDING:
            return False
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

    async def _is_sent_away(self, stream_id: int) -> bool:
        self._resets += 1
        # clients number their streams 1, 3, 5 ...
        if self._resets <= max(_FREE_RESETS, stream_id // 4):
            return False
        # requests taken back at once cost a client next to nothing
        self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        await self._flush()
        await self.send(Closed())
        return True

    async def _forget_answer(self, stream_id: int) -> None:
        # at once: the base class leaves it to its writer, which many resets in one read do not let run
        buffer = self.stream_buffers.pop(stream_id, None)
        if buffer is not None:
            await buffer.close()
            self.priority.remove_stream(stream_id)

    async def _send_data(self, stream_id: int) -> None:
        """As the base class, but several frames with one write, and a stream that has no more is not asked again."""
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None:
            return
        connection, sent = self.connection, 0
        try:
            while sent < _TURN_BYTES:
                room = min(connection.local_flow_control_window(stream_id), connection.max_outbound_frame_size)
                data = await buffer.pop(max(room, 0))
                if not data:
                    break
                connection.send_data(stream_id, data)
                sent += len(data)
            if buffer.complete:
                connection.end_stream(stream_id)
                await self._forget_answer(stream_id)
            elif sent < _TURN_BYTES or not buffer.buffer:
                self.priority.block(stream_id)
        except ProtocolError:
            # reset meanwhile
            await self._forget_answer(stream_id)
        await self._flush()

    async def _close_stream(self, stream_id: int) -> None:
        self._queues.pop(stream_id, None)
        self._heads_bytes -= self._heads.pop(stream_id, 0)
        stream = self.streams.get(stream_id)
        await super()._close_stream(stream_id)
        if isinstance(stream, LaneWebSocket) and not self.closed:
            await self._end_websocket(stream)
        self._release(stream_id, self._window.held(stream_id))
        size = self._untold.get(stream_id, 0)
        self._forget_body(stream_id)
        # what is on its way of a body that nobody waits for any more must not stop: its client may have no window left
        if size and self._open(size, stream_id) and not self.closed:
            await self._flush()

    async def _end_websocket(self, stream: LaneWebSocket) -> None:
        # its client waits for the stream's end as for that of a connection (RFC 8441, 5)
        buffer = self.stream_buffers.get(stream.stream_id)
        if buffer is None:
            return
        if stream.is_unanswered:
            await self.break_off(stream.stream_id, ErrorCodes.CANCEL)
            return
        buffer.set_complete()
        self.priority.unblock(stream.stream_id)
        await self.has_data.set()
