"""The control endpoint: lines of proxies, replicas and callers, and the routing that each of them has."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from servd.exceptions import ProtocolError
from servd.ground.edition import difference, edition_of
from servd.wire.codec import RecordReader, record
from servd.wire.credentials import peer_credentials
from servd.wire.messages import (
    CALLER,
    PROXY,
    REPLICA,
    CallerReport,
    DeploymentTargets,
    Hello,
    Refused,
    Routing,
    Subscribe,
)

_NO_ROUTING = Routing(0)
_LAST_WORDS_S = 1.0

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Who wants to know. All methods are called on the loop."""

    def greeted(self, hello: Hello, pid: int) -> bool:
        """A process said who it is; pid is the kernel's word. False refuses it."""
        ...

    def received(self, role: str, peer_id: str, message: Any) -> None:
        """A report of a greeted process, routing matters excepted."""
        ...

    def queued(self, caller: str, deployment: str, waiting: int) -> None:
        """Requests that wait at a caller for a deployment (full name) are now `waiting`."""
        ...


class ControlServer:
    """Knows every peer that is connected, and which routing generation it has acknowledged.

    Args:
        first_generation: larger than any that an earlier controller has given out.
    """

    def __init__(self, listener: Listener, first_generation: int) -> None:
        self._listener = listener
        self._generation = first_generation
        self._routing: Routing | None = None
        self._parts: dict[tuple[bool, tuple[str, ...]], _Part] = {}
        self._peers: dict[tuple[str, str], _Peer] = {}
        self._waits: list[_Wait] = []
        self._server: asyncio.Server | None = None
        self._last_words: dict[tuple[str, str], list[Callable[[], object]]] = {}
        self._markers: dict[Any, Callable[[], object]] = {}
        self._path = ""

    def __repr__(self) -> str:
        return f"ControlServer(generation {self._generation}, peers {sorted(self._peers)})"

    async def open(self, bound: socket.socket) -> None:
        """Accept lines on this socket from now on, instead of one before it; lines that are there stay."""
        before = self._server
        self._path = bound.getsockname()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Peer(self), sock=bound, backlog=1024)
        if before is not None:
            before.close()

    def close(self) -> None:
        """Stop listening and drop all lines."""
        if self._server is not None:
            self._server.close()
        for peer in list(self._peers.values()):
            peer.drop()

    def is_connected(self, role: str, peer_id: str) -> bool:
        """Whether that process has a line."""
        return (role, peer_id) in self._peers

    def hellos(self) -> list[Hello]:
        """The greetings of all connected processes."""
        return [peer.hello for peer in self._peers.values() if peer.hello is not None]

    def send(self, role: str, peer_id: str, message: Any) -> bool:
        """Send to one process; False when it has no line now."""
        peer = self._peers.get((role, peer_id))
        if peer is None:
            return False
        peer.send(message)
        return True

    def publish(self, routing: Routing) -> None:
        """Give the next generation to all whose part of it changed. `routing.targets` holds every deployment."""
        self._generation += 1
        self._routing = routing
        before, self._parts = self._parts, {}
        for key in {(peer.is_proxy, peer.subscribed) for peer in self._peers.values()}:
            part, known = _part(routing, *key), before.get(key)
            self._parts[key] = known if known is not None and known.routing == part else _Part(part)
        for peer in self._peers.values():
            self._route(peer)

    def after_acknowledged(self, wait_s: float, callback: Callable[[], object]) -> None:
        """Call back once every caller has what was published so far, or after `wait_s`; at once if all have."""
        behind = {peer: peer.sent_generation for peer in self._peers.values() if peer.is_behind}
        if not behind:
            callback()
            return
        wait = _Wait(behind, callback)
        self._waits.append(wait)
        wait.timer = asyncio.get_running_loop().call_later(wait_s, self._end, wait)

    def after_heard_out(self, role: str, peer_id: str, callback: Callable[[], object]) -> None:
        """Call back once all that a dead process had written is read: the news of its death must not overtake its last words.

        However busy this loop is: its line may still wait to be accepted, and its last words to be read.
        """
        key = (role, peer_id)
        self._after_all_read(lambda: self._await_end(key, callback))

    def _await_end(self, key: tuple[str, str], callback: Callable[[], object]) -> None:
        if key not in self._peers:
            callback()
            return
        self._last_words.setdefault(key, []).append(callback)
        # somebody who inherited the line may hold it open
        loop = asyncio.get_running_loop()
        loop.call_later(_LAST_WORDS_S, self._after_all_read, lambda: self._heard_out(key))

    def _after_all_read(self, callback: Callable[[], object]) -> None:
        """Call back once this loop has accepted the lines, and read what was written, up to this moment.

        A line of its own comes last in the queue of those that wait to be accepted, and is read last.
        """
        name = None
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as marker:
                marker.setblocking(False)
                # a name of its own, by which it is known at the other end
                marker.bind("")
                name = marker.getsockname()
                marker.connect(self._path)
                self._markers[name] = callback
                marker.send(b"!")
        except OSError:
            # its path is gone, too many knock, or there is no descriptor for it: time has to do
            self._markers.pop(name, None)
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, callback)

    def _marker_read(self, name: Any) -> None:
        callback = self._markers.pop(name)
        # what could be read together with it is read before the next turn
        asyncio.get_running_loop().call_soon(callback)

    def _heard_out(self, key: tuple[str, str]) -> None:
        for callback in self._last_words.pop(key, ()):
            callback()

    def _received(self, peer: "_Peer", message: Any) -> None:
        if isinstance(message, Hello):
            self._greet(peer, message)
        elif peer.hello is None:
            raise ProtocolError(f"{type(message).__name__} before Hello")
        elif isinstance(message, Subscribe):
            peer.subscribed = tuple(message.deployments)
            self._route(peer)
        elif isinstance(message, CallerReport):
            self._reported(peer, message)
        else:
            self._listener.received(peer.hello.role, peer.hello.id, message)

    def _greet(self, peer: "_Peer", hello: Hello) -> None:
        if hello.role not in (PROXY, REPLICA, CALLER):
            raise ProtocolError(f"unknown role {hello.role!r}")
        if reason := difference(edition_of(hello.edition)):
            peer.send(Refused(reason))
            peer.drop(at_once=False)
            raise ProtocolError(reason)
        key = (hello.role, hello.id)
        old = self._peers.get(key)
        peer.hello = hello
        if not self._listener.greeted(hello, peer.pid):
            peer.hello = None
            peer.drop()
            return
        if old is not None and old is not peer:
            old.drop()
            self._lost(old)
        self._peers[key] = peer
        self._route(peer)

    def _lost(self, peer: "_Peer") -> None:
        if peer.hello is None or self._peers.get((peer.hello.role, peer.hello.id)) is not peer:
            return
        del self._peers[(peer.hello.role, peer.hello.id)]
        self._heard_out((peer.hello.role, peer.hello.id))
        for deployment in peer.queued:
            self._listener.queued(peer.name, deployment, 0)
        self._settle_waits(peer)

    def _route(self, peer: "_Peer") -> None:
        if self._routing is None:
            return
        key = (peer.is_proxy, peer.subscribed)
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = _Part(_part(self._routing, *key))
        if part is peer.part or (peer.part is not None and part.routing == peer.part.routing):
            return
        if part.routing == _NO_ROUTING and peer.part is None and not peer.is_proxy:
            # a replica without handles: nothing to tell, nothing to wait for. A proxy opens with its first routing.
            return
        peer.part = part
        peer.sent_generation = self._generation
        peer.write(part.record(self._generation))

    def _reported(self, peer: "_Peer", report: CallerReport) -> None:
        peer.acknowledged = max(peer.acknowledged, report.generation)
        for deployment in peer.queued.keys() - report.queued.keys():
            self._listener.queued(peer.name, deployment, 0)
        for deployment, waiting in report.queued.items():
            if peer.queued.get(deployment) != waiting:
                self._listener.queued(peer.name, deployment, waiting)
        peer.queued = dict(report.queued)
        self._settle_waits(peer)

    def _settle_waits(self, peer: "_Peer") -> None:
        for wait in self._waits[:]:
            wanted = wait.behind.get(peer)
            if wanted is not None and (peer.is_gone or peer.acknowledged >= wanted):
                del wait.behind[peer]
                if not wait.behind:
                    self._end(wait)

    def _end(self, wait: "_Wait") -> None:
        if wait in self._waits:
            self._waits.remove(wait)
            if wait.timer is not None:
                wait.timer.cancel()
            wait.callback()


class _Part:
    """What callers with the same subscriptions are told, as a routing of generation 0. Many have the same."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self._generation = 0
        self._record = b""

    def record(self, generation: int) -> bytes:
        """One record of it, as of this generation; worded once."""
        if generation != self._generation:
            self._generation = generation
            self._record = record(replace(self.routing, generation=generation))
        return self._record


class _Wait:
    def __init__(self, behind: "dict[_Peer, int]", callback: Callable[[], object]) -> None:
        self.behind = behind
        self.callback = callback
        self.timer: asyncio.TimerHandle | None = None


class _Peer(asyncio.Protocol):
    """One line. part: what it was last told."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._records = RecordReader()
        self._transport: asyncio.Transport | None = None
        self.hello: Hello | None = None
        self.pid = 0
        self._marker: Any = None
        self.is_gone = False
        self.subscribed: tuple[str, ...] = ()
        self.queued: dict[str, int] = {}
        self.part: _Part | None = None
        self.sent_generation = 0
        self.acknowledged = 0

    @property
    def name(self) -> str:
        """Identity among callers."""
        return f"{self.hello.role}:{self.hello.id}" if self.hello else f"pid:{self.pid}"

    @property
    def is_proxy(self) -> bool:
        """It serves the data plane: all routes concern it."""
        return self.hello is not None and self.hello.role == PROXY

    @property
    def is_behind(self) -> bool:
        """It was told a routing that it has not acknowledged."""
        return self.acknowledged < self.sent_generation

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        line = transport.get_extra_info("socket")
        self.pid, uid = peer_credentials(line)
        name = line.getpeername()
        self._marker = name if name in self._server._markers else None
        if uid not in (os.getuid(), 0):
            logger.warning("control_line_refused pid=%d uid=%d", self.pid, uid)
            self.drop()

    def data_received(self, data: bytes) -> None:
        if self._marker is not None:
            self._server._marker_read(self._marker)
            self.drop()
            return
        try:
            for message in self._records.feed(data):
                if self.is_gone:
                    return
                self._server._received(self, message)
        except ProtocolError as error:
            logger.warning("control_line_dropped peer=%s reason=%s", self.name, error)
            if not self.is_gone:
                self.drop()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.is_gone = True
        self._server._lost(self)

    def send(self, message: Any) -> None:
        """Write one record."""
        self.write(record(message))

    def write(self, data: bytes) -> None:
        """Write whole records."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def drop(self, *, at_once: bool = True) -> None:
        """Close the line; not at once: when what was sent has left."""
        self.is_gone = True
        if self._transport is not None:
            if at_once:
                self._transport.abort()
            else:
                self._transport.close()


def _part(routing: Routing, is_proxy: bool, subscribed: tuple[str, ...]) -> Routing:
    """What concerns a peer: proxies get the routes and their ingress deployments, all get what they subscribed to.

    Calls to a deployment that a build may still bring shall wait.
    """
    routes, grpc = (routing.routes, routing.grpc) if is_proxy else ((), ())
    wanted = {*subscribed, *(route.deployment for route in routes), *(route.deployment for route in grpc)}
    found = tuple(target for target in routing.targets if target.deployment in wanted)
    missing = sorted(wanted - {target.deployment for target in found})
    prefixes = tuple(f"{app}_" if app else "" for app in routing.building)
    others = (DeploymentTargets(name, exists=name.startswith(prefixes)) for name in missing)
    return Routing(0, routes, (*found, *others), grpc=grpc)
