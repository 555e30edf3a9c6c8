"""Room for models: whose a model is, loads within loads, loads that nobody wants, finalizers that fail."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from servd.app.model_pool import ModelPool
from servd.calls.replica_context import ReplicaContext, set_replica_context
from servd.calls.request_context import RequestContext, current_request
from servd.ground.ids import DeploymentID, ReplicaID
from servd.multiplex import multiplexed


@pytest.fixture(autouse=True)
def replica(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("servd.app.model_pool.LONGEST_WAIT_S", 0.02)
    set_replica_context(ReplicaContext(ReplicaID(DeploymentID("d", "app"), "abcdef")))
    yield
    set_replica_context(None)


async def as_request(work: Any, deadline_s: float | None = None) -> Any:
    """The work of one request, in a task and a context of its own, as in a replica."""

    async def serve() -> Any:
        deadline = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
        request = RequestContext("r", deadline=deadline)
        current_request.set(request)
        try:
            async with asyncio.timeout(5):
                return await work
        finally:
            request.end()

    return await asyncio.create_task(serve())


class Holder:
    """Loaders that need other models, that wait for `go`, that give what cannot be unloaded."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.given_up: list[str] = []

    @multiplexed(max_num_models_per_replica=1)
    async def one(self, model_id: str) -> Any:
        return await self._load(model_id, self.one)

    @multiplexed(max_num_models_per_replica=2)
    async def two(self, model_id: str) -> Any:
        return await self._load(model_id, self.two)

    async def _load(self, model_id: str, other: Any) -> Any:
        if model_id == "slow":
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.given_up.append(model_id)
                raise
        if model_id == "exits":
            return Exits()
        return "ensemble of " + await other("base") if model_id == "ensemble" else model_id

    def held(self) -> list[tuple[str, ...]]:
        return [pool.model_ids() for pool in self.__dict__["__servd_kept__"].values()]


class Exits:
    def __del__(self) -> None:
        raise SystemExit(3)


class Loads:
    @classmethod
    @multiplexed
    async def model(cls, model_id: str) -> str:
        return f"{cls.__name__} {model_id}"


class Inherits(Loads):
    pass


async def test_class_methods_have_models_for_each_class() -> None:
    asked: list[Any] = [Loads.model, Inherits.model, Inherits().model]
    assert [await as_request(ask("m")) for ask in asked] == ["Loads m", "Inherits m", "Inherits m"]


async def test_a_model_that_a_task_asked_for_after_its_request_is_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.app.model_pool.LONGEST_WAIT_S", 60)
    holder, go_on = Holder(), asyncio.Event()
    left: list[asyncio.Task[Any]] = []

    async def in_the_background() -> Any:
        await go_on.wait()
        return await holder.one("a")

    async def handler() -> None:
        left.append(asyncio.create_task(in_the_background()))

    await as_request(handler())
    go_on.set()
    assert await left[0] == "a"
    assert await as_request(holder.one("b")) == "b"


@pytest.mark.parametrize("room", ["one", "two"])
async def test_a_loader_may_ask_for_another_model(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.app.model_pool.LONGEST_WAIT_S", 60)
    holder = Holder()
    model = getattr(holder, room)
    assert await as_request(model("ensemble")) == "ensemble of base"
    assert holder.held() == [("ensemble",) if room == "one" else ("base", "ensemble")]
    # what the loader asked for is in nobody's use
    answers = [await as_request(model(model_id)) for model_id in ("x", "y")]
    assert answers == ["x", "y"]
    assert holder.held() == [("y",) if room == "one" else ("x", "y")]


async def test_a_request_waits_for_the_load_of_another_without_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.app.model_pool.LONGEST_WAIT_S", 0)
    looks = 0
    look = ModelPool._victim

    def counted(pool: ModelPool, is_over: bool) -> str | None:
        nonlocal looks
        looks += 1
        return look(pool, is_over)

    monkeypatch.setattr(ModelPool, "_victim", counted)
    holder = Holder()
    slow = asyncio.create_task(as_request(holder.one("slow")))
    other = asyncio.create_task(as_request(holder.one("other")))
    for _ in range(100):
        await asyncio.sleep(0)
    assert looks < 5
    holder.go.set()
    assert [await slow, await other] == ["slow", "other"]


async def test_a_load_that_nobody_wants_any_more_gives_its_room_up() -> None:
    holder = Holder()
    with pytest.raises(TimeoutError):
        await as_request(holder.one("slow"), deadline_s=0.01)
    assert holder.given_up == []
    assert await as_request(holder.one("other")) == "other"
    assert holder.given_up == ["slow"]


async def test_a_finalizer_may_raise_anything() -> None:
    holder = Holder()

    async def ask(model_id: str) -> None:
        await holder.one(model_id)

    await as_request(ask("exits"))
    await as_request(ask("other"))
    assert holder.held() == [("other",)]
