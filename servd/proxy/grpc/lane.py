"""The server of gRPC in a proxy, on a port of its own: finds what serves a method."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from servd.ground.keep_alive import KeepAlive
from servd.ground.settings import variable
from servd.proxy.grpc.certificate import GrpcCertificate
from servd.proxy.grpc.own_services import OwnServices
from servd.proxy.grpc.served import Forwarder, Served
from servd.proxy.grpc.sockets import Connections, listeners, others_listen, stop_listening
from servd.proxy.grpc.table import GrpcTable
from servd.wire.connection_room import ConnectionRoom, Share
from servd.wire.grpc.messages import GrpcMethod, GrpcRoute

_MOST_BYTES = 2**31 - 1
"""Largest message that gRPC can carry."""
_MOST_CALLS = 100
"""Of one connection at a time: what HTTP/2 asks for at least (RFC 9113, 6.5.2), and what the other lane of HTTP/2 allows."""
_WINDOW_BYTES = 8 * 1024
"""What a client may send of a call beside the message that is asked for; it grows to that message's size."""
_ROOM_BYTES = 768 * 1024
"""What the streams of answers of a connection share: less than those of HTTP, for the library keeps more of each call."""
_PING_S = 5.0
"""So often a client may ask for a sign of life. Those of the library do every ten seconds at most, and its servers take that for
an attack if nothing else is said meanwhile: a slow call would end with UNAVAILABLE, "too_many_pings"."""
_LOOK_S = 0.1
_SUCCESSOR_S = 4.0
"""How long a successor may take to listen."""
_MOST_OF_AGE = 1.1
"""The library ends a connection up to a tenth after its age."""
_LAST_S = 1.0
"""What is left of the time to leave when calls under way are waited for."""

logger = logging.getLogger(__name__)


class GrpcLane:
    """Takes calls of gRPC on a port of its own, which the proxies of a daemon share.

    Attributes:
        ongoing: calls under way. is_secure: connections are of TLS.
    """

    def __init__(self, forwarder: Forwarder) -> None:
        self.forwarder = forwarder
        self.table = GrpcTable()
        self.ongoing = 0
        self.is_secure = False
        self._own = OwnServices(forwarder, self.table)
        self._handlers: dict[str, Any] = {}
        self._server: grpc.aio.Server | None = None
        self._port = 0
        self._end = math.inf
        self._rooms: dict[str, ConnectionRoom] = {}

    def __repr__(self) -> str:
        return f"GrpcLane({self.table}, ongoing={self.ongoing})"

    def apply_routing(self, routes: tuple[GrpcRoute, ...]) -> None:
        """Know these applications from now on."""
        self.table.update(routes)
        self._handlers.clear()
        self._own.tell()

    async def open(
        self, host: str, port: int, certificate: GrpcCertificate | None = None, keep_alive: KeepAlive | None = None
    ) -> int:
        """Take calls; gives the port.

        Raises:
            RuntimeError: the port cannot be bound.
            OSError: the certificate cannot be read.
            ValueError: a variable is no number.
        """
        server = grpc.aio.server(options=options(keep_alive or KeepAlive()))
        server.add_generic_rpc_handlers((_Finder(self.handler),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if certificate is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, certificate.credentials())
            self.is_secure = True
        self._own.is_serving = True
        await server.start()
        self._server, self._port = server, int(bound)
        return self._port

    async def close(self, grace_s: float, *, is_replaced: bool = False) -> None:
        """Take nothing more; what is under way has so many seconds to end. Again with fewer: it ends sooner.

        Args:
            is_replaced: others listen at the port: clients are served until they have moved there.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._end = min(self._end, now + grace_s)
        if self._server is not None and is_replaced and _age_s():
            await self._see_clients_off(loop, now + _SUCCESSOR_S)
        self._serve_no_more()
        if self._server is not None:
            await self._server.stop(max(0.0, self._end - loop.time()))

    def _serve_no_more(self) -> None:
        self._own.is_serving = False
        self._own.tell()

    async def _see_clients_off(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        """Serve clients until they have moved or the end is near; new ones until others listen, at most until `until`.

        A server that stops cancels what comes in before its clients know of it; one that says goodbye at an age does not.
        """
        try:
            own = listeners(self._port)
            # the sockets are the library's or another's, and tell nobody what becomes of them
            while not others_listen(self._port, own) and loop.time() < min(until, self._end):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
            await stop_listening(self._port)
            connections = Connections(self._port)
        except OSError as error:
            logger.warning("grpc_clients_not_seen reason=%s", error)
            return
        aged = loop.time() + _MOST_OF_AGE * _age_s()
        while connections.left() and loop.time() < self._end - _LAST_S:
            if self._own.is_serving and loop.time() >= aged:
                # all clients have been told to go: those who ask for its health now only hold it up
                self._serve_no_more()
            await asyncio.sleep(_LOOK_S)

    def share(self, client: str) -> Share:
        """What a call holds of the room of its connection, which gRPC names so; `over` gives it back."""
        room = self._rooms.get(client)
        if room is None:
            room = self._rooms[client] = ConnectionRoom(_ROOM_BYTES)
        return Share(room)

    def over(self, client: str, share: Share) -> None:
        """A call has ended."""
        share.close()
        if not self._rooms[client].shares:
            del self._rooms[client]

    def handler(self, name: str) -> Any:
        """What serves a method, in gRPC's form; None for one that nobody has."""
        handler = self._handlers.get(name)
        if handler is None and (method := self.table.methods.get(name)) is not None:
            handler = self._handlers[name] = self._handler_of(method)
        return handler if handler is not None else self._own.handler(name)

    def _handler_of(self, method: GrpcMethod) -> Any:
        async def one(message: bytes, context: Any) -> bytes:
            return await Served(self, method, context).run(message, None)

        async def many(messages: AsyncIterator[bytes], context: Any) -> bytes:
            return await Served(self, method, context).run(b"", messages)

        async def one_to_many(message: bytes, context: Any) -> None:
            await Served(self, method, context).run(message, None)

        async def many_to_many(messages: AsyncIterator[bytes], context: Any) -> None:
            await Served(self, method, context).run(b"", messages)

        if method.streams_in:
            if method.streams_out:
                return grpc.stream_stream_rpc_method_handler(many_to_many)
            return grpc.stream_unary_rpc_method_handler(many)
        if method.streams_out:
            return grpc.unary_stream_rpc_method_handler(one_to_many)
        return grpc.unary_unary_rpc_method_handler(one)


class _Finder(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, find: Callable[[str], Any]) -> None:
        self._find = find

    def service(self, handler_call_details: Any) -> Any:
        return self._find(handler_call_details.method)


def options(keep_alive: KeepAlive) -> list[tuple[str, Any]]:
    """What the server is made with.

    Args:
        keep_alive: when a client's host counts as gone; pings of HTTP/2 find that out here.

    Raises:
        ValueError: `SERVD_GRPC_MAX_MESSAGE_BYTES`, `SERVD_GRPC_MAX_CONCURRENT_STREAMS` or `SERVD_GRPC_STREAM_WINDOW_BYTES` is no
            positive number that gRPC can carry, or `SERVD_GRPC_MAX_CONNECTION_AGE_S` no time.
    """
    most = _number("GRPC_MAX_MESSAGE_BYTES", _MOST_BYTES)
    found = [
        ("grpc.so_reuseport", 1),
        ("grpc.max_concurrent_streams", _number("GRPC_MAX_CONCURRENT_STREAMS", _MOST_CALLS)),
        # else calls count on after their end until their memory is free, which no client knows: its next ones would be refused
        ("grpc.http.overload_protection", 0),
        ("grpc.http2.lookahead_bytes", _number("GRPC_STREAM_WINDOW_BYTES", _WINDOW_BYTES)),
        # else the window grows with what a client sends
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", math.ceil(_PING_S * 1000)),
        ("grpc.max_receive_message_length", most),
        ("grpc.max_send_message_length", most),
    ]
    if age_s := _age_s():
        found.append(("grpc.max_connection_age_ms", math.ceil(age_s * 1000)))
    if keep_alive.after_s:
        found += [
            ("grpc.keepalive_time_ms", keep_alive.after_s * 1000),
            ("grpc.keepalive_timeout_ms", keep_alive.every_s * keep_alive.probes * 1000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    return found


def _number(name: str, default: int) -> int:
    found = int(variable(name, str(default)))
    if not 0 < found <= _MOST_BYTES:
        raise ValueError(f"SERVD_{name} must be from 1 to {_MOST_BYTES}, got {found}")
    return found


def _age_s() -> float:
    """When a client is told to make a new connection, give or take a tenth; 0 = never."""
    age_s = float(variable("GRPC_MAX_CONNECTION_AGE_S", "10"))
    if not 0 <= age_s < math.inf:
        raise ValueError(f"SERVD_GRPC_MAX_CONNECTION_AGE_S must be seconds, or 0 for no limit, got {age_s}")
    return age_s
