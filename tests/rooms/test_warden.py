"""What a replica tells the controller, and what it takes from it."""

import asyncio
import os
import re
import resource
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from servd.calls import pickling
from servd.calls.caller import Caller
from servd.calls.request_context import RequestContext
from servd.observability.loop_watch import LoopWatch
from servd.wire.messages import (
    CallerReport,
    DeploymentTargets,
    Endpoint,
    Routing,
    Subscribe,
)
from tests.fakes import wait_until
from tests.rooms.replica_room import LIMIT_S, Room, a_room

pytestmark = pytest.mark.slow

APP = """
import asyncio
from servd.app.deployment import make_deployment

class Inner:
    async def double(self, x):
        return 2 * x

class Outer:
    def __init__(self, inner):
        self.inner = inner
        self.gate = asyncio.Event()
        self.ill = False
    async def ask(self, x):
        return await self.inner.double.remote(x)
    async def wait(self):
        await self.gate.wait()
    async def go_on(self):
        self.gate.set()
    async def fall_ill(self):
        self.ill = True
    def check_health(self):
        if self.ill:
            raise ValueError("a cold")

class Slow:
    def __init__(self):
        import threading
        threading.Event().wait()

class Hung:
    async def __init__(self):
        open("waits", "w").close()
        await asyncio.Event().wait()
    async def __del__(self):
        open("told", "w").close()

class HungLater:
    async def reconfigure(self, config):
        open("waits", "w").close()
        await asyncio.Event().wait()
    def __del__(self):
        open("told", "w").close()

class Sync:
    def wait(self, seconds):
        import time
        time.sleep(seconds)

sync = make_deployment(Sync, {}).bind()
app = make_deployment(Outer, {}).bind(make_deployment(Inner, {}).bind())
slow = make_deployment(Slow, {}).bind()
hung = make_deployment(Hung, {}).bind()
hung_later = make_deployment(HungLater, {}).bind()
"""


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with a_room() as made:
        made.write(shop=APP)
        yield made


async def test_handles_inside_a_replica_subscribe_and_acknowledge(room: Room) -> None:
    await room.open_fork_server(room.order("shop:app"))
    inner, outer = room.start_of("Inner"), room.start_of("Outer")
    await room.running(inner)
    await room.running(outer)
    line = room.replicas[outer.replica_id]
    asked = asyncio.create_task(room.call("Outer", "ask", 4))
    assert await line.next(Subscribe) == Subscribe(("shop_Inner",))
    endpoint = Endpoint(inner.replica_id, inner.address)
    line.send(Routing(7, (), (DeploymentTargets("shop_Inner", "shop", endpoints=(endpoint,)),)))
    assert await asked == 8
    assert (await line.next(CallerReport)).generation == 7


async def test_a_new_controller_hears_everything_again(room: Room) -> None:
    await room.open_fork_server(room.order("shop:app"))
    outer = room.start_of("Outer", user_config="")
    forked = await room.running(outer)
    first = asyncio.create_task(room.call("Outer", "ask", 4))
    await room.replicas[outer.replica_id].next(Subscribe)
    room.replicas.pop(outer.replica_id).close()
    async with asyncio.timeout(LIMIT_S):
        while outer.replica_id not in room.replicas:
            room.greeted.clear()
            await room.greeted.wait()
    await room.replicas[outer.replica_id].next(Subscribe)
    report = await room.report(outer.replica_id, lambda r: r.phase == "running")
    assert (report.applied, room.hellos[outer.replica_id].pid) == ("v1", forked.pid)
    await room.call("Outer", "go_on")
    first.cancel()


async def test_counts_and_health_are_reported_as_they_change(room: Room) -> None:
    await room.open_fork_server(room.order("shop:app"))
    outer = room.start_of("Outer", health_check_period_s=0.01)
    await room.running(outer)
    waiting = [asyncio.create_task(room.call("Outer", "wait")) for _ in range(3)]
    await room.report(outer.replica_id, lambda r: r.ongoing == 3)
    await room.call("Outer", "go_on")
    await asyncio.gather(*waiting)
    await room.report(outer.replica_id, lambda r: r.ongoing == 0)
    await room.call("Outer", "fall_ill")
    report = await room.report(outer.replica_id, lambda r: r.health_failures >= 3)
    assert "ValueError: a cold" in report.health_message


async def test_a_sync_handler_that_does_not_return_while_others_wait_is_unwell(room: Room) -> None:
    await room.open_fork_server(room.order("shop:sync"))
    start = room.start_of("Sync", health_check_period_s=0.02, health_check_timeout_s=0.1)
    await room.running(start)
    alone = asyncio.create_task(room.call("Sync", "wait", 0.5))
    await alone
    calls = [asyncio.create_task(room.call("Sync", "wait", 60)) for _ in range(2)]
    report = await room.report(start.replica_id, lambda r: r.health_failures >= 3)
    assert "requests wait, and no thread of sync handlers comes free: blocked 0 s in shop.py:" in report.health_message
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


@pytest.mark.long
async def test_a_sync_handler_that_does_not_return_is_shown_with_its_stack(room: Room) -> None:
    await room.open_fork_server(room.order("shop:sync"))
    start = room.start_of("Sync")
    await room.running(start)
    call = asyncio.create_task(room.call("Sync", "wait", 60))
    report = await room.report(start.replica_id, lambda r: r.stack)
    assert re.match(r"blocked 5 s in shop.py:\d+\n", report.stack)
    assert "time.sleep(seconds)" in report.stack
    log = (room.home / "logs" / "serve" / f"deployment_shop_Sync_{start.replica_id}.log").read_text()
    assert "sync_threads_stuck blocked 5 s in shop.py:" in log
    assert report.health_failures == 0, "nobody waits for it"
    call.cancel()
    await asyncio.wait([call])


async def test_a_replica_that_is_drained_while_it_starts_leaves_at_once(room: Room) -> None:
    await room.open_fork_server(room.order("shop:slow"))
    start = room.start_of("Slow")
    await room.fork(start)
    await room.report(start.replica_id, lambda r: r.phase == "starting")
    room.set_goal(start, drain=True)
    assert await room.exited(start.replica_id) == 0


@pytest.mark.parametrize("name", ["Hung", "HungLater"])
async def test_an_instance_that_waits_in_its_start_is_told_of_its_end(room: Room, name: str) -> None:
    await room.open_fork_server(room.order(f"shop:{'hung' if name == 'Hung' else 'hung_later'}"))
    start = room.start_of(name, user_config="{}")
    await room.fork(start)
    await room.report(start.replica_id, lambda r: r.phase == "starting")
    await wait_until((room.app_dir / "waits").exists, LIMIT_S)
    room.set_goal(start, drain=True)
    assert await room.exited(start.replica_id) == 0
    assert (room.app_dir / "told").exists()


def test_a_stuck_loop_is_diagnosed() -> None:
    asked: list[Callable[[], None]] = []
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    watch = LoopWatch(asked.append, thread.ident or 0, stuck_after_s=5.0)
    assert [watch.look(now) for now in (10.0, 11.0, 14.9)] == ["", "", ""]
    stack = watch.look(41.2)
    assert stack.startswith("blocked 31 s in threading.py:")
    assert "waiter.acquire()" in stack
    asked.pop()()
    assert watch.look(42.0, asks=False) == ""
    assert asked == []
    assert watch.look(42.0) == ""
    assert len(asked) == 1
    gate.set()
    thread.join()


@pytest.mark.long
async def test_a_replica_with_few_descriptors_left_serves_its_callers_and_new_ones_wait(room: Room) -> None:
    await room.open_fork_server(room.order("shop:sync"))
    sync = room.start_of("Sync")
    forked = await room.running(sync)
    await room.call("Sync", "wait", 0)
    path = Path(sync.address.removeprefix("ipc://"))
    before = resource.prlimit(forked.pid, resource.RLIMIT_NOFILE)
    # not its highest number: those in between need not be taken
    count = len(os.listdir(f"/proc/{forked.pid}/fd"))
    resource.prlimit(forked.pid, resource.RLIMIT_NOFILE, (count + 2, before[1]))
    await wait_until(lambda: not path.exists(), LIMIT_S)
    late = Caller(asyncio.get_running_loop(), "late", lambda _: None)
    endpoint = Endpoint(sync.replica_id, sync.address)
    late.apply_routing(Routing(1, (), (DeploymentTargets("shop_Sync", "shop", endpoints=(endpoint,)),)))
    calls = [
        late.submit_call("shop_Sync", "wait", pickling.dumps(((0,), {})), RequestContext("r", "/", "shop"))
        for _ in range(3)
    ]
    await room.call("Sync", "wait", 0)
    resource.prlimit(forked.pid, resource.RLIMIT_NOFILE, before)
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*calls)
    assert path.exists()
    late.close()
