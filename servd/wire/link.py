"""A replica's end of the coalescing ZeroMQ link: what is sent during one turn of the loop goes out as one message per peer.

The socket's descriptor is edge-triggered, so both ends look for messages after every event and after every send.
"""

import asyncio
import logging
import socket as unix_socket
from collections.abc import Callable
from functools import partial
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from servd.exceptions import TransportError
from servd.ground.clock import SystemClock
from servd.wire.packet_line import InOrder, PacketLine
from servd.wire.records import INVITED, Outbox, unpack
from servd.wire.sockets import EVENTS, NOBLOCK, POLLIN, SNDMORE, fd_of, open_watched, receive_frames, send_frames
from servd.wire.write_right import close_all, given_with

MAX_RECORDS = 32
HOLD_S = 0.001
"""So many records, or those of so long, leave before the end of a long turn: the peer works on them meanwhile. Smaller envelopes
cost more than they gain."""

_SECOND_PROBE_S = 0.05

_now = SystemClock().now

logger = logging.getLogger(__name__)


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
        self._is_closed = self._is_scheduled = self._is_draining = self._has_sent = False
        self.peers: dict[bytes, Peer] = {}
        self._dropped: set[bytes] = set()
        self._due: list[Peer] = []
        self._socket, self._monitor = open_watched(zmq.ROUTER, zmq.Event.DISCONNECTED)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.bind(address)
        loop.add_reader(fd_of(self._monitor), self._watch)
        loop.add_reader(fd_of(self._socket), self.drain)
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
        if self._has_sent:
            self._has_sent = False
            self.drain()

    def send_now(self, peer: "Peer", *, probes: bool = False) -> None:
        """Send what is in the peer's outbox, even if that is nothing. probes: and hear from ZeroMQ whether it is gone."""
        if self._is_closed:
            return
        socket = self._socket
        try:
            blob, frames = peer.outbox.seal()
            line = peer.line
            if line is not None and not frames and not probes and line.send(blob):
                return
            # news that come meanwhile are told to who looks
            self._has_sent = True
            socket.send(peer.identity, NOBLOCK | SNDMORE)
            if frames:
                socket.send(blob, NOBLOCK | SNDMORE)
                send_frames(socket, frames)
            else:
                socket.send(blob, NOBLOCK)
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
        for peer in self.peers.values():
            peer.close_line()
        self._loop.remove_reader(fd_of(self._monitor))
        self._loop.remove_reader(fd_of(self._socket))
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(int(linger_s * 1000))

    def drain(self) -> None:
        """Take in every message that is there."""
        socket = self._socket
        self._is_draining = True
        while not self._is_closed and socket.getsockopt(EVENTS) & POLLIN:  # type: ignore[operator]
            identity = socket.recv(NOBLOCK)
            peer = self.peers.get(identity)
            if peer is None:
                if not socket.getsockopt(zmq.RCVMORE):
                    # a frame too many of somebody's last message
                    continue
                peer = self.peers[identity] = self._make_peer(self, identity)
            try:
                records = unpack(socket.recv(NOBLOCK))
                count, number = (records[0], None) if type(records[0]) is int else records[0][:2]
                frames = receive_frames(socket, count) if count else []
                if identity not in self._dropped:
                    self._take(peer, number, records, frames)
            except Exception:
                logger.exception("peer_dropped peer=%s", peer)
                while socket.getsockopt(zmq.RCVMORE):
                    socket.recv(NOBLOCK)
                self.drop(peer)
        self._end_drain()

    def add_line(self, peer: "Peer", line: unix_socket.socket) -> None:
        """Send small envelopes to this peer by a line that it has opened, from now on, and take its own."""
        # it opens none while it has one, and what has come by that one is not all read
        if self._is_closed or peer.is_gone or peer.line is not None:
            line.close()
            return
        peer.line = PacketLine(self._loop, line, partial(self._take_packets, peer), peer.close_line, heeds_gone=False)
        if peer.has_invited:
            peer.line.take_descriptors()
        peer.outbox.is_numbered = True
        # whatever it is: the peer sends by it once something has come
        self.send_now(peer)
        if self._has_sent:
            # not now: this may be in the midst of an envelope
            self._loop.call_soon(self.flush)

    def _take_packets(self, peer: "Peer", packets: list[bytes], given: dict[int, list[int]]) -> None:
        self._is_draining = True
        try:
            for index, packet in enumerate(packets):
                records = unpack(packet)
                head = records[0]
                frames: Any = [] if len(head) == 2 else given_with(head[2], given.pop(index, []))
                self._take(peer, head[1], records, frames)
        except Exception:
            logger.exception("peer_dropped peer=%s", peer)
            self.drop(peer)
        for descriptors in given.values():
            # of who has said nothing of them
            close_all(descriptors)
        self._end_drain()

    def _take(self, peer: "Peer", number: int | None, records: list[Any], frames: list[Any]) -> None:
        for envelope in peer.in_order.take(number, (records, frames)):
            self._on_records(peer, *envelope)

    def _end_drain(self) -> None:
        self._is_draining = False
        # only now: tasks begun for these messages take their first step before the flush, and their answers are in it
        if self._due and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self.flush)

    def _watch(self) -> None:
        is_lost = False
        while not self._is_closed and self._monitor.getsockopt(EVENTS) & POLLIN:  # type: ignore[operator]
            recv_monitor_message(self._monitor, NOBLOCK)
            is_lost = True
        if is_lost:
            # the news does not say who: ask all; the news may come before the socket knows, so ask twice
            self._probe()
            self._loop.call_later(_SECOND_PROBE_S, self._probe)

    def _probe(self) -> None:
        for peer in list(self.peers.values()):
            self.send_now(peer, probes=True)
        # sending takes the news of what has come as well: nobody else would look
        self.drain()

    def _forget(self, peer: "Peer") -> None:
        if peer.is_gone:
            return
        peer.is_gone = True
        peer.close_line()
        peer.in_order.forget()
        self.peers.pop(peer.identity, None)
        self._on_gone(peer)


class Peer:
    """One caller as a replica sees it. line: by which small envelopes go, if there is one; in_order: brings them into line."""

    __slots__ = ("has_invited", "hold_until", "identity", "in_order", "is_due", "is_gone", "line", "link", "outbox")

    def __init__(self, link: ReplicaLink, identity: bytes) -> None:
        self.link = link
        self.identity = identity
        self.outbox = Outbox()
        self.in_order: InOrder[tuple[list[Any], list[Any]]] = InOrder()
        self.line: PacketLine | None = None
        self.hold_until = 0.0
        self.is_due = False
        self.is_gone = self.has_invited = False

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

    def send_with_next(self, record: tuple[Any, ...]) -> None:
        """Send one record in the envelope of the one that is sent next, at once."""
        self.outbox.records.append(record)

    def invite(self) -> None:
        """Clients' connections may come with requests."""
        if not self.has_invited:
            self.has_invited = True
            if self.line is not None:
                self.line.take_descriptors()
            self.send((INVITED, 0))

    def close_line(self) -> None:
        """All goes over ZeroMQ from now on."""
        if self.line is not None:
            self.line.close()
            self.line = None

    def before_send(self) -> None:
        """Last chance to add records to the envelope."""
