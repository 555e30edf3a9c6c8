"""Hypercorn's WebSocket with cures: messages with a bound that holds, pings that want an answer."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from hypercorn.protocol.events import Body, Data, Event, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WebsocketBuffer, WSStream
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from servd.proxy.app_queue import AppQueue
from servd.wire.websocket.heartbeat import Heartbeat

_PART_BYTES = 32 * 1024
"""From this size on the begin of a message is sent on, where the replica puts it together."""
_FAREWELL_S = 2.0
"""So long a client has to answer a farewell."""
_PACKED_BYTES = 256
"""So much is unpacked at a time where the client may pack: it becomes a thousand times as much at most."""


class MessageBuffer(WebsocketBuffer):
    """Puts a message together. The base class goes on to collect what is too large."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length)
        self._told = 0

    @property
    def is_part(self) -> bool:
        """What it holds is worth sending on."""
        return self.length - self._told >= _PART_BYTES

    def take_part(self) -> dict[str, Any]:
        """What it holds, as a message that goes on."""
        part = {**self.to_message(), "more": True}
        self.value = None
        self._told = self.length
        return part

    def clear(self) -> None:
        super().clear()
        self._told = 0

    def to_message(self) -> dict[str, Any]:
        """As the base class, which names the kind that it is not, too: a handler that asks for text would get None."""
        return {key: value for key, value in super().to_message().items() if value is not None}

    def extend(self, event: Any) -> None:
        if self.length + len(event.data) > self.max_length:
            self.clear()
            raise FrameTooLargeError
        super().extend(event)


class Unpacking(PerMessageDeflate):
    """Compressed messages, with a cure: the library forgets at a ping that the message around it is one."""

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        if opcode.iscontrol() and not rsv.rsv1:
            self._inbound_is_compressible = False
            return RsvBits(True, False, False)
        return super().frame_inbound_header(proto, opcode, rsv, payload_length)

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:
        return super().frame_inbound_complete(proto, fin) if self._inbound_is_compressible else None


class LaneWebSocket(WSStream):
    """A WebSocket whose client is asked for signs of life, and whose handler hears with which code it ended."""

    buffer: MessageBuffer
    _queue: AppQueue
    _heartbeat: Heartbeat
    _find_unsent: Callable[[], int]
    _end_soon: Callable[[], None]
    _unsent_bytes: int
    _on_handled: Callable[[int, int], Awaitable[None]]
    _farewell: tuple[int, str] | None
    _raw: deque[bytes | None]
    _is_pumped: bool
    _over: asyncio.Event

    @classmethod
    def take_over(
        cls,
        stream: WSStream,
        queue: AppQueue,
        heartbeat: Heartbeat,
        *,
        unsent_bytes: Callable[[], int],
        end_soon: Callable[[], None],
        on_handled: Callable[[int, int], Awaitable[None]],
    ) -> "LaneWebSocket":
        """Make it of what Hypercorn, which knows its own class only, has just begun.

        Args:
            queue: where its messages go.
            unsent_bytes: what waits for the client to take it.
            end_soon: called once, when the client is told why it ends.
            on_handled: awaited with its stream and the size of what was fed, once somebody has taken what it held.
        """
        stream.__class__ = cls
        assert isinstance(stream, cls)
        stream.buffer = MessageBuffer(stream.config.websocket_max_message_size)
        stream._queue, stream._heartbeat = queue, heartbeat
        stream._find_unsent, stream._end_soon = unsent_bytes, end_soon
        stream._unsent_bytes = 0
        stream._farewell = None
        stream._on_handled = on_handled
        stream._raw, stream._is_pumped = deque(), False
        stream._over = asyncio.Event()
        return stream

    def feed(self, data: bytes) -> None:
        """What the client sent, where others of its connection must not wait until it is taken."""
        self._take(data)

    def _take(self, data: bytes | None) -> None:
        self._raw.append(data)
        if not self._is_pumped:
            self._is_pumped = True
            self.task_group.spawn(self._pump)

    @property
    def is_heard(self) -> bool:
        """Nothing of what was fed is left."""
        return not self._raw and not self._is_pumped

    @property
    def is_unanswered(self) -> bool:
        """Its handshake has no answer."""
        return self.state is ASGIWebsocketState.HANDSHAKE

    def end(self) -> None:
        """The client says no more than what was fed, with a farewell or without."""
        self._take(None)

    async def _pump(self) -> None:
        try:
            while self._raw and not self.closed:
                data = self._raw.popleft()
                if data is None:
                    await self.send(StreamClosed(stream_id=self.stream_id))
                    return
                await self.handle(Body(stream_id=self.stream_id, data=data))
                await self._on_handled(self.stream_id, len(data))
        finally:
            self._is_pumped = False

    async def handle(self, event: Event) -> None:
        """As the base class; whatever comes is a sign of life."""
        if isinstance(event, (Body, Data)):
            if self._farewell is not None:
                # it was told why it ends
                return
            if self.is_unanswered:
                await self._send_error_response(400)
                self.state = ASGIWebsocketState.HTTPCLOSED
                await self.send(StreamClosed(stream_id=self.stream_id))
                return
            self._heartbeat.hear()
            if self.handshake.extensions and len(event.data) > _PACKED_BYTES:
                for start in range(0, len(event.data), _PACKED_BYTES):
                    piece = event.data[start : start + _PACKED_BYTES]
                    await super().handle(Body(stream_id=event.stream_id, data=piece))
                return
        elif isinstance(event, StreamClosed):
            self._over.set()
        if isinstance(event, StreamClosed) and self._farewell is not None and not self.closed:
            self.closed = True
            code, reason = self._farewell
            assert self.app_put is not None
            await self.app_put({"type": "websocket.disconnect", "code": code, "reason": reason})
            return
        await super().handle(event)

    async def _handle_events(self) -> None:
        # small messages cost many times their bytes: one after the other, and none for a client that has gone
        for event in self.connection.events():
            if self.closed:
                return
            if isinstance(event, Message):
                if self.state is ASGIWebsocketState.CLOSED:
                    # its handler has said farewell
                    continue
                try:
                    self.buffer.extend(event)
                except FrameTooLargeError:
                    reason = f"a message has more than {self.buffer.max_length} bytes"
                    await self._tell_off(CloseReason.MESSAGE_TOO_BIG, reason)
                    return
                assert self.app_put is not None
                if event.message_finished:
                    message = self.buffer.to_message()
                    self.buffer.clear()
                    await self.app_put(message)
                elif self._queue.takes_parts and self.buffer.is_part:
                    await self.app_put(self.buffer.take_part())
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                if self.connection.state is ConnectionState.OPEN:
                    # what the client sent is against the rules
                    await self._tell_off(event.code, event.reason or "")
                    return
                self._farewell = self._farewell or (int(event.code), event.reason or "")
                if self.connection.state is ConnectionState.REMOTE_CLOSING:
                    await self._send_wsproto_event(event.response())
                await self.send(StreamClosed(stream_id=self.stream_id))

    async def _accept(self, message: Any) -> None:
        await super()._accept(message)
        for extension in self.connection._proto.extensions:
            if isinstance(extension, PerMessageDeflate):
                extension.__class__ = Unpacking

    async def app_send(self, message: Any) -> None:
        """As the base class, but who is told farewell may answer (RFC 6455, 7.1.1): who writes to a connection that is closed may
        never read why. Over HTTP/2 nothing is lost when a stream ends.
        """
        if message is None and self.state is ASGIWebsocketState.CLOSED and self.scope["http_version"] != "2":
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._over.wait()
        await super().app_send(message)

    async def _tell_off(self, code: int, reason: str) -> None:
        """Tell the client why it ends, which the handler hears once it has ended."""
        self._farewell = self._farewell or (int(code), reason)
        # first: the client may take nothing
        self._end_soon()
        await self._send_wsproto_event(CloseConnection(code, reason))

    def turn(self) -> None:
        """Once a second: ask the client, or end the WebSocket of one that does not answer."""
        if self.closed or self.state not in (ASGIWebsocketState.CONNECTED, ASGIWebsocketState.CLOSED):
            return
        before, self._unsent_bytes = self._unsent_bytes, self._find_unsent()
        is_taking = self._unsent_bytes != before
        beat = self._heartbeat.turn(is_excused=is_taking or not self._queue.has_room)
        if beat == "ping":
            self.task_group.spawn(self._send_wsproto_event, Ping())
        elif beat == "gone":
            self.task_group.spawn(self._tell_off, CloseReason.INTERNAL_ERROR, "keepalive ping timeout")
