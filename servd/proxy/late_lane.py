"""The lanes that are loaded where somebody needs them: Hypercorn's weighs 4 MB and 0.1 s of CPU in every proxy, gRPC's more."""

import asyncio
import logging
from typing import Any

from servd.ground.event_loop import load
from servd.proxy.forwarder import Forwarder
from servd.wire.grpc.messages import GrpcRoute
from servd.wire.messages import ProxyStart

_LANE = "servd.proxy.hypercorn.lane"
_GRPC_LANE = "servd.proxy.grpc.lane"

logger = logging.getLogger(__name__)


class LateLane:
    """Stands for the Hypercorn lane; connections that come while it is loaded wait for it."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._lane: Any = None
        self._loading: asyncio.Task[None] | None = None
        self._waiting: set[_Waiting] = set()
        self._patience_s: float | None = None

    def __repr__(self) -> str:
        return f"LateLane(waiting={len(self._waiting)}, lane={self._lane})"

    @property
    def connections(self) -> int:
        """Connections of the lane, waiting ones included."""
        return len(self._waiting) + (len(self._lane.connections) if self._lane is not None else 0)

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Serve this connection from now on; `data` begins with the HTTP/2 preface or a request's head."""
        if self._lane is not None:
            self._lane.hand_over(transport, data)
            return
        # the client's further bytes stay with the kernel
        transport.pause_reading()
        waiting = _Waiting(transport, data)
        transport.set_protocol(waiting)
        self._waiting.add(waiting)
        if self._loading is None:
            self._loading = self._forwarder.loop.create_task(self._load())

    def turn(self) -> None:
        """To be called once a second: ends connections whose clients are gone."""
        if self._lane is not None:
            self._lane.turn()

    def drain(self, patience_s: float) -> None:
        """Close WebSockets, and HTTP/2 connections as soon as they are idle.

        Args:
            patience_s: clients of HTTP/2 that begin requests after that are asked to send them elsewhere.
        """
        self._patience_s = patience_s
        if self._lane is not None:
            self._lane.drain(patience_s)

    def close(self) -> None:
        """Cut off what is left."""
        for waiting in self._waiting:
            waiting.transport.abort()
        if self._lane is not None:
            self._lane.close()

    async def _load(self) -> None:
        try:
            module = await load(_LANE)
            self._lane = module.HypercornLane(self._forwarder)
        # a host without descriptors or memory has no room for its files; whoever comes next tries again
        except Exception:
            logger.exception("lane_not_loaded connections=%d", len(self._waiting))
        waiting, self._waiting, self._loading = self._waiting, set(), None
        if self._lane is None:
            for connection in waiting:
                connection.transport.abort()
            return
        for connection in waiting:
            if not connection.is_lost and not connection.transport.is_closing():
                connection.transport.resume_reading()
                self._lane.hand_over(connection.transport, connection.data)
        if self._patience_s is not None:
            self._lane.drain(self._patience_s)


class _Waiting(asyncio.Protocol):
    """A connection until the lane is there. Some bytes may come although reading is paused."""

    def __init__(self, transport: asyncio.Transport, data: bytes) -> None:
        self.transport = transport
        self.data = data
        self.is_lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, _: Exception | None) -> None:
        self.is_lost = True


class LateGrpc:
    """Stands for the lane of gRPC, which is loaded where there is a port for it.

    Attributes:
        trouble: why it takes none though it shall, "" while it does.
    """

    def __init__(self, start: ProxyStart, forwarder: Forwarder) -> None:
        self._start = start
        self._forwarder = forwarder
        self._lane: Any = None
        self._routes: tuple[GrpcRoute, ...] = ()
        self.trouble = ""

    def __repr__(self) -> str:
        return f"LateGrpc(port={self._start.grpc_port}, lane={self._lane})"

    @property
    def is_due(self) -> bool:
        """Whether it is to be opened."""
        return bool(self._start.grpc_port) and self._lane is None

    @property
    def is_untried(self) -> bool:
        """Whether nobody knows yet if it will take calls."""
        return self.is_due and not self.trouble

    @property
    def ongoing(self) -> int:
        """Calls under way."""
        return self._lane.ongoing if self._lane is not None else 0

    def apply_routing(self, routes: tuple[GrpcRoute, ...]) -> None:
        """Know these applications from now on."""
        self._routes = routes
        if self._lane is not None:
            self._lane.apply_routing(routes)

    async def open(self) -> None:
        """Take calls, if it is due; what hinders it is `trouble` then, and HTTP goes on."""
        if not self.is_due:
            return
        start = self._start
        try:
            module = await load(_GRPC_LANE)
            lane = module.GrpcLane(self._forwarder)
            lane.apply_routing(self._routes)
            files = (start.tls_cert, start.tls_key, start.grpc_tls_ca)
            certificate = module.GrpcCertificate(*files) if start.tls_cert else None
            await lane.open(start.host, start.grpc_port, certificate, self._forwarder.limits.keep_alive)
        # another release of grpcio may raise anything
        except Exception as error:
            said = f"no gRPC on port {start.grpc_port}: {error}"
            if said != self.trouble:
                logger.error("grpc_not_opened port=%d reason=%s", start.grpc_port, error)
            self.trouble = said
            return
        self._lane, self.trouble = lane, ""
        # what came while it was loaded
        lane.apply_routing(self._routes)
        logger.info("proxy_listening_grpc host=%s port=%d", start.host, start.grpc_port)

    async def close(self, grace_s: float, *, is_replaced: bool) -> None:
        """Take nothing more; what is under way has so many seconds to end. is_replaced: as in `GrpcLane.close`."""
        if self._lane is not None:
            await self._lane.close(grace_s, is_replaced=is_replaced)
