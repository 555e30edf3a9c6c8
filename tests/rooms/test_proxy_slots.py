"""A proxy stands in for another one: it accepts on that one's slot while it is told to, and nobody who waits there is lost."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servd.controller.control_server import ControlServer
from servd.daemon.listeners import Listeners
from servd.daemon.unix_sockets import bind_unix
from servd.ground.settings import control_socket
from servd.observability.access_log import AccessLog
from servd.observability.log_file import LogFile
from servd.proxy import late_lane, main
from servd.proxy.main import Proxy
from servd.wire.messages import PROXY, Hello, ProxyGoal, ProxyReport, ProxyStart, Routing
from tests.fakes import wait_until
from tests.ports import free_port

LIMIT_S = 10.0
REQUEST = b"GET /nowhere HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"


class Heard:
    """What the controller hears."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[ProxyReport] = asyncio.Queue()

    def greeted(self, hello: Hello, pid: int) -> bool:
        """Everybody is welcome."""
        return True

    def received(self, role: str, peer_id: str, message: Any) -> None:
        """A report."""
        if isinstance(message, ProxyReport):
            self.reports.put_nowait(message)

    def queued(self, caller: str, deployment: str, waiting: int) -> None:
        """Nobody waits."""

    async def until_listening(self) -> None:
        """The proxy has said that it accepts."""
        while not (await asyncio.wait_for(self.reports.get(), LIMIT_S)).listening:
            pass


@contextlib.asynccontextmanager
async def a_proxy(
    directory: Path, socks: list[socket.socket], grpc_port: int = 0
) -> AsyncIterator[tuple[ControlServer, Heard, Proxy]]:
    """The proxy of slot 0 among these, which listens."""
    heard = Heard()
    server = ControlServer(heard, 1)
    await server.open(bind_unix(control_socket(str(directory))))
    server.publish(Routing(0))
    start = ProxyStart("p", 0, "token", "127.0.0.1", 0, "", *[str(directory)] * 3, grpc_port=grpc_port)
    access = AccessLog(LogFile(directory / "log"), "http_proxy", "127.0.0.1", ("http1.py", 7))
    proxy = Proxy(start, socks, access)
    thresholds = gc.get_threshold()
    running = asyncio.create_task(proxy.run())
    try:
        await heard.until_listening()
        yield server, heard, proxy
    finally:
        proxy.drain(1.0)
        await asyncio.wait_for(running, LIMIT_S)
        server.close()
        gc.set_threshold(*thresholds)


async def answered(client: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
    reader, writer = client
    answer = await asyncio.wait_for(reader.read(), LIMIT_S)
    writer.close()
    return answer.partition(b"\r\n")[0]


async def asked(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    return reader, writer


async def test_who_waits_at_a_slot_without_a_proxy_is_served_by_the_one_that_stands_in(tmp_path: Path) -> None:
    # each slot on a port of its own, so that a client can choose
    listeners = Listeners()
    socks = [listeners.bind_admin("127.0.0.1", 0) for _ in range(2)]
    own, other = (sock.getsockname()[1] for sock in socks)
    async with a_proxy(tmp_path, [sock.dup() for sock in socks]) as (server, heard, _):
        assert await answered(await asked(own)) == b"HTTP/1.1 404 Not Found"
        waiting = await asked(other)
        server.send(PROXY, "p", ProxyGoal("p", slots=(1,)))
        assert await answered(waiting) == b"HTTP/1.1 404 Not Found"
        assert await answered(await asked(other)) == b"HTTP/1.1 404 Not Found"
        server.send(PROXY, "p", ProxyGoal("p"))
        while not heard.reports.empty():
            heard.reports.get_nowait()
        # it reports once it has closed what it opened
        await heard.until_listening()
        late = await asked(other)
        async with a_proxy_of(tmp_path / "next", socks[1]):
            assert await answered(late) == b"HTTP/1.1 404 Not Found"
        assert await answered(await asked(own)) == b"HTTP/1.1 404 Not Found"
    for sock in socks:
        sock.close()


async def test_http_waits_for_nothing_of_grpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = Listeners().bind_admin("127.0.0.1", 0)
    answers = []

    async def load(name: str) -> None:
        answers.append(await answered(await asked(sock.getsockname()[1])))
        raise AttributeError("of another grpcio")

    monkeypatch.setattr(late_lane, "load", load)
    async with a_proxy(tmp_path, [sock.dup()], grpc_port=9000) as (_, heard, _):
        assert answers[0] == b"HTTP/1.1 404 Not Found"
        report = await asyncio.wait_for(heard.reports.get(), LIMIT_S)
        assert (report.listening, report.trouble) == (True, "no gRPC on port 9000: of another grpcio")
    sock.close()


async def test_the_daemons_end_shortens_a_drain_that_waits_for_clients_of_grpc(tmp_path: Path) -> None:
    grpc = pytest.importorskip("grpc", reason="needs grpcio: pip install 'servd-serve[grpc]'")
    sock, port = Listeners().bind_admin("127.0.0.1", 0), free_port()
    async with a_proxy(tmp_path, [sock.dup()], grpc_port=port) as (_, _, proxy):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            healthz = channel.unary_unary("/ray.serve.RayServeAPIService/Healthz")
            assert await healthz(b"")
            proxy.drain(LIMIT_S, is_replaced=True)
            await wait_until(lambda: bool(proxy._ending))
            assert await healthz(b"")
            began = asyncio.get_running_loop().time()
            proxy.end_within(0.2)
            await wait_until(lambda: not proxy._ending)
            assert asyncio.get_running_loop().time() - began < 0.3 * LIMIT_S
    sock.close()


class MeddledDoor:
    """Something happens while it closes."""

    trouble, has_opened, pauses = "", True, 0

    def __init__(self, meddle: Callable[[], None]) -> None:
        self.meddle = meddle
        self.calls: list[str] = []

    async def close(self) -> None:
        """Stop, which takes a moment."""
        self.calls.append("close")
        await asyncio.sleep(0)
        self.meddle()

    async def open(self) -> None:
        """Accept."""
        self.calls.append("open")


@pytest.mark.parametrize("is_draining", [False, True])
async def test_who_vouches_for_clients_may_change_while_slots_come_and_the_proxy_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_draining: bool
) -> None:
    monkeypatch.setattr(main, "_TURN_S", 0.0)
    start = ProxyStart("p", 0, "token", "127.0.0.1", 0, "", *[str(tmp_path)] * 3)
    proxy = Proxy(start, [], AccessLog(LogFile(tmp_path / "log"), "http_proxy", "127.0.0.1", ("http1.py", 7)))
    late = MeddledDoor(lambda: None)

    def meddle() -> None:
        proxy._doors[2] = late  # type: ignore[assignment]
        if is_draining:
            proxy.drain(1.0)

    doors = [MeddledDoor(meddle), MeddledDoor(lambda: None)]
    proxy._doors.update(enumerate(doors))  # type: ignore[arg-type]
    looks = iter([True])
    proxy._certificate = SimpleNamespace(refresh=lambda: next(looks))  # type: ignore[assignment]
    ticking = asyncio.create_task(proxy._tick())
    # the second look ends it
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(ticking, LIMIT_S)
    whole = ["close", "open"]
    assert [door.calls for door in doors] == ([["close"], []] if is_draining else [whole, whole])
    proxy._caller.close()


@contextlib.asynccontextmanager
async def a_proxy_of(directory: Path, sock: socket.socket) -> AsyncIterator[None]:
    """The slot's own next proxy."""
    directory.mkdir()
    async with a_proxy(directory, [sock.dup()]):
        yield


async def test_a_turn_that_fails_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(main, "_TURN_S", 0.02)
    turns: list[int] = []

    def fail() -> None:
        turns.append(len(turns))
        raise ValueError("no more")

    sock = Listeners().bind_admin("127.0.0.1", 0)
    port = sock.getsockname()[1]
    async with a_proxy(tmp_path, [sock]) as (_, _, proxy):
        monkeypatch.setattr(proxy._lane, "turn", fail)
        await wait_until(lambda: len(turns) > 2)
        assert await answered(await asked(port)) == b"HTTP/1.1 404 Not Found"
    assert "turn_failed" in caplog.text


async def test_a_proxy_that_has_lost_a_task_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sock = Listeners().bind_admin("127.0.0.1", 0)
    async with a_proxy(tmp_path, [sock]) as (server, _, proxy):
        monkeypatch.setattr(proxy._link, "_close", lambda: 1 / 0)
        monkeypatch.setattr(main, "_FAILED_S", 0.1)
        server.close()
        await wait_until(lambda: "proxy_drained" in caplog.text)
    assert "task_failed" in caplog.text
