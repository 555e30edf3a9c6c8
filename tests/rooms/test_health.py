"""Health checks of a replica: where they run, and what counts."""

import asyncio
import functools
import threading
from typing import Any

import pytest

from servd.observability.described import name_of
from servd.replica.health import HealthChecks
from tests.odd_errors import KINDS

checks_made: list[HealthChecks] = []


async def verdicts_of(check: Any, count: int, timeout_s: float = 5.0) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    enough = asyncio.Event()

    def note(failures: int, message: str) -> None:
        found.append((failures, message))
        if len(found) == count:
            enough.set()

    loop = asyncio.get_running_loop()
    checks = HealthChecks(loop, check, note, period_s=0.001, timeout_s=timeout_s)
    checks_made.append(checks)
    task = asyncio.create_task(checks.run())
    await asyncio.wait_for(enough.wait(), 5)
    task.cancel()
    await asyncio.wait([task])
    return found[:count]


def failing(results: list[bool], log: list[str]) -> Any:
    def check() -> None:
        log.append(threading.current_thread().name)
        if results.pop(0):
            raise ValueError("ill")

    return check


async def test_health_failures_add_up_and_a_success_resets() -> None:
    log: list[str] = []
    found = await verdicts_of(failing([True, True, False, True, *[False] * 999], log), 4)
    assert [failures for failures, _ in found] == [1, 2, 0, 1]
    assert (checks_made[-1].failed, checks_made[-1].took_ms.count >= 3) == (3, True)
    assert "ValueError: ill" in found[0][1]
    assert set(log) == {"health-check"}


async def test_an_async_check_runs_on_the_main_loop() -> None:
    async def check() -> None:
        assert threading.current_thread() is threading.main_thread()
        raise ValueError("ill")

    assert [failures for failures, _ in await verdicts_of(check, 2)] == [1, 2]
    assert await verdicts_of(functools.partial(check), 1) == await verdicts_of(check, 1)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    "kind", [*KINDS, StopIteration, GeneratorExit, SystemExit, asyncio.CancelledError], ids=name_of
)
async def test_whatever_a_check_raises_counts(kind: type[BaseException], is_async: bool) -> None:
    def check() -> None:
        raise kind("odd")

    async def async_check() -> None:
        check()

    found = await verdicts_of(async_check if is_async else check, 3)
    assert [failures for failures, _ in found] == [1, 2, 3]
    assert all(message for _, message in found)


async def test_a_check_that_hangs_counts_and_is_not_doubled() -> None:
    begun: list[int] = []
    release = threading.Event()

    def check() -> None:
        begun.append(1)
        release.wait(10)

    found = await verdicts_of(check, 3, timeout_s=0.01)
    release.set()
    assert [failures for failures, _ in found] == [1, 2, 3]
    assert "no answer within 0.01 s" in found[0][1]
    assert begun == [1]


@pytest.mark.parametrize("hangs", [False, True], ids=["pause", "check"])
async def test_shorter_times_hold_for_the_pause_and_the_check_that_are_under_way(hangs: bool) -> None:
    said = asyncio.Event()

    async def check() -> None:
        if hangs:
            await asyncio.Event().wait()

    def note(_failures: int, _message: str) -> None:
        said.set()

    checks = HealthChecks(asyncio.get_running_loop(), check, note, period_s=600.0, timeout_s=600.0)
    task = asyncio.create_task(checks.run())
    if not hangs:
        await asyncio.wait_for(said.wait(), 5)
        said.clear()
    await asyncio.sleep(0)
    checks.set_times(0.01, 0.01)
    await asyncio.wait_for(said.wait(), 5)
    task.cancel()
    await asyncio.wait([task])


async def test_without_a_check_a_turning_loop_is_well() -> None:
    assert await verdicts_of(None, 2) == [(0, ""), (0, "")]
