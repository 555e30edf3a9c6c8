"""Hypercorn's WebSocket with cures: messages with a bound that holds, pings that want an answer."""

from collections.abc import Callable
from typing import Any

from hypercorn.protocol.events import Body, Data, Event
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WebsocketBuffer, WSStream
from wsproto.events import CloseConnection, Ping
from wsproto.frame_protocol import CloseReason

from servd.proxy.app_queue import AppQueue
from servd.proxy.heartbeat import Heartbeat


class MessageBuffer(WebsocketBuffer):
    """Puts a message together. The base class goes on to collect what is too large.

    Args:
        on_overflow: called once, when a message is larger than that.
    """

    def __init__(self, max_length: int, on_overflow: Callable[[], None]) -> None:
        super().__init__(max_length)
        self._on_overflow = on_overflow
        self._is_over = False

    def extend(self, event: Any) -> None:
        if self.length + len(event.data) > self.max_length and not self._is_over:
            self._is_over = True
            self.clear()
            self._on_overflow()
        if self._is_over:
            raise FrameTooLargeError
        super().extend(event)


class LaneWebSocket(WSStream):
    """A WebSocket whose client is asked for signs of life."""

    _queue: AppQueue
    _heartbeat: Heartbeat
    _find_unsent: Callable[[], int]
    _end_soon: Callable[[], None]
    _unsent_bytes: int

    @classmethod
    def take_over(
        cls,
        stream: WSStream,
        queue: AppQueue,
        heartbeat: Heartbeat,
        *,
        unsent_bytes: Callable[[], int],
        end_soon: Callable[[], None],
    ) -> "LaneWebSocket":
        """Make it of what Hypercorn, which knows its own class only, has just begun.

        Args:
            queue: where its messages go.
            unsent_bytes: what waits for the client to take it.
            end_soon: called once, when the client is told why it ends.
        """
        stream.__class__ = cls
        assert isinstance(stream, cls)
        stream.buffer = MessageBuffer(stream.config.websocket_max_message_size, end_soon)
        stream._queue, stream._heartbeat = queue, heartbeat
        stream._find_unsent, stream._end_soon = unsent_bytes, end_soon
        stream._unsent_bytes = 0
        return stream

    async def handle(self, event: Event) -> None:
        """As the base class; whatever comes is a sign of life."""
        if isinstance(event, (Body, Data)):
            self._heartbeat.hear()
        await super().handle(event)

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
            goodbye = CloseConnection(CloseReason.INTERNAL_ERROR, "keepalive ping timeout")
            self.task_group.spawn(self._send_wsproto_event, goodbye)
            self._end_soon()
