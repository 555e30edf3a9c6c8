"""What processes inherit that user code starts in a replica, as real processes."""

import importlib.util
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from servd.ground import descendants
from tests.rooms.replica_room import Room, a_room

pytestmark = pytest.mark.slow

CALLS = 10
APP = """
import asyncio, json, multiprocessing, os, signal, subprocess, sys, threading
from servd.app.deployment import make_deployment

SHOW = (
    "import json, signal; "
    "print(json.dumps([int(signal.getsignal(n)) if n != signal.SIGINT else 'default' "
    "if signal.getsignal(n) is signal.default_int_handler else str(signal.getsignal(n)) "
    "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)]))"
)

def square(number):
    return number * number

def wait_long():
    threading.Event().wait()

def inherited():
    names = {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")}
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR2)
    return {
        "handlers": [getattr(signal.getsignal(n), "__name__", None) or int(signal.getsignal(n)) for n in numbers],
        "wakeup": signal.set_wakeup_fd(-1),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "sockets": sorted(name for name in names if name.startswith("socket:")),
    }

def in_a_loop_of_its_own(pipe):
    async def main():
        await asyncio.sleep(0)
        return "ran"
    pipe.send(asyncio.run(main()))

class Model:
    def __init__(self):
        self.ours, self.theirs = multiprocessing.get_context("fork").Pipe()
        self.sockets = __import__("socket").socketpair()
    async def __call__(self, request=None):
        return os.getpid()
    def in_child(self):
        context = multiprocessing.get_context("fork")
        with context.Pool(1) as pool:
            return pool.apply(inherited)
    async def in_child_of_the_loop(self):
        reader, writer = os.pipe()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, print)
        if not (pid := os.fork()):
            try:
                os.write(writer, json.dumps(inherited()).encode())
            finally:
                os._exit(0)
        os.close(writer)
        text = os.read(reader, 65536)
        os.close(reader)
        os.waitpid(pid, 0)
        return json.loads(text)
    def of_the_replica(self):
        names = {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")}
        own = {os.readlink(f"/proc/self/fd/{s.fileno()}") for s in (*self.sockets, self.ours, self.theirs)}
        return sorted(own), sorted(name for name in names if name.startswith("socket:"))
    def loop(self):
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        child = multiprocessing.get_context("fork").Process(target=in_a_loop_of_its_own, args=(theirs,))
        child.start()
        said = ours.recv()
        child.join()
        return said
    def pool(self):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(square, range(3))
    async def pool_of_the_loop(self):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(square, range(3))
    def terminate(self):
        child = multiprocessing.get_context("fork").Process(target=wait_long)
        child.start()
        child.terminate()
        child.join()
        return [0, 1, 4] if child.exitcode == -signal.SIGTERM else child.exitcode
    def subprocess(self):
        child = subprocess.Popen(["sleep", "600"])
        child.terminate()
        return [0, 1, 4] if child.wait() == -signal.SIGTERM else child.returncode
    def loky(self):
        return self.joblib("loky")
    def multiprocessing(self):
        return self.joblib("multiprocessing")
    def joblib(self, backend):
        import joblib
        with joblib.parallel_config(backend, n_jobs=2):
            return joblib.Parallel()(joblib.delayed(square)(n) for n in range(3))
    def data_loader(self):
        from torch.utils.data import DataLoader
        return [int(n) ** 2 for n in DataLoader([0, 1, 2], num_workers=2)]
    def programs_signals(self):
        return json.loads(subprocess.run([sys.executable, "-c", SHOW], capture_output=True, check=True).stdout)
    def stdin(self):
        copy = subprocess.run(["cat"], capture_output=True, timeout=10).stdout
        try:
            input()
            line = "a line"
        except EOFError:
            line = "end"
        return sys.stdin.read(), os.read(0, 1), line, copy, sys.stdin.fileno()

app = make_deployment(Model, {}).bind()
"""


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with a_room() as made:
        made.write(shop=APP)
        yield made


async def a_model(room: Room, *, is_forked: bool) -> None:
    order = room.order("shop:app")
    start = room.start_of("Model")
    if is_forked:
        await room.open_fork_server(order)
        await room.running(start)
        return
    room.spawn(start, order)
    report = await room.report(start.replica_id, lambda r: r.phase in ("running", "failed"))
    assert report.error == ""
    room.route(start)


@pytest.mark.parametrize("is_forked", [True, False])
@pytest.mark.parametrize("method", ["in_child", "in_child_of_the_loop"])
async def test_a_forked_child_begins_like_a_fresh_process(room: Room, method: str, is_forked: bool) -> None:
    await a_model(room, is_forked=is_forked)
    users, before = await room.call("Model", "of_the_replica")
    child = await room.call("Model", method)
    assert child["handlers"] == [0, "default_int_handler", 0, 0, 0]
    assert (child["wakeup"], child["blocked"]) == (-1, [])
    assert set(child["sockets"]) == {name for name in users if name.startswith("socket:")}
    assert set(child["sockets"]) < set(before)
    assert await room.call("Model", "loop") == "ran"


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        ("pool", ""),
        ("pool_of_the_loop", ""),
        ("terminate", ""),
        ("subprocess", ""),
        ("loky", "joblib"),
        ("multiprocessing", "joblib"),
        ("data_loader", "torch"),
    ],
)
async def test_children_of_every_kind_work_and_their_replica_stays(room: Room, method: str, needs: str) -> None:
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    await a_model(room, is_forked=True)
    pid = await room.call("Model", "__call__")
    for _ in range(CALLS):
        assert await room.call("Model", method) == [0, 1, 4]
    assert await room.call("Model", "__call__") == pid


async def test_programs_ignore_no_signal(room: Room) -> None:
    await a_model(room, is_forked=True)
    assert await room.call("Model", "programs_signals") == [0, "default", 0, 0]


@pytest.mark.parametrize("is_forked", [True, False])
async def test_reading_standard_input_gives_its_end(room: Room, is_forked: bool) -> None:
    await a_model(room, is_forked=is_forked)
    said: Any = await room.call("Model", "stdin")
    assert said == ("", b"", "end", b"", 0)


async def test_an_import_reads_the_end_of_standard_input(room: Room) -> None:
    room.write(
        reads="import sys, subprocess\nfrom shop import app\nassert (sys.stdin.read(), sys.stdin.fileno()) == ('', 0)\n"
    )
    hello = await room.open_fork_server(room.order("reads:app"))
    assert hello.result is not None
    assert hello.result.error == ""


def test_a_look_for_what_a_dead_process_left_reads_nothing_of_those_that_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: set[int] = set()
    read = descendants._read

    def noted(pid: int | str, name: str) -> bytes:
        looked_at.add(int(pid))
        return read(pid, name)

    monkeypatch.setattr(descendants, "_read", noted)
    nobody = (2**22 + 1, 1)
    descendants.end_families({nobody})
    assert os.getpid() in looked_at
    looked_at.clear()
    descendants.end_families({nobody}, {os.getpid()})
    assert os.getpid() not in looked_at


def fork_and(*, wait: bool = True, end: bool = True) -> None:
    """Fork a child that does nothing; end it, and ask after it."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.close(writer)
        # to the end of its parent
        os.read(reader, 1)
        os._exit(0)
    if end:
        os.close(writer)
    if wait:
        os.waitpid(pid, 0)
    elif end:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def in_thread(work: Callable[[], None]) -> None:
    """Do it in a thread that ends."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def listed_once_more(name: str) -> None:
    """Let the next list of a directory name what is gone by the time that somebody looks."""
    listdir = os.listdir

    def first(path: str) -> list[str]:
        os.listdir = listdir
        return [name, *listdir(path)]

    os.listdir = first  # type: ignore[assignment] # in a process that ends soon


STARTS: dict[str, tuple[Callable[[], object], bool]] = {
    "nothing": (lambda: None, False),
    "a thread": (lambda: in_thread(lambda: None), False),
    "a thread that ends meanwhile": (lambda: listed_once_more("0"), False),
    "one that lives": (lambda: fork_and(wait=False, end=False), True),
    "one that has ended": (fork_and, True),
    "one that nobody asks after": (lambda: fork_and(wait=False), True),
    "one in a thread": (lambda: in_thread(lambda: fork_and(wait=False, end=False)), True),
    "a program": (lambda: subprocess.run(["true"], check=True), True),
    "nobody knows": (lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN), True),
}


@pytest.mark.parametrize("what", STARTS)
def test_a_process_knows_whether_it_has_started_others(what: str) -> None:
    start, expected = STARTS[what]
    if not (pid := os.fork()):
        code = 2
        try:
            start()
            code = int(descendants.has_started_others())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == expected
