"""Stand-ins for the user's code and for the controller, with real sockets and processes around them."""

import asyncio
import atexit
import contextlib
import random
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servd.calls.caller import Caller
from servd.calls.request_context import RequestContext
from servd.proxy.forwarder import Forwarder
from servd.proxy.http1 import HttpConnection
from servd.proxy.http1_websocket import WebSocketConnection, WebSocketLane
from servd.proxy.late_lane import LateLane
from servd.proxy.limits import Limits
from servd.proxy.listener import Listener
from servd.replica.exchange import HttpExchange
from servd.replica.grpc.service import GrpcService
from servd.replica.server import ReplicaServer
from servd.replica.websocket import WebSocketExchange
from servd.wire.messages import DeploymentTargets, Endpoint, Route, Routing

Http = Callable[[HttpExchange], Awaitable[None]]

_STILL_LOOKS = 20
_LINGER_S = 2.0


async def hello(exchange: HttpExchange) -> None:
    """Answers every request with its method and path."""
    text = f"{exchange.scope.get('method')} {exchange.scope['path']}"
    exchange.finish(200, [(b"content-type", b"text/plain")], text.encode())


class FakeUser:
    """A deployment made of functions."""

    routes = ()

    def __init__(self, http: Http = hello, methods: dict[str, Any] | None = None) -> None:
        self._http = http
        self._methods = methods or {}

    async def handle_http(self, exchange: HttpExchange) -> None:
        await self._http(exchange)

    async def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], context: RequestContext) -> Any:
        return await self._methods[method](*args, **kwargs)

    async def stream(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], context: RequestContext
    ) -> AsyncGenerator[Any, None]:
        async with contextlib.aclosing(self._methods[method](*args, **kwargs)) as items:
            async for item in items:
                yield item

    def find(self, name: str) -> Any:
        return self._methods[name]


def a_server(address: str, user: FakeUser, *, limit: int = 100, **options: Any) -> ReplicaServer:
    """A replica's server on the running loop, without servicers of gRPC."""
    loop = asyncio.get_running_loop()
    return ReplicaServer(loop, address, user, limit=limit, grpc=GrpcService(loop, user, {}, ""), **options)


def new_address() -> str:
    """A ZeroMQ address that nobody uses; its folder goes when the tests end."""
    folder = tempfile.mkdtemp(prefix="servd-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return f"ipc://{folder}/r"


def targets_for(*addresses: str, deployment: str = "app_Echo", **options: Any) -> DeploymentTargets:
    """Targets of one deployment with these replicas."""
    endpoints = tuple(Endpoint(address, address) for address in addresses)
    return DeploymentTargets(deployment, "app", endpoints=endpoints, **options)


def routing_for(*targets: DeploymentTargets, prefix: str = "/", generation: int = 1) -> Routing:
    """A routing whose first deployment is the ingress at `prefix`."""
    routes = tuple(Route(prefix, target.deployment, target.app) for target in targets[:1])
    return Routing(generation, routes, targets)


def a_caller() -> Caller:
    """A caller on the running loop."""
    return Caller(asyncio.get_running_loop(), "test", lambda _: None, rng=random.Random(1))


class Room:
    """Replicas and a proxy listener on the running loop, over real sockets. Use with `async with`.

    takes_websockets: those of plain HTTP/1.1 are handed over to the replicas; else Hypercorn's lane has them all.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        root_path: str = "",
        hand_over: bool = False,
        tls: ssl.SSLContext | None = None,
        takes_websockets: bool = True,
    ) -> None:
        self.takes_websockets = takes_websockets
        self.caller = a_caller()
        self.forwarder = Forwarder(self.caller, root_path, limits or Limits())
        self.listener = Listener(self.forwarder)
        self.lane = LateLane(self.forwarder)
        self.servers: dict[str, ReplicaServer] = {}
        self.port = 0
        self._hand_over = hand_over
        self._tls = tls
        self._stack = contextlib.AsyncExitStack()
        self._generation = 0

    async def __aenter__(self) -> "Room":
        if self._hand_over:
            self.listener.hand_over = WebSocketLane(self.listener, self.lane.hand_over).hand_over
            self.listener.handed_over = lambda: self.lane.connections
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: HttpConnection(self.listener), "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._server = server
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for connection in list(self.listener.connections):
            connection._transport.abort()
        self.lane.close()
        self.caller.close()
        for server in self.servers.values():
            # as replicas do: where both ends of a half-sent message go at once, ZeroMQ aborts
            server.close(_LINGER_S)
        await asyncio.sleep(0)

    def replica(self, http: Http = hello, methods: dict[str, Any] | None = None, *, limit: int = 100) -> str:
        """Start one more replica; gives its address."""
        address = new_address()
        server = a_server(
            address,
            FakeUser(http, methods),
            limit=limit,
            on_cancelled=self.caller.cancel_calls_of,
            takes_websockets=self.takes_websockets,
        )
        server.start()
        self.servers[address] = server
        return address

    def route(self, *addresses: str, prefix: str = "/", **options: Any) -> None:
        """Announce these replicas as the ingress at `prefix`."""
        self._generation += 1
        targets = targets_for(*addresses, **options)
        self.forwarder.apply_routing(routing_for(targets, prefix=prefix, generation=self._generation))

    def handed(self) -> list[WebSocketExchange]:
        """WebSockets that replicas run over their clients' connections."""
        peers = [peer for server in self.servers.values() for peer in server._callers()]
        return [work for peer in peers for work in peer.open.values() if isinstance(work, WebSocketExchange)]

    @property
    def websockets(self) -> int:
        """Connections that the proxy counts as WebSockets or HTTP/2."""
        return self.lane.connections + sum(isinstance(one, WebSocketConnection) for one in self.listener.connections)

    async def raw(
        self, data: bytes, *, until: bytes | None = None, timeout_s: float = 5.0, tls: ssl.SSLContext | None = None
    ) -> bytes:
        """Bytes that come back for these bytes, to the end of the connection or until `until` was seen."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=tls)
        try:
            writer.write(data)
            got = b""
            async with asyncio.timeout(timeout_s):
                while piece := await reader.read(65536):
                    got += piece
                    if until is not None and until in got:
                        break
            return got
        finally:
            writer.close()
            # its descriptor is free from here on, not at some later turn
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def get(self, path: str = "/", *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
        """The whole answer to one request on a connection of its own."""
        lines = [f"{method} {path} HTTP/1.1", "host: test", "connection: close", *headers]
        if body:
            lines.append(f"content-length: {len(body)}")
        return await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and localhost that vouches for itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make certificates")
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return certificate, key


@contextlib.contextmanager
def turning(*rooms: "Room", every_s: float) -> Iterator[None]:
    """Let seconds pass for the lanes meanwhile, one each `every_s`: slower than what they are to bear takes here."""
    loop = asyncio.get_running_loop()

    def turn() -> None:
        nonlocal timer
        timer = loop.call_later(every_s, turn)
        for room in rooms:
            room.listener.turn()
            room.lane.turn()

    timer = loop.call_later(every_s, turn)
    try:
        yield
    finally:
        timer.cancel()


async def until_still(measure: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Return once nothing moves any more: everything that can be full is. That nothing comes has no event of its own, so look
    until a fifth of a second has shown the same."""
    last, still = measure(), 0
    async with asyncio.timeout(timeout_s):
        while still < _STILL_LOOKS:
            await asyncio.sleep(0.01)
            now = measure()
            still = still + 1 if now == last else 0
            last = now


async def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Return when the condition holds; fail when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - facts of other rooms have no event
            await asyncio.sleep(0.001)
