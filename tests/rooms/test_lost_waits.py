"""Replicas in which a library waits for its threads, which the fork has left behind: a library that is believed to survive it,
and does not.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from servd.wire.messages import ReplicaReport
from tests.rooms.replica_room import Room, a_room

pytestmark = pytest.mark.slow

APP = """
import asyncio, threading, time
import numpy as np
import polars as pl
from servd import deployment
from servd.replica.native import fork_safety, lost_waits

# a wrong claim, and little patience
fork_safety.SURVIVE["_polars_runtime"] = "not so"
lost_waits.LOOK_S, lost_waits.SURE_S = 0.1, 0.3

def work():
    return pl.DataFrame({"a": [1, 2, 3]}).lazy().filter(pl.col("a") > 1).select(pl.col("a").sum()).collect().item()

AT_IMPORT = work()

class Base:
    async def on_the_loop(self):
        return work()
    async def on_a_thread(self):
        return await asyncio.to_thread(work)
    def sync(self):
        return work()
    def compute(self, seconds):
        ones, limit = np.ones((300, 300)), time.monotonic() + seconds
        while time.monotonic() < limit:
            ones @ ones
    def sleep(self, seconds):
        time.sleep(seconds)
    def lock(self, seconds):
        held = threading.Lock()
        held.acquire()
        threading.Timer(seconds, held.release).start()
        held.acquire()
    async def wait(self, seconds):
        await asyncio.sleep(seconds)
    async def at_import(self):
        return AT_IMPORT

@deployment
class Model(Base):
    pass

@deployment
class Hooked(Base):
    def __init__(self):
        work()

@deployment
class Sync:
    def __init__(self, *others):
        work()
    def __call__(self):
        pass

app = Sync.bind(Model.bind(), Hooked.bind())
"""


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with a_room() as made:
        made.write(shop=APP)
        hello = await made.open_fork_server(made.order("shop:app"))
        assert hello.result is not None
        assert (hello.result.error, hello.result.fork_unsafe) == ("", "")
        yield made


async def test_a_wait_that_nobody_can_end_is_told_with_its_stack(room: Room) -> None:
    calls = []
    for method in ("sync", "on_the_loop", "on_a_thread"):
        start = room.start_of("Model", method)
        await room.running(start)
        calls.append(asyncio.create_task(room.call("Model", method)))
        report = await room.report(start.replica_id, lambda r: r.lost_wait)
        assert report.lost_wait.startswith("waits in _polars_runtime"), method
        assert "for a thread that the fork left behind, called in shop.py:" in report.lost_wait
        assert "in work\n    return" in report.stack
    for name in ("Hooked", "Sync"):
        start = room.start_of(name)
        await room.fork(start)
        report = await room.report(start.replica_id, lambda r: r.lost_wait)
        assert report.phase == "starting"
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_what_is_merely_slow_is_not_told(room: Room) -> None:
    start = room.start_of("Model")
    await room.running(start)
    methods = ("compute", "sleep", "lock", "wait")
    await asyncio.gather(*(room.call("Model", method, 0.6) for method in methods))
    heard = []

    def has_ended(report: ReplicaReport) -> bool:
        heard.append(report)
        return report.phase == "running" and not report.ongoing and any(one.ongoing for one in heard)

    await room.report(start.replica_id, has_ended)
    assert not [report for report in heard if report.lost_wait]
