"""Models in one replica: loaded once, evicted by age, never while a request uses them."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from servd.calls.replica_context import ReplicaContext, set_replica_context
from servd.calls.request_context import RequestContext, current_request
from servd.multiplex import loaded_model_ids, multiplexed

log: list[str] = []


class Model:
    def __init__(self, model_id: str) -> None:
        self.model_id = model_id

    def __del__(self) -> None:
        log.append(f"del {self.model_id}")


class Holder:
    @multiplexed(max_num_models_per_replica=2)
    async def get_model(self, model_id: str) -> Model:
        log.append(f"load {model_id}")
        await asyncio.sleep(0)
        if model_id == "broken":
            raise ValueError("no such model")
        return Model(model_id)


@pytest.fixture(autouse=True)
def replica() -> Iterator[None]:
    log.clear()
    set_replica_context(ReplicaContext("app_d", "app_d#abcdef"))
    yield
    set_replica_context(None)


async def request(holder: Holder, model_id: str) -> str:
    """One request, in a task of its own as in a replica."""

    async def handler() -> str:
        return (await holder.get_model(model_id)).model_id

    return await asyncio.create_task(handler())


async def test_the_least_recent_model_goes_first() -> None:
    holder = Holder()
    for model_id in ("a", "b", "a", "c"):
        assert await request(holder, model_id) == model_id
    assert log == ["load a", "load b", "del b", "load c"]
    assert loaded_model_ids()[-2:] == ("a", "c")
    del holder


async def test_one_model_loads_once_and_two_at_a_time() -> None:
    holder = Holder()
    await asyncio.gather(*(request(holder, model_id) for model_id in ("a", "a", "b", "b")))
    assert log == ["load a", "load b"]


async def turns() -> None:
    """Let everybody go as far as they can: nothing here waits for time or another process."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_models_in_use_stay_and_the_load_waits() -> None:
    holder = Holder()
    go = asyncio.Event()

    async def long_request(model_id: str) -> None:
        await holder.get_model(model_id)
        await go.wait()

    busy = [asyncio.create_task(long_request(model_id)) for model_id in ("a", "b")]
    await turns()
    third = asyncio.create_task(request(holder, "c"))
    await turns()
    assert log == ["load a", "load b"]
    go.set()
    assert await third == "c"
    await asyncio.gather(*busy)
    assert log[2:] == ["del a", "load c"]


async def test_more_loads_than_room_take_turns() -> None:
    holder = Holder()
    ids = ["a", "b", "c", "d", "e"]
    assert await asyncio.gather(*(request(holder, model_id) for model_id in ids)) == ids


async def test_the_deadline_bounds_the_wait() -> None:
    holder = Holder()

    async def long_request(model_id: str) -> None:
        await holder.get_model(model_id)
        await asyncio.Event().wait()

    busy = [asyncio.create_task(long_request(model_id)) for model_id in ("a", "b")]
    await turns()
    current_request.set(RequestContext(deadline=asyncio.get_running_loop().time() + 0.02))
    with pytest.raises(TimeoutError, match="in use"):
        await request(holder, "c")
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)


async def test_a_failing_loader_keeps_nothing() -> None:
    holder = Holder()
    for _ in range(2):
        with pytest.raises(ValueError, match="no such model"):
            await request(holder, "broken")
    assert log == ["load broken", "load broken"]
    assert await request(holder, "a") == "a"


async def test_async_finalizers_are_awaited_once() -> None:
    ended: list[str] = []

    class Slow:
        async def __del__(self) -> None:
            await asyncio.sleep(0)
            ended.append("once")

    @multiplexed(max_num_models_per_replica=1)
    async def load(model_id: str) -> Any:
        return Slow() if model_id == "slow" else model_id

    async def ask(model_id: str) -> None:
        await load(model_id)

    await asyncio.create_task(ask("slow"))
    await asyncio.create_task(ask("other"))
    assert ended == ["once"]


async def test_wrong_calls() -> None:
    holder = Holder()
    with pytest.raises(TypeError):
        await holder.get_model()
    with pytest.raises(TypeError):
        await holder.get_model("a", "b")
    with pytest.raises(TypeError):
        await holder.get_model(1)
    with pytest.raises(ValueError, match="empty"):
        await holder.get_model("")
    set_replica_context(None)
    with pytest.raises(RuntimeError, match="replica"):
        await holder.get_model("a")


@pytest.mark.parametrize(("limit", "error"), [("x", TypeError), (1.5, TypeError), (0, ValueError), (-2, ValueError)])
def test_wrong_limits(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        multiplexed(max_num_models_per_replica=limit)


@pytest.mark.parametrize("target", [1, len, lambda model_id: model_id])
def test_only_async_functions_of_an_id(target: Any) -> None:
    with pytest.raises(TypeError):
        multiplexed(target)


def test_no_other_number_of_parameters() -> None:
    async def three(a: Any, b: Any, c: Any) -> None: ...

    async def none() -> None: ...

    for target in (three, none):
        with pytest.raises(TypeError):
            multiplexed(target)
