"""The coalescing ZeroMQ link: what is sent during one turn of the loop goes out as one message per peer.

The socket's descriptor is edge-triggered, so both ends look for messages after every event and after every send.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from servd.exceptions import ProtocolError, TransportError
from servd.ground.clock import SystemClock
from servd.ground.host_limits import told
from servd.wire.records import Outbox, unpack

MAX_SOCKETS = 16384
MAX_RECORDS = 32
HOLD_S = 0.001
"""So many records, or those of so long, leave before the end of a long turn: the peer works on them meanwhile. Smaller envelopes
cost more than they gain."""

ZERO_COPY_BYTES = 1024 * 1024
"""From this size on a frame that cannot change is sent without a copy; below, copying is as fast."""

_EVENTS = zmq.EVENTS
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.SNDMORE)
_HEARTBEAT_MS = 2_000
_HEARTBEAT_TIMEOUT_MS = 6_000
_LOST = int(
    zmq.Event.DISCONNECTED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
)
_SECOND_PROBE_S = 0.05

_now = SystemClock().now

logger = logging.getLogger(__name__)

_context: zmq.Context[zmq.Socket[bytes]] | None = None


def _process_context() -> "zmq.Context[zmq.Socket[bytes]]":
    global _context
    if _context is None:
        _context = zmq.Context(1)
        _context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        _context.set(zmq.BLOCKY, 0)
    return _context


def finish() -> None:
    """End ZeroMQ in this process, which is about to end too: waits until closed links have sent what they may."""
    global _context
    if _context is not None:
        _context.destroy(linger=0)
        _context = None


def _open_socket(kind: int, events: int) -> "tuple[zmq.Socket[bytes], zmq.Socket[bytes]]":
    socket = None
    try:
        socket = _process_context().socket(kind)
        monitor = socket.get_monitor_socket(events)
    except zmq.ZMQError as error:
        if socket is not None:
            socket.close(0)
        raise TransportError(f"cannot open a socket: {told(error)}") from error
    socket.set_hwm(0)
    socket.setsockopt(zmq.LINGER, 0)
    # tells a frozen peer from a busy one: ZeroMQ's own thread answers while Python is stuck
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
    return socket, monitor


def _fd(socket: "zmq.Socket[bytes]") -> int:
    return int(socket.getsockopt(zmq.FD))


def _receive_frames(socket: "zmq.Socket[bytes]", count: int) -> list[Any]:
    frames: list[Any] = []
    for _ in range(count):
        # what follows the last frame is the next message, maybe somebody else's
        if not socket.getsockopt(zmq.RCVMORE):
            raise ProtocolError(f"{count} frames told, {len(frames)} came")
        frame = socket.recv(_NOBLOCK, copy=False)
        # as it came, without a copy, and no more writable than a copy would be
        frames.append(frame.buffer.toreadonly() if len(frame) >= ZERO_COPY_BYTES else frame.bytes)
    return frames


def _send_frames(socket: "zmq.Socket[bytes]", frames: list[Any]) -> None:
    last = len(frames) - 1
    for index, frame in enumerate(frames):
        # ZeroMQ's thread sends it later, so it must not change until then
        is_fixed = type(frame) is bytes or (type(frame) is memoryview and frame.readonly)
        copy = not is_fixed or len(frame) < ZERO_COPY_BYTES
        socket.send(frame, _NOBLOCK | (_SNDMORE if index < last else 0), copy=copy)


class CallerLink:
    """A caller's end: one DEALER to one replica, watched.

    Args:
        on_records: called with (records, frames) of each message; records[0] is the number of frames.
        on_lost: called once when the replica is gone or sends nonsense; nothing comes after it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: str,
        on_records: Callable[[list[Any], list[Any]], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._address = address
        self._on_records = on_records
        self._on_lost = on_lost
        self._is_scheduled = False
        self._is_closed = False
        self.outbox = Outbox()
        self._socket, self._monitor = _open_socket(zmq.DEALER, _LOST)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        loop.add_reader(_fd(self._monitor), self._watch)
        loop.add_reader(_fd(self._socket), self._drain)
        self._socket.connect(address)
        self._watch()
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
    def is_closed(self) -> bool:
        """Nothing is sent or received any more."""
        return self._is_closed

    def close(self) -> None:
        """Close at once; what was not sent is dropped. Calling it again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(_fd(self._monitor))
        self._loop.remove_reader(_fd(self._socket))
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)

    def _flush(self) -> None:
        self._is_scheduled = False
        if self._is_closed:
            return
        # nothing is left when the last record of the turn filled an envelope
        if len(self.outbox.records) > 1:
            self._send()
        self._drain()

    def _send(self) -> None:
        try:
            blob, frames = self.outbox.seal()
            if frames:
                self._socket.send(blob, _NOBLOCK | _SNDMORE)
                _send_frames(self._socket, frames)
            else:
                self._socket.send(blob, _NOBLOCK)
        except Exception as error:
            logger.exception("send_failed address=%s", self._address)
            self._lose(f"send failed: {error}")

    def _drain(self) -> None:
        socket = self._socket
        try:
            while not self._is_closed and socket.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]
                records = unpack(socket.recv(_NOBLOCK))
                frames = _receive_frames(socket, records[0]) if records[0] else []
                self._on_records(records, frames)
        except Exception as error:
            logger.exception("receive_failed address=%s", self._address)
            self._lose(f"receive failed: {error}")

    def _watch(self) -> None:
        lost = ""
        while not self._is_closed and self._monitor.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]
            event = recv_monitor_message(self._monitor, _NOBLOCK)
            if event["event"] & _LOST:
                lost = "its connection ended"
        if lost:
            # replies written before the death are all readable now
            self._drain()
            self._lose(lost)

    def _lose(self, reason: str) -> None:
        if self._is_closed:
            return
        self.close()
        self._on_lost(reason)


class ReplicaLink:
    """A replica's end: one ROUTER for all callers.

    Args:
        on_records: called with (peer, records, frames) of each message; an error it raises drops the peer.
        on_gone: called with a peer that is gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: str,
        on_records: "Callable[[Peer, list[Any], list[Any]], None]",
        on_gone: "Callable[[Peer], None]",
        make_peer: "Callable[[ReplicaLink, bytes], Peer] | None" = None,
    ) -> None:
        self._loop = loop
        self._on_records = on_records
        self._on_gone = on_gone
        self._make_peer = make_peer or Peer
        self._is_closed = self._is_scheduled = self._is_draining = False
        self.peers: dict[bytes, Peer] = {}
        self._dropped: set[bytes] = set()
        self._due: list[Peer] = []
        self._socket, self._monitor = _open_socket(zmq.ROUTER, zmq.Event.DISCONNECTED)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.bind(address)
        loop.add_reader(_fd(self._monitor), self._watch)
        loop.add_reader(_fd(self._socket), self.drain)
        # both tell of something new only to who has looked before and found nothing
        self._watch()
        self.drain()

    def bind(self, address: str) -> None:
        """Listen there, also anew where somebody removed it; peers stay. TransportError: it cannot be bound."""
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            raise TransportError(f"cannot bind {address}: {error}") from error

    def schedule(self, peer: "Peer") -> None:
        """Send what is in the peer's outbox at the end of this turn."""
        peer.is_due = True
        peer.hold_until = _now() + HOLD_S
        self._due.append(peer)
        if not self._is_scheduled and not self._is_draining:
            self._is_scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send everything that waits, now."""
        self._is_scheduled = False
        due = self._due
        self._due = []
        for peer in due:
            peer.is_due = False
            if self._is_closed or peer.is_gone:
                continue
            peer.before_send()
            # nothing is left when the last record of the turn filled an envelope
            if len(peer.outbox.records) > 1:
                self.send_now(peer)
        self.drain()

    def send_now(self, peer: "Peer") -> None:
        """Send what is in the peer's outbox, even if that is nothing."""
        if self._is_closed:
            return
        socket = self._socket
        try:
            blob, frames = peer.outbox.seal()
            socket.send(peer.identity, _NOBLOCK | _SNDMORE)
            if frames:
                socket.send(blob, _NOBLOCK | _SNDMORE)
                _send_frames(socket, frames)
            else:
                socket.send(blob, _NOBLOCK)
        except zmq.ZMQError:
            # the socket is mandatory: EHOSTUNREACH says that the caller is gone
            self._forget(peer)
        except Exception:
            logger.exception("send_failed peer=%s", peer)
            self.drop(peer)

    def drop(self, peer: "Peer") -> None:
        """Have nothing to do any more with a peer that sends nonsense."""
        self._dropped.add(peer.identity)
        self._forget(peer)

    def close(self, linger_s: float = 0.0) -> None:
        """Close. What was sent and has not left yet has `linger_s` for it, while the process lives (`finish()`).

        Calling it again does nothing.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(_fd(self._monitor))
        self._loop.remove_reader(_fd(self._socket))
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(int(linger_s * 1000))

    def drain(self) -> None:
        """Take in every message that is there."""
        socket = self._socket
        self._is_draining = True
        while not self._is_closed and socket.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]
            identity = socket.recv(_NOBLOCK)
            peer = self.peers.get(identity)
            if peer is None:
                if not socket.getsockopt(zmq.RCVMORE):
                    # a frame too many of somebody's last message
                    continue
                peer = self.peers[identity] = self._make_peer(self, identity)
            try:
                blob = socket.recv(_NOBLOCK)
                records = unpack(blob)
                frames = _receive_frames(socket, records[0]) if records[0] else []
                if identity not in self._dropped:
                    self._on_records(peer, records, frames)
            except Exception:
                logger.exception("peer_dropped peer=%s", peer)
                while socket.getsockopt(zmq.RCVMORE):
                    socket.recv(_NOBLOCK)
                self.drop(peer)
        self._is_draining = False
        # only now: tasks begun for these messages take their first step before the flush, and their answers are in it
        if self._due and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self.flush)

    def _watch(self) -> None:
        is_lost = False
        while not self._is_closed and self._monitor.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]
            recv_monitor_message(self._monitor, _NOBLOCK)
            is_lost = True
        if is_lost:
            # the news does not say who: ask all; the news may come before the socket knows, so ask twice
            self._probe()
            self._loop.call_later(_SECOND_PROBE_S, self._probe)

    def _probe(self) -> None:
        for peer in list(self.peers.values()):
            self.send_now(peer)
        # sending takes the news of what has come as well: nobody else would look
        self.drain()

    def _forget(self, peer: "Peer") -> None:
        if peer.is_gone:
            return
        peer.is_gone = True
        self.peers.pop(peer.identity, None)
        self._on_gone(peer)


class Peer:
    """One caller as a replica sees it."""

    __slots__ = ("hold_until", "identity", "is_due", "is_gone", "link", "outbox")

    def __init__(self, link: ReplicaLink, identity: bytes) -> None:
        self.link = link
        self.identity = identity
        self.outbox = Outbox()
        self.hold_until = 0.0
        self.is_due = False
        self.is_gone = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.hex()}{', gone' if self.is_gone else ''})"

    def send(self, record: tuple[Any, ...]) -> None:
        """Send one record at the end of this turn."""
        records = self.outbox.records
        records.append(record)
        if not self.is_due:
            self.link.schedule(self)
        elif (len(records) > MAX_RECORDS or _now() > self.hold_until) and not self.is_gone:
            self.link.send_now(self)
            self.hold_until = _now() + HOLD_S

    def before_send(self) -> None:
        """Last chance to add records to the envelope."""
