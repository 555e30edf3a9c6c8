"""Policies in processes of a fork server: what hangs or dies costs nobody else anything, and all end with it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from servd.observability.error_groups import ErrorsReport
from servd.wire.messages import ForkServerStop
from servd.wire.policy_messages import PolicyAnswer, PolicyAsk
from tests.fakes import wait_until
from tests.processes import Process, alive, command_line, offspring
from tests.rooms.replica_room import Room, a_room

CODE = """
import asyncio, os, threading
from servd import deployment

@deployment
class Echo:
    async def __call__(self, word):
        return word

def say(context):
    return os.getpid(), {"asked": context.policy_state.get("asked", 0) + 1}

def count(context):
    asked = context.policy_state.get("asked", 0) + 1
    return asked, {"asked": asked}

class Polls:
    def __init__(self):
        self.seen, self.task = 0, None

    async def poll(self):
        while True:
            self.seen += 1
            await asyncio.sleep(0.001)

    def __call__(self, context):
        self.task = self.task or asyncio.get_running_loop().create_task(self.poll())
        return self.seen, {}

def hang(context):
    threading.Event().wait()

def hang_too(context):
    hang(context)

def die(context):
    os._exit(3)

app = Echo.bind()
"""
BUSY = """
import threading
from servd import deployment

threading.Thread(target=threading.Event().wait, daemon=True, name="poller").start()

@deployment
class Echo:
    pass

asked = []

def polling(context):
    asked.append(context)
    if len(asked) == 1:
        raise ValueError("no idea")
    return sum(thread.name == "poller" for thread in threading.enumerate()), {}

app = Echo.bind()
"""
POOLED = """
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from servd import deployment

shared = ProcessPoolExecutor(1, get_context("fork"))

@deployment
class Echo:
    pass

def pooled(context):
    assert shared.submit(os.getppid).result(timeout=5) == os.getpid()
    return os.fstat(shared._call_queue._reader.fileno()).st_ino, {}

def pooled_too(context):
    return pooled(context)

app = Echo.bind()
"""
TOLD = {
    "app": "shop", "deployment": "Echo", "current_num_replicas": 1, "target_num_replicas": 1,
    "running_replicas": [], "total_num_requests": 0.0, "total_queued_requests": 0.0,
    "min_replicas": 1, "max_replicas": 9, "last_scale_up_s": None, "last_scale_down_s": None, "config": {},
}  # fmt: skip


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with a_room() as made:
        yield made


def put(room: Room, function: str, ask_id: str = "1", deadline_s: float = 5.0, module: str = "shop_code") -> None:
    assert room.fork_server is not None
    room.fork_server.send(PolicyAsk(ask_id, f"{module}:{function}", "{}", json.dumps([TOLD]), deadline_s=deadline_s))


def policies(fork_server: int) -> set[Process]:
    """Living processes of policies of a fork server."""
    return {one for one in offspring(fork_server) if command_line(one[0]).startswith(b"servd: policy shop")}


async def answer(room: Room, ask_id: str = "1") -> Any:
    assert room.fork_server is not None
    return await room.fork_server.next(PolicyAnswer, lambda found: found.ask_id == ask_id)


async def test_policies_live_beside_replicas_and_end_with_their_fork_server(room: Room) -> None:
    room.write(shop_code=CODE)
    hello = await room.open_fork_server(room.order("shop_code:app"))
    put(room, "say")
    pid = int((await answer(room)).wanted["Echo"])
    assert pid != hello.pid
    # it keeps its state, and is the same process
    put(room, "count", "2")
    assert (await answer(room, "2")).wanted == {"Echo": 1.0}
    put(room, "count", "3")
    assert (await answer(room, "3")).wanted == {"Echo": 2.0}
    # one that hangs holds up neither forks nor other policies, and is ended
    put(room, "hang", "4", deadline_s=2.0)
    await room.running(room.start_of("Echo"))
    assert await room.call("Echo", "__call__", "hi") == "hi"
    put(room, "say", "5")
    assert int((await answer(room, "5")).wanted["Echo"]) == pid
    assert (await answer(room, "4")).error.startswith("it took too long, and was ended")
    put(room, "die", "6")
    assert (await answer(room, "6")).error.startswith("its process has ended")
    put(room, "missing", "7")
    assert "has no attribute 'missing'" in (await answer(room, "7")).error
    report = await room.fork_server.next(ErrorsReport)
    assert report.replica_id == f"{hello.fork_server_id}/"
    assert [(group.type, group.method, group.count) for group in report.groups] == [
        ("AttributeError", "shop_code:missing", 1)
    ]
    # its tasks go on between the questions
    put(room, "Polls", "first")
    assert (await answer(room, "first")).wanted == {"Echo": 0.0}
    async with asyncio.timeout(5.0):
        put(room, "Polls", "again")
        while not (await answer(room, "again")).wanted["Echo"]:
            put(room, "Polls", "again")
    put(room, "hang_too", "8")
    # `say`, `count`, `missing`, `Polls` and the one that hangs
    await wait_until(lambda: len(policies(hello.pid)) == 5)
    living = policies(hello.pid)
    assert pid in {number for number, _ in living}
    # whatever they are at
    os.kill(hello.pid, 9)
    await wait_until(lambda: not alive(living))


async def test_beside_threads_that_the_import_left_policies_are_not_forked(room: Room) -> None:
    room.write(busy_code=BUSY)
    hello = await room.open_fork_server(room.order("busy_code:app"))
    assert "poller" in hello.result.fork_unsafe
    # a fork would be without that thread, and with whatever it held
    put(room, "polling", deadline_s=30.0, module="busy_code")
    assert (await answer(room)).error == "ValueError: no idea"
    [log] = (room.home / "logs" / "serve").glob("fork_server*")
    assert " function=busy_code:polling" in log.read_text()
    put(room, "polling", "2", deadline_s=30.0, module="busy_code")
    found = await answer(room, "2")
    assert (found.wanted, found.error) == ({"Echo": 1.0}, "")


async def test_policies_have_process_pools_of_their_own_which_end_with_them(room: Room) -> None:
    room.write(pooled_code=POOLED)
    hello = await room.open_fork_server(room.order("pooled_code:app"))
    pipes = set()
    for function in ("pooled", "pooled_too"):
        put(room, function, function, module="pooled_code")
        found = await answer(room, function)
        assert not found.error
        pipes.add(found.wanted["Echo"])
    assert len(pipes) == 2
    living = offspring(hello.pid)
    assert len(living) == 4
    assert room.fork_server is not None
    room.fork_server.send(ForkServerStop())
    await wait_until(lambda: not alive(living))
