"""Threads of sync handlers: how many, with what context, and what cancelling does."""

import asyncio
import contextvars
import threading

import pytest

from servd.replica.sync_threads import SyncThreads


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
