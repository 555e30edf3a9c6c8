"""A caller's end of the coalescing link: what is sent during one turn of the loop goes out as one message.

The socket's descriptor is edge-triggered, so it is looked for messages after every event and after every send.
"""

import asyncio
import logging
import socket as unix_socket
from collections.abc import Callable
from typing import Any

import zmq

from servd.exceptions import TransportError
from servd.wire.link import MAX_RECORDS
from servd.wire.packet_line import InOrder, PacketLine
from servd.wire.records import Outbox, unpack
from servd.wire.sockets import (
    EVENTS,
    NOBLOCK,
    POLLIN,
    SNDMORE,
    beat,
    fd_of,
    not_opened,
    open_socket,
    receive_frames,
    send_frames,
)

_LOST = int(
    zmq.Event.DISCONNECTED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
)

_LINE_IDLE_S = 10.0
"""After so long to twice as long without an envelope of either end the line is closed: it is a descriptor for each replica."""

logger = logging.getLogger(__name__)


class LinkWatch:
    """Hears when connections of callers end: one socket for all their monitors. Opened with the first of them.

    A monitor is ZeroMQ's own PAIR inside this process. A ROUTER may be at the other end of many.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._socket: zmq.Socket[bytes] | None = None
        self._links: dict[bytes, tuple[zmq.Socket[bytes], Callable[[], None]]] = {}
        self._count = 0
        self._is_scheduled = False

    def __repr__(self) -> str:
        return f"LinkWatch({len(self._links)} links)"

    def add(self, socket: "zmq.Socket[bytes]", on_lost: Callable[[], None]) -> bytes:
        """Call back once when a connection of the socket ended, or could not be made; gives the key for `remove`.

        Raises:
            TransportError: it cannot be watched; the host has no descriptor for it, say.
        """
        if self._socket is None:
            self._socket = open_socket(zmq.ROUTER)
            self.loop.add_reader(fd_of(self._socket), self._take)
        self._count += 1
        key = b"link%d" % self._count
        address = f"inproc://monitor-{id(self)}-{self._count}"
        try:
            socket.monitor(address, _LOST)
            self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, key)
            self._socket.connect(address)
        except zmq.ZMQError as error:
            raise not_opened(error) from error
        self._links[key] = (socket, on_lost)
        self._take_soon()
        return key

    def remove(self, key: bytes) -> None:
        """Forget a socket that is about to be closed. Calling it again does nothing."""
        if (link := self._links.pop(key, None)) is not None:
            link[0].disable_monitor()
        # the monitor's end is closed once this one has read all that it sent
        self._take_soon()

    def close(self) -> None:
        """Close. Links that are still there are watched no more."""
        # ZeroMQ's own thread waits for a reader of the next news, and nothing in this process is sent meanwhile
        for socket, _ in self._links.values():
            socket.disable_monitor()
        self._links.clear()
        if self._socket is not None:
            self.loop.remove_reader(fd_of(self._socket))
            self._socket.close(0)
            self._socket = None

    def _take_soon(self) -> None:
        # whatever is done with a socket may take the news of what has come
        if not self._is_scheduled:
            self._is_scheduled = True
            self.loop.call_soon(self._take)

    def _take(self) -> None:
        self._is_scheduled = False
        lost = set()
        while self._socket is not None and self._socket.getsockopt(EVENTS) & POLLIN:  # type: ignore[operator]
            # all that is asked for means the same
            lost.add(self._socket.recv_multipart(NOBLOCK)[0])
        for key in lost:
            if (link := self._links.get(key)) is not None:
                link[1]()


class CallerLink:
    """A caller's end: one DEALER to one replica, watched.

    Args:
        on_records: called with (records, frames) of each message; the records start at 1.
        on_lost: called once when the replica is gone or sends nonsense; nothing comes after it.
    """

    def __init__(
        self,
        watch: LinkWatch,
        address: str,
        on_records: Callable[[list[Any], list[Any]], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._watch = watch
        self._loop = loop = watch.loop
        self._address = address
        self._on_records = on_records
        self._on_lost = on_lost
        self._is_scheduled = False
        self._is_closed = self._has_sent = False
        self._connect: Callable[[], unix_socket.socket | None] | None = None
        self._line: PacketLine | None = None
        # the same, once something has come by it: the replica reads it
        self._heard: PacketLine | None = None
        self._said = 0
        self._line_timer: asyncio.TimerHandle | None = None
        self._in_order: InOrder[tuple[list[Any], list[Any]]] = InOrder()
        self.outbox = Outbox()
        self._socket = open_socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        beat(self._socket)
        try:
            self._key = watch.add(self._socket, self._ended)
        except TransportError:
            self._socket.close(0)
            raise
        loop.add_reader(fd_of(self._socket), self._drain)
        self._socket.connect(address)
        self._drain()

    def __repr__(self) -> str:
        return f"CallerLink({self._address}{', closed' if self._is_closed else ''})"

    def send(self, record: tuple[Any, ...]) -> None:
        """Send one record at the end of this turn."""
        records = self.outbox.records
        records.append(record)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)
        elif len(records) > MAX_RECORDS and not self._is_closed:
            self._send()

    @property
    def takes_descriptors(self) -> bool:
        """They can go with what is sent now."""
        return self._heard is not None and not self.outbox.frames

    @property
    def is_closed(self) -> bool:
        """Nothing is sent or received any more."""
        return self._is_closed

    def use_lines(self, connect: Callable[[], unix_socket.socket | None]) -> None:
        """Send small envelopes by lines of their own: one now, and again when there is something to send.

        Args:
            connect: gives a line to the replica; None = it takes none any more.
        """
        self._connect = connect
        self._open_line()

    def close(self) -> None:
        """Close at once; what was not sent is dropped. Calling it again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._close_line()
        # who was asked last still knows this link: clients' connections must not wait until nobody does
        self.outbox.given = None
        self._loop.remove_reader(fd_of(self._socket))
        self._watch.remove(self._key)
        self._socket.close(0)
        # who listens has this link: without a circle both go at once, not with a collection that may be hours away
        self._on_records = self._on_lost = _nobody_listens

    def _flush(self) -> None:
        self._is_scheduled = False
        if self._is_closed:
            return
        # nothing is left when the last record of the turn filled an envelope
        if len(self.outbox.records) > 1:
            self._send()
        if self._has_sent:
            self._has_sent = False
            self._drain()

    def _send(self) -> None:
        try:
            blob, frames = self.outbox.seal()
            given, self.outbox.given = self.outbox.given, None
            if self._heard is not None and not frames and self._heard.send(blob, given):
                return
            if self._connect is not None and self._line is None:
                self._open_line()
            self._has_sent = True
            if frames:
                self._socket.send(blob, NOBLOCK | SNDMORE)
                send_frames(self._socket, frames)
            else:
                self._socket.send(blob, NOBLOCK)
        except Exception as error:
            logger.exception("send_failed address=%s", self._address)
            self._lose(f"send failed: {error}")

    def _drain(self) -> None:
        socket = self._socket
        try:
            while not self._is_closed and socket.getsockopt(EVENTS) & POLLIN:  # type: ignore[operator]
                records = unpack(socket.recv(NOBLOCK))
                count, number = (records[0], None) if type(records[0]) is int else records[0][:2]
                self._take(number, records, receive_frames(socket, count) if count else [])
        except Exception as error:
            self._fail(error)

    def _take_packets(self, packets: list[bytes], _given: dict[int, list[int]]) -> None:
        if self._heard is None:
            self._heard = self._line
            self.outbox.is_numbered = True
        try:
            for packet in packets:
                records = unpack(packet)
                self._take(records[0][1], records, [])
        except Exception as error:
            self._fail(error)

    def _take(self, number: int | None, records: list[Any], frames: list[Any]) -> None:
        for envelope in self._in_order.take(number, (records, frames)):
            if not self._is_closed:
                self._on_records(*envelope)

    def _fail(self, error: Exception) -> None:
        logger.exception("receive_failed address=%s", self._address)
        self._lose(f"receive failed: {error}")

    def _open_line(self) -> None:
        """For what comes after something has come by it."""
        if self._is_closed or self._line is not None or self._connect is None:
            return
        line = self._connect()
        if line is None:
            self._connect = None
            return
        self._line = PacketLine(self._loop, line, self._take_packets, self._on_line_end)
        self._look_at_line_later()

    def _look_at_line_later(self) -> None:
        self._said = self._said_so_far()
        self._line_timer = self._loop.call_later(_LINE_IDLE_S, self._look_at_line)

    def _look_at_line(self) -> None:
        if self._line is None:
            return
        if self._said == self._said_so_far():
            self._line.end()
        else:
            self._look_at_line_later()

    def _said_so_far(self) -> int:
        # a stream may come for minutes to who says nothing meanwhile
        return self.outbox.sealed + self._in_order.taken

    def _on_line_end(self) -> None:
        if self._heard is None:
            # the replica does not take it: it has no descriptor to spare, say
            self._connect = None
        self._close_line()

    def _close_line(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = self._heard = None
        if self._line_timer is not None:
            self._line_timer.cancel()

    def _ended(self) -> None:
        # replies written before the death are all readable now
        while self._line is not None and self._line.read():
            pass
        self._drain()
        self._lose("its connection ended")

    def _lose(self, reason: str) -> None:
        if self._is_closed:
            return
        on_lost = self._on_lost
        self.close()
        on_lost(reason)


def _nobody_listens(*_: Any) -> None:
    pass
