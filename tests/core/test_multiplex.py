"""Models in one replica: loaded once, evicted by age, never while a request uses them."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from servd.app import model_pool
from servd.app.model_pool import loaded_model_ids, unload_all
from servd.calls.replica_context import ReplicaContext, set_replica_context
from servd.calls.request_context import RequestContext, current_request
from servd.ground.ids import DeploymentID, ReplicaID
from servd.multiplex import multiplexed

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
def replica(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # holders of earlier tests are garbage in circles, and other files leave some that live on
    gc.collect()
    log.clear()
    monkeypatch.setattr(model_pool, "_pools", weakref.WeakSet())
    set_replica_context(ReplicaContext(ReplicaID(DeploymentID("d", "app"), "abcdef")))
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
    assert loaded_model_ids() == ("a", "c")
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


class Twins:
    @staticmethod
    def named(word: str, limit: int = 2) -> Any:
        @multiplexed(max_num_models_per_replica=limit)
        async def load(self: Any, model_id: str) -> str:
            return f"{word} {model_id}"

        return load


Twins.a, Twins.b = Twins.named("a"), Twins.named("b")  # type: ignore[attr-defined]


async def test_pools_belong_to_the_function_not_to_its_name() -> None:
    twins: Any = Twins()
    assert [await twins.a("m"), await twins.b("m")] == ["a m", "b m"]


async def as_request(work: Any, deadline_s: float | None = None) -> Any:
    """The work of one request, in a task and a context of its own, as in a replica."""

    async def serve() -> Any:
        deadline = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
        request = RequestContext("r", deadline=deadline)
        current_request.set(request)
        try:
            return await work
        finally:
            request.end()

    return await asyncio.create_task(serve())


async def test_a_request_may_use_more_models_than_there_is_room_for() -> None:
    holder = Holder()

    async def ensemble() -> list[str]:
        one_by_one = [await holder.get_model(model_id) for model_id in ("a", "b", "c")]
        together = await asyncio.gather(*(holder.get_model(model_id) for model_id in ("d", "e", "f")))
        assert "del a" not in log, "it is used until the request ends"
        return [model.model_id for model in (*one_by_one, *together)]

    assert await asyncio.wait_for(as_request(ensemble()), 5) == ["a", "b", "c", "d", "e", "f"]
    await turns()
    assert len(holder_ids(holder)) == 2
    await asyncio.to_thread(lambda: None)
    assert "del a" in log


def holder_ids(holder: Holder) -> tuple[str, ...]:
    (pool,) = holder.__dict__["__servd_kept__"].values()
    return pool.model_ids()  # type: ignore[no-any-return]


async def test_requests_that_wait_for_each_others_models_get_them() -> None:
    holder = Holder()
    both = asyncio.Barrier(2)

    async def two(first: str, second: str) -> list[str]:
        model = await holder.get_model(first)
        await both.wait()
        return [model.model_id, (await holder.get_model(second)).model_id]

    answers = asyncio.gather(as_request(two("a", "c")), as_request(two("b", "d")))
    assert await asyncio.wait_for(answers, 5) == [["a", "c"], ["b", "d"]]


@pytest.mark.parametrize("way", ["wait_for", "gather", "task"])
async def test_a_model_that_a_task_of_the_request_asked_for_is_the_requests(way: str) -> None:
    holder = Holder()
    go = asyncio.Event()

    async def handler() -> None:
        if way == "wait_for":
            await asyncio.wait_for(holder.get_model("a"), 5)
        elif way == "gather":
            await asyncio.gather(holder.get_model("a"))
        else:
            await asyncio.create_task(holder.get_model("a"))
        await go.wait()

    busy = asyncio.create_task(as_request(handler()))
    await turns()
    await as_request(holder.get_model("b"))
    await as_request(holder.get_model("c"))
    assert log == ["load a", "load b", "del b", "load c"]
    go.set()
    await busy


@pytest.mark.parametrize("end", ["deadline", "client"])
async def test_a_load_does_not_end_with_the_first_that_asked(end: str) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    @multiplexed(max_num_models_per_replica=1)
    async def load(model_id: str) -> str:
        assert current_request.get().deadline is None
        started.set()
        await go.wait()
        return model_id

    first = asyncio.create_task(as_request(load("m"), deadline_s=0.02 if end == "deadline" else None))
    await started.wait()
    second = asyncio.create_task(as_request(load("m")))
    await turns()
    if end == "client":
        first.cancel()
    with pytest.raises((TimeoutError, asyncio.CancelledError)):
        await first
    go.set()
    assert await asyncio.wait_for(second, 5) == "m"


async def test_a_load_that_nobody_waits_for_takes_no_room() -> None:
    holder = Holder()
    go = asyncio.Event()

    async def long_request(model_id: str) -> None:
        await holder.get_model(model_id)
        await go.wait()

    busy = [asyncio.create_task(as_request(long_request(model_id))) for model_id in ("a", "b")]
    await turns()
    gone = asyncio.create_task(as_request(holder.get_model("c")))
    await turns()
    gone.cancel()
    await turns()
    go.set()
    await asyncio.gather(*busy)
    await turns()
    assert log == ["load a", "load b"]


async def test_the_wait_for_models_in_use_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.app.model_pool.LONGEST_WAIT_S", 0.02)
    holder = Holder()
    go = asyncio.Event()

    async def stream(model_id: str) -> str:
        model = await holder.get_model(model_id)
        await go.wait()
        return model.model_id

    busy = [asyncio.create_task(as_request(stream(model_id))) for model_id in ("a", "b")]
    await turns()
    assert (await asyncio.wait_for(as_request(holder.get_model("c")), 5)).model_id == "c"
    assert log == ["load a", "load b", "load c"]
    go.set()
    assert await asyncio.gather(*busy) == ["a", "b"]


async def test_all_models_end_with_the_replica_also_those_in_use() -> None:
    holder = Holder()
    go = asyncio.Event()

    async def stream() -> None:
        for model_id in ("p", "q", "s"):
            await holder.get_model(model_id)
        await go.wait()

    busy = asyncio.create_task(as_request(stream()))
    await turns()
    await unload_all()
    assert sorted(line for line in log if line.startswith("del")) == ["del p", "del q", "del s"]
    go.set()
    await busy
    await turns()
    assert len([line for line in log if line.startswith("del")]) == 3
