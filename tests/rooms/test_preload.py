"""Replicas that are forked from a constructed instance, as real processes."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from servd.wire.messages import ForkServerHello, ForkServerStop
from tests.rooms.replica_room import LIMIT_S, Room, a_room

pytestmark = pytest.mark.slow

APP = """
import asyncio, os, pickle, random, sys, threading
import numpy
from servd import deployment, get_replica_context

def generators(*seed):
    return [random.Random(*seed), numpy.random.default_rng(*seed), numpy.random.RandomState(*seed)]

at_import = generators()

class Base:
    def __init__(self, other=None):
        self.other, self.made_by, self.config = other, os.getpid(), None
        self.random = pickle.loads(pickle.dumps(random.Random(1)))
        self.own, self.seeded = generators(), [self.random, *generators(1)]
    def on_replica_start(self):
        self.tag = str(get_replica_context().replica_id)
    def reconfigure(self, config):
        self.config = (config, self.tag)
    def about(self):
        return {"pid": os.getpid(), "made_by": self.made_by, "tag": self.tag, "config": self.config}
    def draw(self):
        return [float(one.random()) for one in (random, numpy.random, *at_import, *self.own)]
    def draw_seeded(self):
        return [float(one.random()) for one in self.seeded]

@deployment
class Other:
    def __call__(self):
        return "from the other"

@deployment
class Sync(Base):
    pass

@deployment
class Async(Base):
    async def __init__(self, other=None):
        super().__init__(other)
        await asyncio.sleep(0)
        self.waiting = asyncio.Queue()
    async def on_replica_start(self):
        await asyncio.sleep(0)
        super().on_replica_start()

@deployment
class Thread(Base):
    def __init__(self, other=None):
        super().__init__()
        threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()

@deployment
class Context(Base):
    def __init__(self, other=None):
        get_replica_context()

other = Other.bind()
"""
NAMES = ("Sync", "Async", "Thread", "Context")


FILES = """
import os, tempfile
from pathlib import Path
from servd import deployment

kept = tempfile.TemporaryDirectory(dir=".")

@deployment
class Files:
    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(dir=".")
        (Path(self.folder.name) / "weights").write_text("weights")
    def on_replica_start(self):
        self.own = tempfile.TemporaryDirectory(dir=".")
    def folders(self):
        return [str(Path(folder.name).absolute()) for folder in (kept, self.folder, self.own)]

app = Files.bind()
"""


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with a_room() as made:
        apps = "\n".join(f"{name.lower()}_app = {name}.bind(other)" for name in NAMES)
        made.write(shop=f"{APP}\n{apps}\n")
        yield made


async def template_of(room: Room, name: str) -> ForkServerHello:
    return await room.open_fork_server(room.order(f"shop:{name.lower()}_app", preload=name))


@pytest.mark.parametrize("name", ["Sync", "Async"])
async def test_replicas_share_the_instance_and_start_on_their_own(room: Room, name: str) -> None:
    hello = await template_of(room, name)
    assert hello.result is not None
    assert (hello.result.error, hello.result.fork_unsafe) == ("", "")
    draws, seeded = [], []
    for suffix in "ab":
        start = room.start_of(name, suffix, user_config='{"a": 1}')
        forked = await room.running(start)
        room.route(start)
        about = await room.call(name, "about")
        assert about == {
            "pid": forked.pid,
            "made_by": hello.pid,
            "tag": start.replica_id,
            "config": ({"a": 1}, start.replica_id),
        }
        draws.append(await room.call(name, "draw"))
        seeded.append(await room.call(name, "draw_seeded"))
    assert not set(draws[0]) & set(draws[1]), "random generators differ"
    assert seeded[0] == seeded[1], "those with a seed do not"


async def test_what_cannot_be_forked_is_refused_with_what_to_do(room: Room) -> None:
    hello = await template_of(room, "Thread")
    assert hello.result is not None
    assert hello.result.error == ""
    assert hello.result.fork_unsafe == (
        "the constructor left 1 thread(s) running: poller; "
        "start them after the fork, in `on_replica_start(self)`, to have replicas forked"
    )


async def test_a_connection_is_no_replicas_own_where_the_template_has_opened_it(room: Room) -> None:
    # the kernel answers for it
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    room.write(
        connected="import socket\nfrom servd import deployment\n\n@deployment\nclass Db:\n    def __init__(self):\n"
        f"        self.db = socket.create_connection(('127.0.0.1', {port}))\n"
        "    def __call__(self, request): ...\n\napp = Db.bind()\n"
    )
    hello = await room.open_fork_server(room.order("connected:app", preload="Db"))
    assert hello.result is not None
    assert hello.result.fork_unsafe == (
        f"the constructor left a connection open to 127.0.0.1:{port}, and replicas that share one read each other's "
        "answers; open it after the fork, in `on_replica_start(self)`, to have replicas forked"
    )
    server.close()


PARTS = """
import subprocess
from pathlib import Path
from servd import deployment

Path("parts").write_text("abcdef")
at_import = open("parts")

@deployment
class Parts:
    def __init__(self):
        self.own = open("parts", "rb")
        self.own.seek(2)
    def next(self):
        return at_import.read(1) + self.own.read(1).decode()

@deployment
class Engine:
    def __init__(self):
        self.engine = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

app = Parts.bind()
engine = Engine.bind()
"""


async def test_each_replica_reads_files_at_a_place_of_its_own(room: Room) -> None:
    room.write(parts=PARTS)
    await room.open_fork_server(room.order("parts:app", preload="Parts"))
    starts = [room.start_of("Parts", suffix) for suffix in "ab"]
    for start in starts:
        await room.running(start)
    for start in starts:
        room.route(start)
        assert await room.call("Parts", "next") == "ac"


async def test_a_program_that_answers_by_a_pipe_is_no_replicas_own(room: Room) -> None:
    room.write(parts=PARTS)
    hello = await room.open_fork_server(room.order("parts:engine", preload="Engine"))
    assert hello.result is not None
    assert hello.result.fork_unsafe.startswith("the constructor left a connection open to process ")
    assert "(cat), and replicas that share one read each other's answers; open it" in hello.result.fork_unsafe


async def test_a_failing_constructor_is_the_templates_result(room: Room) -> None:
    hello = await template_of(room, "Context")
    assert hello.result is not None
    assert (
        "`get_replica_context()` does not work in the constructor of Context, which has `preload`" in hello.result.error
    )
    assert "in __init__" in hello.result.error
    assert "instances.py" not in hello.result.error


async def test_without_preload_replicas_start_alike(room: Room) -> None:
    await room.open_fork_server(room.order("shop:sync_app"))
    start = room.start_of("Sync", user_config="{}")
    forked = await room.running(start)
    about = await room.call("Sync", "about")
    assert about == {
        "pid": forked.pid,
        "made_by": forked.pid,
        "tag": start.replica_id,
        "config": ({}, start.replica_id),
    }


@pytest.mark.parametrize("preload", ["Files", ""])
async def test_files_that_all_replicas_use_outlive_each_of_them(room: Room, preload: str) -> None:
    room.write(files=FILES)
    await room.open_fork_server(room.order("files:app", preload=preload))
    first, second = (room.start_of("Files", suffix) for suffix in "ab")
    await room.running(first)
    shared, made, own = map(Path, await room.call("Files", "folders"))
    room.set_goal(first, drain=True)
    assert await room.exited(first.replica_id) == 0
    # what a replica has made itself goes with it
    assert [shared.exists(), made.exists(), own.exists()] == [True, bool(preload), False]
    await room.running(second)
    room.set_goal(second, drain=True)
    assert await room.exited(second.replica_id) == 0
    assert room.fork_server is not None
    room.fork_server.send(ForkServerStop())
    assert await asyncio.to_thread(room.processes[0].wait, LIMIT_S) == 0
    assert not shared.exists()
    assert not made.exists()


LINES = """
import os
from servd import deployment

at_import = open("at_import", "a")
at_import.write("once\\n")

@deployment
class Lines:
    def __init__(self):
        self.own = open("own", "a")
        self.own.write("made\\n")
    def write(self, line):
        at_import.write(line)
        self.own.write(line)

app = Lines.bind()
"""


async def test_what_is_left_in_the_buffers_of_files_is_written_once(room: Room) -> None:
    room.write(lines=LINES)
    await room.open_fork_server(room.order("lines:app", preload="Lines"))
    for suffix in "ab":
        start = room.start_of("Lines", suffix)
        await room.running(start)
        room.route(start)
        await room.call("Lines", "write", f"{suffix}\n")
        room.set_goal(start, drain=True)
        assert await room.exited(start.replica_id) == 0
    [at_import] = room.home.rglob("at_import")
    assert at_import.read_text() == "once\na\nb\n"
    assert at_import.with_name("own").read_text() == "made\na\nb\n"


POOLS = """
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from servd import deployment

shared = ProcessPoolExecutor(1, get_context("fork"), initializer=os.nice, initargs=(1,))

@deployment
class Pools:
    def __init__(self):
        self.own = ProcessPoolExecutor(1, get_context("fork"))
    def parents(self):
        return [pool.submit(os.getppid).result(timeout=10) for pool in (shared, self.own)]
    def ends(self):
        return [os.fstat(end.fileno()).st_ino for pool in (shared, self.own)
                for end in (pool._call_queue._reader, pool._result_queue._reader)]

app = Pools.bind()
"""


@pytest.mark.parametrize("preload", ["Pools", ""])
async def test_replicas_do_not_take_each_others_work(room: Room, preload: str) -> None:
    room.write(pools=POOLS)
    await room.open_fork_server(room.order("pools:app", preload=preload))
    ends: list[int] = []
    for suffix in "ab":
        start = room.start_of("Pools", suffix)
        forked = await room.running(start)
        room.route(start)
        assert await room.call("Pools", "parents") == [forked.pid, forked.pid]
        ends += await room.call("Pools", "ends")
    assert len(set(ends)) == len(ends) == 8


LOCKS = """
import multiprocessing, os
from servd import deployment

shared, number = multiprocessing.Lock(), multiprocessing.Value("i", 0)

@deployment
class Locks:
    def __init__(self):
        self.own = multiprocessing.Lock()
    def hold(self):
        number.value += 1
        return [lock.acquire(timeout=1) for lock in (shared, self.own)], number.value

app = Locks.bind()
"""


@pytest.mark.parametrize("preload", ["Locks", ""])
async def test_replicas_do_not_wait_for_each_others_locks(room: Room, preload: str) -> None:
    room.write(locks=LOCKS)
    await room.open_fork_server(room.order("locks:app", preload=preload))
    for suffix in "ab":
        start = room.start_of("Locks", suffix)
        await room.running(start)
        room.route(start)
        assert await room.call("Locks", "hold") == ([True, True], 1)


SWITCHES = """
import gc, os, signal
from servd import deployment

@deployment
class Switches:
    def __init__(self):
        gc.disable()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    def is_collecting(self):
        return gc.isenabled()

app = Switches.bind()
"""


async def test_what_a_constructor_switches_off_is_off_in_replicas_and_hides_no_end_of_theirs(room: Room) -> None:
    room.write(switches=SWITCHES)
    await room.open_fork_server(room.order("switches:app", preload="Switches"))
    start = room.start_of("Switches")
    forked = await room.running(start)
    assert not await room.call("Switches", "is_collecting")
    os.kill(forked.pid, signal.SIGKILL)
    assert await room.exited(start.replica_id) == -signal.SIGKILL


MEMORY = """
import gc, os, sys
from servd import deployment
from servd.ground import quick_dataclass
from servd.observability import access_log
from servd.replica import methods

at_fork = {}

def note():
    at_fork["modules"] = set(sys.modules)
    at_fork["classes"] = set(quick_dataclass._uncompiled)

os.register_at_fork(before=note)

@deployment
class Light:
    def __init__(self):
        self.made = [gc.get_freeze_count(), access_log.short_latencies.cache_info().misses]
    def __call__(self):
        return "light"
    def own(self):
        return {
            "loaded": sorted(set(sys.modules) - at_fork["modules"]),
            "compiled": sorted(c.__name__ for c in at_fork["classes"] - quick_dataclass._uncompiled),
            "worded": access_log.short_latencies.cache_info().misses,
            "looked_at": methods._known_of.cache_info().misses,
        }

app = Light.bind()
"""


async def test_what_every_replica_needs_is_there_before_the_fork(room: Room) -> None:
    room.write(light=MEMORY)
    hello = await room.open_fork_server(room.order("light:app", preload="Light"))
    assert hello.result is not None
    assert hello.result.fork_unsafe == ""
    await room.running(room.start_of("Light"))
    assert await room.call("Light", "__call__") == "light"
    own = await room.call("Light", "own")
    # `own` itself is a method that nobody has looked at
    assert own == {"loaded": [], "compiled": [], "worded": 1, "looked_at": 2}
