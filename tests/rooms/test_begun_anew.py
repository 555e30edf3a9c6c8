"""What an import or a constructor leaves running where replicas are spawned, with real processes: it is the replicas' alone."""

import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from servd.wire.build_messages import BuildOrder
from servd.wire.messages import ForkServerHello, ForkServerStop
from tests.fakes import wait_until
from tests.rooms.replica_room import LIMIT_S, Room, a_room

pytestmark = pytest.mark.slow

APP = """
import json, os, signal, socket, subprocess, sys, tempfile, threading, time, weakref
from servd import deployment

def begin():
    # a port, a job that goes on, a program, a directory for the time being, a large piece of memory, an alarm
    global KEPT
    listener = socket.create_server(("127.0.0.1", 0))
    os.set_inheritable(listener.fileno(), True)
    program = subprocess.Popen(["sleep", "600"])
    subprocess.Popen(["true"])
    directory = tempfile.TemporaryDirectory()
    open("half", "w").write("whole")
    half = open("buffered", "w")
    half.write("whole")
    signal.alarm(600)
    {further}
    KEPT = listener, program, directory, bytearray(100_000_000), half
    threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()
    with open(f"made-{{os.getpid()}}", "w") as file:
        file.write(json.dumps([listener.getsockname()[1], program.pid, directory.name]))

{at_import}

@deployment
class Model:
    def __init__(self):
        {in_constructor}
    async def __call__(self):
        return threading.active_count()

app = Model.bind()
"""


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with a_room() as made:
        yield made


async def built(room: Room, place: str, further: str = "pass") -> tuple[BuildOrder, ForkServerHello, list[Any]]:
    """An application that leaves much, its fork server, and what was left there: a port, a program, a directory."""
    code = {"at_import": "", "in_constructor": "pass", place: "begin()"}
    room.write(busy=APP.format(further=further, **code))
    order = room.order("busy:app", preload="Model" if place == "in_constructor" else "")
    hello = await room.open_fork_server(order)
    assert hello.result is not None
    assert "left 1 thread(s) running: poller" in hello.result.fork_unsafe
    made = json.loads((room.app_dir / f"made-{hello.pid}").read_text())
    return order, hello, made


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("place", ["at_import", "in_constructor"])
async def test_what_user_code_left_ends_with_the_build(room: Room, place: str) -> None:
    order, hello, (port, program, directory) = await built(room, place)
    with socket.create_server(("127.0.0.1", port), reuse_port=False):
        assert not Path(directory).exists()
        assert not Path(f"/proc/{program}").exists()
    assert len(os.listdir(f"/proc/{hello.pid}/task")) == 1
    assert Path(f"/proc/{hello.pid}/task/{hello.pid}/children").read_text() == ""
    assert memory_bytes(hello.pid) < 80_000_000
    assert (room.app_dir / "buffered").read_text() == "whole"
    title = Path(f"/proc/{hello.pid}/cmdline").read_bytes().decode().partition(" ")[2]
    assert title.startswith("template shop_Model" if order.preload else "fork server shop")
    assert [link for link in links(hello.pid) if not is_own(link, room)] == []
    # a replica has it
    start = room.start_of("Model")
    room.spawn(start, order)
    assert (await room.report(start.replica_id, lambda r: r.phase in ("running", "failed"))).error == ""
    room.route(start)
    assert await room.call("Model", "__call__") >= 2
    # it goes on for another controller, and ends as it was told to
    assert room.fork_server is not None
    room.fork_server.close()
    again = await room.connect(order)
    assert (again.pid, again.result) == (hello.pid, hello.result)
    room.fork_server.send(ForkServerStop())
    assert room.processes[0].wait(LIMIT_S) == 0
    assert not Path(order.socket_path).exists()


def links(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2]


def is_own(link: str, room: Room) -> bool:
    """Whether servd has opened it: its log, its sockets, its lifetime pipe, what it was started with; or ctypes' library."""
    return "libffi" in link or link.startswith(
        ("/dev/null", "pipe:", "socket:", "/memfd:servd", str(room.home / "logs"))
    )


async def test_modules_of_the_applications_hide_none_of_the_interpreters(room: Room) -> None:
    room.write(**dict.fromkeys(("selectors", "socket", "msgpack", "pickle"), "raise SystemError('not this one')"))
    _, hello, _ = await built(room, "at_import")
    assert os.readlink(f"/proc/{hello.pid}/cwd") == str(room.app_dir)


async def test_what_cleans_up_without_end_is_left(room: Room) -> None:
    further = "weakref.finalize(program, time.sleep, 600)"
    _, hello, (port, program, _) = await built(room, "at_import", further)
    await wait_until(lambda: not Path(f"/proc/{program}").exists())
    with socket.create_server(("127.0.0.1", port)):
        assert len(os.listdir(f"/proc/{hello.pid}/task")) == 1


async def test_it_goes_on_as_it_is_where_no_program_can_be_started(room: Room) -> None:
    further = "import multiprocessing.spawn; multiprocessing.spawn.set_executable('/nowhere/python')"
    order, hello, _ = await built(room, "at_import", further)
    assert os.readlink(f"/proc/{hello.pid}/cwd") == str(room.app_dir)
    assert room.fork_server is not None
    room.fork_server.close()
    assert (await room.connect(order)).pid == hello.pid
