"""Whose a queue is: class methods, event loops one after another and at a time; what one item does to the others."""

import asyncio
from typing import Any

import pytest

from servd.app.batch_measures import batch_metrics
from servd.batching import batch


class Shared:
    @classmethod
    @batch(max_batch_size=2)
    async def name(cls, items: list[int]) -> list[str]:
        return [f"{cls.__name__} {item}" for item in items]

    @staticmethod
    @batch(max_batch_size=2)
    async def same(items: list[int]) -> list[int]:
        return items


class Inherits(Shared):
    pass


async def test_class_methods_have_a_queue_for_each_class() -> None:
    answers = await asyncio.gather(Shared.name(1), Inherits.name(2), Inherits().name(3))  # type: ignore[call-arg, arg-type]
    assert answers == ["Shared 1", "Inherits 2", "Inherits 3"]
    assert await asyncio.gather(Shared.same(1), Inherits().same(2)) == [1, 2]


@pytest.mark.parametrize("first", ["answered", "waiting", "running"])
def test_a_queue_outlives_the_loop_that_it_was_first_used_on(first: str) -> None:
    @batch(batch_wait_timeout_s=60)
    async def same(items: list[str]) -> list[str]:
        if items == ["running"]:
            await asyncio.Event().wait()
        return items

    async def ask(item: str, limit_s: float) -> str:
        async with asyncio.timeout(limit_s):
            return str(await same(item))

    if first != "waiting":
        same.set_batch_wait_timeout_s(0)
    if first == "answered":
        assert asyncio.run(ask(first, 5)) == first
    else:
        with pytest.raises(TimeoutError):
            asyncio.run(ask(first, 0.01))
    same.set_batch_wait_timeout_s(0)
    assert asyncio.run(ask("second", 5)) == "second"


async def test_a_queue_may_be_used_on_two_loops_at_a_time() -> None:
    @batch
    async def same(items: list[int]) -> list[int]:
        return items

    here = asyncio.create_task(same(1))
    assert await asyncio.to_thread(lambda: asyncio.run(same(2))) == 2
    assert await here == 1


async def test_a_stop_iteration_in_the_list_is_one_callers() -> None:
    @batch(max_batch_size=3, batch_wait_timeout_s=0.01)
    async def ends(items: list[int]) -> list[Any]:
        return [StopIteration() if item == 0 else item for item in items]

    bad, *good = await asyncio.gather(ends(0), ends(1), ends(2), return_exceptions=True)
    assert good == [1, 2]
    assert isinstance(bad, RuntimeError)


async def test_batches_are_measured() -> None:
    gate = asyncio.Event()

    @batch(max_batch_size=2)
    async def measured(items: list[int]) -> list[int]:
        await gate.wait()
        return items

    calls = asyncio.gather(*(measured(item) for item in range(3)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    def told() -> dict[str, Any]:
        name = "test_batches_are_measured.<locals>.measured"
        return {
            family.name.removeprefix("serve_"): dict(family.samples)[("replica", "r"), ("function_name", name)]
            for family in batch_metrics(replica="r")
        }

    assert (told()["batch_queue_length"], told()["batches_processed"]) == (1, 0)
    gate.set()
    assert await calls == [0, 1, 2]
    found = told()
    assert (found["batch_queue_length"], found["batches_processed"]) == (0, 2)
    total, buckets = found["actual_batch_size"]
    assert (total, buckets[:3]) == (3, (1, 1, 0))
    assert all(sum(found[name][1]) == 2 for name in ("batch_wait_time_ms", "batch_execution_time_ms"))
