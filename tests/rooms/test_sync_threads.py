"""Threads of sync handlers: how many, with what context, and what cancelling does."""

import asyncio
import contextvars
import threading

import pytest

from servd.ground.clock import SystemClock
from servd.observability.described import name_of
from servd.observability.loop_watch import blocked
from servd.replica.sync_threads import SyncThreads
from tests.odd_errors import KINDS


async def test_sync_jobs_run_one_at_a_time_per_thread() -> None:
    threads = SyncThreads(2)
    gate, running, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 2:
                gate.set()
        gate.wait(5)
        with lock:
            running -= 1

    await asyncio.gather(*(threads.run(job) for _ in range(6)))
    assert most == 2


async def test_sync_jobs_see_the_context_and_the_loop_stays_alive() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    release = threading.Event()
    task = asyncio.create_task(SyncThreads(1).run(lambda: (release.wait(5), variable.get())))
    await asyncio.sleep(0)
    release.set()
    assert await task == (True, 5)


async def test_a_cancelled_sync_job_holds_its_slot_until_it_ends() -> None:
    threads = SyncThreads(1)
    release, begun = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        release.wait(5)

    first = asyncio.create_task(threads.run(job))
    never = asyncio.create_task(threads.run(pytest.fail))
    await asyncio.to_thread(begun.wait, 5)
    first.cancel()
    never.cancel()
    await asyncio.wait([never])
    assert not first.done()
    release.set()
    await asyncio.wait([first])
    assert (first.cancelled(), never.cancelled()) == (True, True)
    assert await threads.run(lambda: 3) == 3


async def test_threads_say_since_when_all_are_occupied() -> None:
    threads = SyncThreads(2)
    gates = [threading.Event() for _ in range(3)]
    began = SystemClock().now()
    jobs = [asyncio.create_task(threads.run(gate.wait, 5)) for gate in gates[:1]]
    await asyncio.sleep(0)
    assert threads.occupied() is None
    jobs += [asyncio.create_task(threads.run(gate.wait, 5)) for gate in gates[1:]]
    await asyncio.sleep(0)
    assert threads.waiting == 1
    since, ident = threads.occupied() or (0.0, 0)
    assert began <= since <= SystemClock().now()
    assert "gate.wait" not in blocked(ident, 7.0).splitlines()[0]
    assert "threading.py" in blocked(ident, 7.0)
    gates[0].set()
    await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
    again, _ = threads.occupied() or (0.0, 0)
    assert again > since, "the job that waited has begun"
    for gate in gates:
        gate.set()
    await asyncio.gather(*jobs)
    assert threads.occupied() is None


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
async def test_an_odd_error_reaches_whoever_waits(kind: type[Exception]) -> None:
    def fail() -> None:
        raise kind("odd")

    with pytest.raises(kind):
        await asyncio.wait_for(SyncThreads(1).run(fail), 5)
