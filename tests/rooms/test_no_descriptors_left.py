"""Processes with no descriptor, or no thread, left: nobody is reset or taken for dead, and all goes on afterwards."""

import asyncio
import contextlib
import multiprocessing
import os
import select
import socket
import subprocess
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servd.calls import caller
from servd.controller import control_server
from servd.controller import supervisor as supervisor_module
from servd.controller.control_server import ControlServer
from servd.controller.supervisor import SPARE_DESCRIPTORS, Key, Supervisor
from servd.daemon.unix_sockets import UnixSockets, bind_unix
from servd.exceptions import HostLimitError
from servd.ground.pidfd import start_ticks
from servd.proxy.door import Door
from servd.proxy.http1 import HttpConnection
from servd.replica.fork_server import ForkServer
from servd.replica.sync_threads import SyncThreads
from servd.rest import app as admin
from servd.wire import doorstep as doorstep_module
from servd.wire.build_messages import BuildOrder, BuildResult
from servd.wire.doorstep import SPARE_DESCRIPTORS as FOR_CALLERS
from servd.wire.doorstep import Doorstep
from servd.wire.messages import Forked, ReplicaGoal, ReplicaStart
from servd.wire.policy_messages import PolicyAsk
from tests.descriptors import few_descriptors
from tests.fakes import Room, wait_until
from tests.rooms.test_control_server import News
from tests.rooms.test_requests import Replicas

LIMIT_S = 10.0
GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


# --- the proxy's door ---------------------------------------------------------------------------------------------------


class House:
    """A room whose proxy has a door, with room for few clients."""

    def __init__(self, room: Room) -> None:
        loop = asyncio.get_running_loop()
        self.kept = socket.create_server(("127.0.0.1", 0))
        self.port = self.kept.getsockname()[1]
        self.door = Door(loop, self.kept, self._serve, lambda: HttpConnection(room.listener), spare=4)
        self._clients: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    @staticmethod
    async def _serve(sock: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(make_protocol, sock=sock)

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._clients.append(await asyncio.open_connection("127.0.0.1", self.port))
        return self._clients[-1]

    async def close(self) -> None:
        for _, writer in self._clients:
            writer.close()
        await self.door.close()
        self.kept.close()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with Room() as room:
        room.route(room.replica())
        house = House(room)
        await house.door.open()
        assert house.door.has_opened
        yield house
        await house.close()


async def ask(client: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
    reader, writer = client
    writer.write(GET)
    async with asyncio.timeout(LIMIT_S):
        return (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0] + await reader.readexactly(5)


async def test_clients_wait_while_there_is_no_descriptor_and_nobody_is_reset(house: House) -> None:
    early = await house.client()
    assert await ask(early) == b"HTTP/1.1 200 OKGET /"
    # each client takes two here: its own end is in this process too
    with few_descriptors(26):
        clients = [await house.client() for _ in range(14)]
        waiting = [asyncio.create_task(ask(client)) for client in clients]
        await wait_until(lambda: house.door.trouble != "")
        assert "ulimit -n" in house.door.trouble
        assert house.door.pauses == 1
        assert await ask(early) == b"HTTP/1.1 200 OKGET /"
        await wait_until(lambda: sum(task.done() for task in waiting) >= 2)
        house.door.turn()
        assert house.door.trouble != ""
        assert not all(task.done() for task in waiting)
    house.door.turn()
    assert await asyncio.gather(*waiting) == [b"HTTP/1.1 200 OKGET /"] * len(clients)
    assert house.door.trouble == ""


async def test_a_place_that_a_client_leaves_is_given_to_one_that_waits(house: House) -> None:
    with few_descriptors(26):
        clients = [await house.client() for _ in range(14)]
        waiting = {asyncio.create_task(ask(client)): client for client in clients}
        while waiting:
            done, _ = await asyncio.wait(waiting, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                assert task.result() == b"HTTP/1.1 200 OKGET /"
                waiting.pop(task)[1].close()
            house.door.turn()


async def test_a_door_closes_when_something_else_takes_the_descriptors_and_tells_it_once_a_minute(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with few_descriptors(3):
            house.door.turn()
            assert house.door.trouble != ""
        house.door.turn()
        await wait_until(lambda: "open" in repr(house.door))
    assert house.door.pauses == 3
    assert [record.message.split()[0] for record in caplog.records] == ["accept_paused", "accept_resumed"]


# --- callers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 1, 2])
async def test_a_replica_that_could_not_be_connected_to_is_tried_again_while_others_serve(
    left: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(caller, "_TURN_S", 0.02)
    async with Room() as room, contextlib.AsyncExitStack() as stack:
        # in a process of its own: ZeroMQ ends one that has no descriptor for who connects
        elsewhere = Replicas(tmp_path)
        stack.callback(elsewhere.close)
        first, second = room.replica(), elsewhere.start("second")
        room.route(first)
        assert b"200 OK" in await room.get()
        router = room.caller.router_of("app_Echo")
        # both ends of what asked just now: closed amid what follows, they would leave two descriptors more
        await wait_until(lambda: not room.listener.connections)
        with few_descriptors(left):
            room.route(first, second)
            # with two of them ZeroMQ finds out, a moment later, that there is none for the connection
            await wait_until(lambda: [candidate.address for candidate in router.candidates] == [first])
        assert b"200 OK" in await room.get()
        await wait_until(lambda: len(router.candidates) == 2)
        lines = [record.message for record in caplog.records if "not_connected" in record.message]
        # of two, the next try finds none or one, as ZeroMQ has closed what the last one opened by then or not
        assert len(lines) == 1 if left < 2 else len(lines) <= 1
        assert all("ulimit -n" in line for line in lines)


# --- the controller -----------------------------------------------------------------------------------------------------


class Watch:
    def __init__(self) -> None:
        self.reader, self.writer = multiprocessing.Pipe(duplex=False)
        self.exits: asyncio.Queue[tuple[Key, int, int | None]] = asyncio.Queue()
        self.supervisor = Supervisor(asyncio.get_running_loop(), self.reader, lambda *exit: self.exits.put_nowait(exit))
        self.process = subprocess.Popen(["sleep", "60"])

    def adopt(self) -> bool:
        return self.supervisor.adopt(("replica", "r"), self.process.pid, start_ticks(self.process.pid))

    async def exit(self) -> tuple[Key, int, int | None]:
        return await asyncio.wait_for(self.exits.get(), LIMIT_S)


@pytest.fixture
async def watch(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watch]:
    monkeypatch.setattr(supervisor_module, "LOOK_S", 0.02)
    monkeypatch.setattr(supervisor_module, "_STATUS_WAIT_S", 0.01)
    watch = Watch()
    yield watch
    watch.process.kill()
    watch.process.wait()
    watch.reader.close()
    watch.writer.close()
    await watch.supervisor.wait_until_none_lives(LIMIT_S)


def adopt_without_descriptors(watch: Watch) -> None:
    ticks = start_ticks(watch.process.pid)
    with few_descriptors(0):
        assert watch.supervisor.adopt(("replica", "r"), watch.process.pid, ticks)
        assert watch.supervisor.living() == [("replica", "r")]


async def test_one_that_lives_is_adopted_without_a_descriptor_and_its_death_is_seen(watch: Watch) -> None:
    adopt_without_descriptors(watch)
    watch.process.kill()
    watch.process.wait()
    assert (await watch.exit())[:2] == (("replica", "r"), watch.process.pid)


async def test_one_that_there_is_no_descriptor_for_is_killed_as_soon_as_there_is(watch: Watch) -> None:
    ticks = start_ticks(watch.process.pid)
    with few_descriptors(0):
        watch.supervisor.adopt(("replica", "r"), watch.process.pid, ticks)
        assert watch.supervisor.kill(("replica", "r"))
    await watch.exit()
    assert watch.process.wait() == -9


async def test_no_process_is_started_that_could_not_be_tended(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "descriptors_left", lambda _: SPARE_DESCRIPTORS - 1)
    with pytest.raises(HostLimitError, match=r"cannot tend another.*ulimit -n"):
        watch.supervisor.start(("proxy", "p"), "tests.rooms.test_supervisor:end_with", (0,), {})
    assert watch.supervisor.living() == []


async def test_what_a_dead_one_had_started_is_ended_once_a_thread_can_be_had(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    refused = []

    def no_thread(thread: threading.Thread) -> None:
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    assert watch.adopt()
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    watch.process.kill()
    watch.process.wait()
    await watch.exit()
    await wait_until(lambda: len(refused) >= 1)
    assert not await watch.supervisor.wait_until_none_lives(0.0)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert await watch.supervisor.wait_until_none_lives(LIMIT_S)


async def test_a_death_is_told_also_where_there_is_no_descriptor_to_see_that_all_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "_LAST_WORDS_S", 0.01)
    server = ControlServer(News(), first_generation=1)
    await server.open(bind_unix(f"{tmp_path}/c"))
    told = asyncio.Event()
    with few_descriptors(0):
        server.after_heard_out("replica", "r", told.set)
    await asyncio.wait_for(told.wait(), LIMIT_S)
    server.close()


@pytest.mark.parametrize("size", [0, 10, 2**20])
async def test_a_client_of_the_admin_plane_is_told_the_limit_while_few_descriptors_are_left(
    size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Application:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"well"})

        def end_pages(self) -> None:
            pass

    listener = bind_unix(f"{tmp_path}/a")
    shutdown = asyncio.Event()
    serving = asyncio.create_task(admin.serve(Application(), [listener], shutdown))

    async def answer() -> bytes:
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/a")
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % size)
        try:
            got = await asyncio.wait_for(reader.read(), LIMIT_S)
            if size:
                # a client sends its body apart from the head: where it is not taken, that fails before the answer is looked at
                writer.write(bytes(size))
                await asyncio.wait_for(writer.drain(), LIMIT_S)
            return got
        finally:
            writer.close()

    with monkeypatch.context() as patch:
        patch.setattr(admin, "descriptors_left", lambda: admin.SPARE_DESCRIPTORS - 1)
        refusal = await answer()
    assert refusal.startswith(b"HTTP/1.1 507 ")
    assert b"ulimit -n" in refusal
    size = 0
    assert b"well" in await answer()
    shutdown.set()
    await serving


# --- the daemon ---------------------------------------------------------------------------------------------------------


def test_a_daemon_whose_sockets_are_gone_binds_them_once_it_has_a_descriptor(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    sockets = UnixSockets(str(folder))
    for path in folder.iterdir():
        path.unlink()
    with few_descriptors(0):
        assert not sockets.tend()
        assert "ulimit -n" in sockets.trouble
    assert sockets.tend()
    assert sockets.trouble == ""
    for one in sockets.sockets:
        one.close()


# --- the fork server ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def a_fork_server(tmp_path: Path) -> Iterator[ForkServer]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{tmp_path}/f")
    listener.listen(8)
    lifetime, end = os.pipe()
    order = BuildOrder("f", "b", "app", "m:app", {}, {}, socket_path=f"{tmp_path}/f")
    built: Any = types.SimpleNamespace(deployments={"D": None})
    yield ForkServer(order, listener, lifetime, BuildResult("b"), built)
    listener.close()
    os.close(lifetime)
    os.close(end)


def order_for(name: str) -> ReplicaStart:
    goal = ReplicaGoal(name, "c", "", 1, 10.0, 30.0, 1.0)
    return ReplicaStart(name, "app", "D", "token", "ipc://x", goal, 1, "/state", "/sockets", "/logs")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_fork_that_fails_leaves_no_descriptor_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with a_fork_server(tmp_path) as server:
        monkeypatch.setattr(os, "fork", no_process)
        before = open_descriptors()
        for number in range(3):
            answer: Forked = server._fork(order_for(f"a#{number}"))
            assert answer.is_host_limit
            assert answer.error.startswith(
                "cannot fork: [Errno 11] Resource temporarily unavailable: no further process"
            )
        assert open_descriptors() == before
        for left in range(4):
            with few_descriptors(left):
                answer = server._fork(order_for("a#x"))
            assert answer.is_host_limit
            assert "ulimit -n" in answer.error
        assert open_descriptors() == before


def test_a_policy_that_cannot_be_forked_leaves_no_descriptor_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    ask = PolicyAsk("1", "m:policy", "{}", "[]")
    with a_fork_server(tmp_path) as server:
        monkeypatch.setattr(os, "fork", no_process)
        before = open_descriptors()
        for _ in range(3):
            (answer,) = server._policies.ask(ask)
            assert "its process cannot be asked: [Errno 11]" in answer.error
            assert "no further process" in answer.error
        assert open_descriptors() == before
        with few_descriptors(4):
            (answer,) = server._policies.ask(ask)
        assert "ulimit -n" in answer.error
        assert open_descriptors() == before


def test_a_controller_that_a_fork_server_has_no_descriptor_for_waits_and_nobody_spins(tmp_path: Path) -> None:
    with a_fork_server(tmp_path) as server, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        server._poller.register(server._listener, select.POLLIN)
        knock.connect(f"{tmp_path}/f")
        with few_descriptors(0):
            server._accept()
        assert server._poller.poll(0) == []
        assert server._deaf_until is not None


# --- the replica --------------------------------------------------------------------------------------------------------


async def test_sync_handlers_share_the_threads_that_could_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def only_one(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", only_one)
    threads = SyncThreads(4)
    async with asyncio.timeout(LIMIT_S):
        found = await asyncio.gather(*(threads.run(threading.get_ident) for _ in range(10)))
        assert len(set(found)) == 1
        monkeypatch.setattr(threading.Thread, "start", start)
        gate = threading.Barrier(4)
        await asyncio.gather(*(threads.run(gate.wait, LIMIT_S) for _ in range(4)))


async def test_without_any_thread_a_sync_handler_fails_and_the_next_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = SyncThreads(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        for _ in range(3):
            with pytest.raises(HostLimitError, match="no further process or thread"):
                await threads.run(int)
    assert await asyncio.wait_for(threads.run(int), LIMIT_S) == 0


# --- a replica's doorstep -----------------------------------------------------------------------------------------------


def test_a_doorstep_is_closed_while_few_descriptors_are_left_and_gone_only_if_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "r"
    path.touch()
    doorstep = Doorstep(f"ipc://{path}")

    def look(left: int) -> tuple[bool, bool, bool]:
        monkeypatch.setattr(doorstep_module, "count_descriptors_left", lambda: left)
        doorstep.look()
        return path.exists(), doorstep.is_closed, doorstep.is_gone

    open_, closed, gone = (True, False, False), (False, True, False), (False, False, True)
    assert look(FOR_CALLERS + 1) == open_
    for left in (FOR_CALLERS, 0, FOR_CALLERS + 1, 2 * FOR_CALLERS):
        assert look(left) == closed, left
    assert look(2 * FOR_CALLERS + 1) == open_
    assert look(0) == closed
    # whoever cleans up there takes it under either name
    for file in tmp_path.iterdir():
        file.unlink()
    assert look(0) == gone
    path.touch()
    assert look(0) == closed
    assert look(100) == open_
