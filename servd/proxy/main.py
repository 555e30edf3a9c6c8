"""The proxy process: its listening socket, its line to the controller, its end."""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from servd.calls.caller import Caller
from servd.calls.replica_peer import Router
from servd.calls.routes.noted import NotedRoutes
from servd.daemon.data_tls import PASSPHRASES, passphrase_of
from servd.daemon.tls import Certificate
from servd.ground import event_loop, process
from servd.ground.edition import own_edition
from servd.ground.pidfd import start_ticks
from servd.ground.settings import control_socket
from servd.observability import logs, spans
from servd.observability.access_log import AccessLog, place_of
from servd.observability.head_traces import BEGINS
from servd.observability.journal import Journal
from servd.observability.measures import LoopLag, family, grpc_families, http_families
from servd.proxy.door import Door
from servd.proxy.forwarded_for import TrustedProxies
from servd.proxy.forwarder import Forwarder
from servd.proxy.http1 import HttpConnection
from servd.proxy.http1_answer import HttpAnswering
from servd.proxy.http1_websocket import WebSocketLane
from servd.proxy.late_lane import LateGrpc, LateLane
from servd.proxy.limits import Limits
from servd.proxy.listener import Listener
from servd.wire.allocator import FreedMemory, keep_freed_memory
from servd.wire.control_link import ControlLink
from servd.wire.messages import (
    CallerReport,
    Hello,
    LogConfig,
    MetricsReport,
    MetricsWish,
    ProxyGoal,
    ProxyReport,
    ProxyStart,
    Routing,
)

_TURN_S = 1.0
_QUEUE_REPORT_S = 0.25
_LOOK_S = 0.05
# for what is under way where it cannot go on
_FAILED_S = 2.0
_BACKLOG = 2048
_GC_THRESHOLD = 20_000
_MOVED_S = 18.0
"""How long clients of gRPC may take to move to other proxies: less than the controller waits."""

logger = logging.getLogger(__name__)


def run(start: ProxyStart, socks: list[socket.socket], lifetime: Connection) -> None:
    """Be a proxy until the controller or the daemon ends it.

    Args:
        socks: the listening sockets of all slots, in their order; the daemon keeps its own copies.
        lifetime: read end of the lifetime pipe.
    """
    process.begin(f"proxy {start.slot}", start.state_dir, lifetime.fileno(), *(sock.fileno() for sock in socks))
    file = logs.setup("http_proxy", start.host, start.log_dir, logs.proxy_file(start.host), is_serving=True)
    access = AccessLog(file, "http_proxy", start.host, place_of(HttpAnswering.on_response), logs.show_access())
    process.raise_file_limit()
    keep_freed_memory()
    event_loop.run(_live(start, socks, lifetime, access))
    logs.finish()


async def _live(start: ProxyStart, socks: list[socket.socket], lifetime: Connection, access: AccessLog) -> None:
    proxy = Proxy(start, socks, access)
    loop = asyncio.get_running_loop()
    process.watch_lifetime(loop, lifetime.fileno(), lambda: proxy.end_within(process.LIFETIME_DRAIN_S))
    loop.add_signal_handler(signal.SIGTERM, lambda: proxy.drain(process.LIFETIME_DRAIN_S, is_replaced=True))
    await proxy.run()


class Proxy:
    """One proxy: accepts once it has routes, drains when told to. access: where a line per request goes."""

    def __init__(self, start: ProxyStart, socks: list[socket.socket], access: AccessLog) -> None:
        self._start = start
        self._socks = socks
        self._loop = asyncio.get_running_loop()
        # now, and not at each greeting: there may be no descriptor to look it up with then
        self._ticks = start_ticks(os.getpid())
        self._routes = NotedRoutes(start.root_path)
        self._caller = Caller(
            self._loop,
            start.proxy_id,
            _nothing,
            self._on_applied,
            on_waiting=self._on_waiting,
            on_routes=self._routes.learn,
        )
        self._journal = Journal(self._loop, access, read=self._routes.read)
        self._journal.configure(logs.configure({}))
        self._lag = LoopLag(self._journal.now)
        self._freed = FreedMemory(process.resident_bytes)
        trusted = TrustedProxies(start.forwarded_allow_ips, believes_host=start.believes_forwarded_host)
        limits = replace(Limits.from_environment(), unused_s=start.keep_alive_timeout_s)
        recorder = spans.begin("proxy", start.proxy_id, {})
        self._forwarder = Forwarder(self._caller, start.root_path, limits, None, self._journal, trusted, recorder)
        self._connection = SamplingConnection if self._forwarder.traces.can_begin else HttpConnection
        self._lane = LateLane(self._forwarder)
        self._grpc = LateGrpc(start, self._forwarder)
        self._listener = Listener(self._forwarder, handed_over=lambda: self._lane.connections)
        self._listener.hand_over = WebSocketLane(self._listener, self._lane.hand_over).hand_over
        self._certificate = _certificate_of(start) if start.tls_cert else None
        self._doors: dict[int, Door] = {}
        self._pauses = 0
        self._others: tuple[int, ...] = ()
        self._generation = -1
        self._queued: dict[str, int] = {}
        self._end: float | None = None
        self._is_replaced = False
        self._ending: list[asyncio.Task[None]] = []
        self._is_told_to_drain = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._has_routes = False
        self._link = ControlLink(control_socket(start.socket_dir), self._hello, self._on_message, self._on_connect)

    def __repr__(self) -> str:
        return f"Proxy({self._start.proxy_id}, {self._listener}, {self._lane})"

    async def run(self) -> None:
        """Serve until drained."""
        tasks = [
            event_loop.lifelong(work, self._fail) for work in (self._link.run(), self._tick(), self._watch_queues())
        ]
        # what lives from here on lives for ever
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, 20, 20)
        await self._is_told_to_drain.wait()
        await self._finish()
        for task in tasks:
            task.cancel()
        self._caller.close()

    def _fail(self) -> None:
        # our bug: the controller starts another
        self.drain(_FAILED_S)

    def drain(self, limit_s: float, *, is_replaced: bool = False) -> None:
        """Accept nothing more, finish what is under way, end within `limit_s`.

        Args:
            is_replaced: others serve gRPC at its port: it ends once its clients have gone there, within `_MOVED_S`.
        """
        if self._end is None:
            self._end, self._is_replaced = self._loop.time() + limit_s, is_replaced
            self._is_told_to_drain.set()

    def end_within(self, limit_s: float) -> None:
        """Drain, since the daemon is gone; sooner than it was told before, and waiting for no client of gRPC to move."""
        self.drain(limit_s)
        assert self._end is not None
        self._end, self._is_replaced = min(self._end, self._loop.time() + limit_s), False
        if self._ending:
            self._end_grpc()

    def _end_grpc(self) -> None:
        assert self._end is not None
        grace_s = max(self._end - self._loop.time(), _MOVED_S if self._is_replaced else 0.0)
        self._ending.append(self._loop.create_task(self._grpc.close(grace_s, is_replaced=self._is_replaced)))

    async def _finish(self) -> None:
        assert self._end is not None
        logger.info("proxy_draining connections=%d limit_s=%.1f", self._connections, self._end - self._loop.time())
        if self._opening is not None:
            await self._opening
        for door in list(self._doors.values()):
            await door.close()
        for sock in self._socks:
            sock.close()
        self._listener.drain()
        self._lane.drain((self._end - self._loop.time()) / 2)
        self._report()
        self._end_grpc()
        # many small ends, none of them worth an event
        while self._connections and self._loop.time() < self._end:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        while self._ending:
            await self._ending[0]
            del self._ending[0]
        self._lane.close()
        self._journal.settle()
        await spans.end_beside()
        self._send_metrics(0)
        logger.info("proxy_drained connections=%d", self._connections)

    @property
    def _connections(self) -> int:
        return len(self._listener.connections) + self._lane.connections

    def _hello(self) -> Hello:
        return Hello("proxy", self._start.proxy_id, os.getpid(), self._ticks, self._start.token, own_edition().text)

    def _on_connect(self) -> None:
        self._report()
        if self._generation >= 0:
            self._link.send(CallerReport(self._generation, self._caller.queued()))

    def _on_message(self, message: Any) -> None:
        if isinstance(message, Routing):
            self._grpc.apply_routing(message.grpc)
            self._forwarder.apply_routing(message)
            self._routes.forget_all_but({targets.deployment for targets in message.targets})
            self._has_routes = True
            self._open_soon()
        elif isinstance(message, ProxyGoal):
            if message.drain:
                self.drain(message.drain_timeout_s, is_replaced=message.is_replaced)
            else:
                self._others = message.slots
                self._open_soon()
        elif isinstance(message, LogConfig):
            self._journal.configure(logs.configure(message.config))
        elif isinstance(message, MetricsWish):
            self._send_metrics(message.request_id)
        else:
            logger.warning("unexpected_message kind=%s", type(message).__name__)

    def _send_metrics(self, request_id: int) -> None:
        series = self._journal.series()
        found = [
            *http_families(series),
            *grpc_families(series),
            *self._caller.metrics(),
            family("serve_num_ongoing_http_requests", [((), self._listener.ongoing)]),
            family("serve_proxy_connections", [((), self._connections)]),
            family("serve_proxy_accept_pauses_total", [((), self._accept_pauses)]),
            self._lag.family(component="http_proxy", proxy=str(self._start.slot)),
        ]
        self._link.send(MetricsReport(request_id, tuple(found)))

    def _on_applied(self, generation: int) -> None:
        self._generation = generation
        self._link.send(CallerReport(generation, self._caller.queued()))

    def _on_waiting(self, router: Router) -> None:
        # what a replica frees in a moment is no news; what no replica is there for is
        if not router.candidates:
            self._report_queues()

    def _report_queues(self) -> None:
        self._queued = self._caller.queued()
        self._link.send(CallerReport(self._generation, self._queued))

    def _report(self) -> None:
        own = self._doors.get(self._start.slot)
        is_listening = own is not None and own.has_opened and self._end is None and not self._grpc.is_untried
        ongoing, trouble = self._listener.ongoing + self._grpc.ongoing, self._trouble or self._grpc.trouble
        self._link.send(ProxyReport(self._start.proxy_id, is_listening, self._connections, ongoing, trouble))

    @property
    def _trouble(self) -> str:
        """Why new clients wait, "" while they do not."""
        return next((door.trouble for door in self._doors.values() if door.trouble), "")

    @property
    def _accept_pauses(self) -> int:
        return self._pauses + sum(door.pauses for door in self._doors.values())

    @property
    def _slots(self) -> set[int]:
        """On which it is to accept: the own one and those that it stands in for."""
        return {self._start.slot, *self._others}

    def _open_soon(self) -> None:
        # before the first routing everything would be 404
        is_open = self._has_routes and self._end is None
        is_short = self._slots != self._doors.keys() or self._grpc.is_due
        if is_open and is_short and (self._opening is None or self._opening.done()):
            self._opening = self._loop.create_task(self._open())

    async def _open(self) -> None:
        await self._open_doors()
        if self._grpc.is_due and self._end is None:
            # only now: loading it takes a while, and may go wrong in any way
            await self._grpc.open()
            await self._open_doors()
        self._report()

    async def _open_doors(self) -> None:
        while (missing := self._slots - self._doors.keys()) and self._end is None:
            slot, sock = min(missing), self._socks[min(missing)]
            door = self._doors[slot] = Door(self._loop, sock, self._serve, lambda: self._connection(self._listener))
            await door.open()
            if door.has_opened:
                logger.info("proxy_listening host=%s port=%d slot=%d", self._start.host, self._start.port, slot)
        for slot in self._doors.keys() - self._slots:
            # the daemon and the next proxy of that slot have its socket as well: nobody who waits there is lost
            door = self._doors.pop(slot)
            await door.close()
            self._pauses += door.pauses
            logger.info("proxy_stands_in_no_more slot=%d", slot)

    async def _serve(self, sock: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> asyncio.Server:
        return await self._loop.create_server(
            make_protocol,
            sock=sock,
            backlog=_BACKLOG,
            ssl=self._certificate.context if self._certificate is not None else None,
            ssl_handshake_timeout=(self._forwarder.limits.head_s or None) if self._certificate is not None else None,
        )

    async def _tick(self) -> None:
        while True:
            pauses = self._accept_pauses
            await asyncio.sleep(_TURN_S)
            self._listener.is_short = self._accept_pauses > pauses or self._trouble != ""
            try:
                self._turn()
            except Exception:
                # our bug: what is amiss with one connection is no reason to leave the others
                logger.exception("turn_failed")
            if self._certificate is not None and self._certificate.refresh():
                await self._open_anew()
            self._report()

    def _turn(self) -> None:
        # without a descriptor nobody can look
        with suppress(OSError):
            self._freed.look()
        self._listener.turn()
        self._lane.turn()
        self._open_soon()

    async def _open_anew(self) -> None:
        # others open and close meanwhile
        for slot, door in list(self._doors.items()):
            # a moment, in which clients wait in the kernel's queue
            if self._end is None and self._doors.get(slot) is door:
                await door.close()
            # nor may what a drain has closed meanwhile be opened again
            if self._end is None and self._doors.get(slot) is door:
                await door.open()

    async def _watch_queues(self) -> None:
        while True:
            due = self._lag.now() + _QUEUE_REPORT_S
            await asyncio.sleep(_QUEUE_REPORT_S)
            self._lag.note(max(self._lag.now() - due, 0.0))
            for door in list(self._doors.values()):
                door.turn()
            if self._caller.queued() != self._queued:
                self._report_queues()


_BEGINS = {BEGINS: b""}


class SamplingConnection(HttpConnection):
    """Lets some requests begin a trace: here, so that in a proxy where none may do that no request is asked."""

    __slots__ = ()

    def on_headers_complete(self) -> None:
        traces = self._forwarder.traces
        traces.until_next -= 1
        begins = traces.until_next <= 0 and traces.begins_now()
        if self._is_usual:
            # nothing else in its head is to be looked at
            if begins:
                self._special = _BEGINS
            return
        if begins:
            self._special = {**self._special, BEGINS: b""}
        super().on_headers_complete()


def _certificate_of(start: ProxyStart) -> Certificate:
    return Certificate(
        start.tls_cert,
        start.tls_key,
        "--http-tls",
        start.tls_client_ca,
        lambda: passphrase_of(start.state_dir, start.tls_key),
        os.path.join(start.state_dir, PASSPHRASES),
    )


def _nothing(_: tuple[str, ...]) -> None:
    pass
