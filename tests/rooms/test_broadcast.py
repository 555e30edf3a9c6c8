"""Calls to every replica of a deployment, over real sockets: who gets them, and what becomes of those that cannot be answered."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

import servd
from servd.calls.pickling import dumps
from servd.calls.process import install_process, remove_process
from servd.calls.request_context import NO_REQUEST
from servd.exceptions import DeploymentUnavailableError, ReplicaDiedError, ServdError, UnknownDeploymentError
from servd.ground.ids import DeploymentID
from servd.handle import DeploymentHandle, RayServeSyncHandle
from servd.wire.messages import DeploymentTargets, Routing
from tests.fakes import Room

LIMIT_S = 10.0


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with Room() as made:
        install_process(made.caller, asyncio.get_running_loop())
        yield made
        remove_process()


def a_handle() -> Any:
    return DeploymentHandle(DeploymentID("Echo", "app"))


def a_replica(room: Room, name: str, **options: Any) -> str:
    """One that says its name, can fail and can wait for ever."""

    async def say(word: str = "") -> str:
        return name + word

    async def fail_in(which: str) -> str:
        if which == name:
            raise KeyError(name)
        return name

    async def wait() -> None:
        await asyncio.Event().wait()

    return room.replica(methods={"say": say, "fail_in": fail_in, "wait": wait}, **options)


async def results(handle: Any, *call: Any, **options: Any) -> list[Any]:
    async with asyncio.timeout(LIMIT_S):
        found: list[Any] = await handle.broadcast(*call).results_async(**options)
        return found


async def test_every_replica_is_called_also_one_that_is_full(room: Room) -> None:
    room.route(a_replica(room, "a", limit=1), a_replica(room, "b", limit=1), a_replica(room, "c"))
    busy = [room.caller.submit_call("app_Echo", "wait", dumps(((), {})), NO_REQUEST) for _ in range(9)]
    assert sorted(await results(a_handle(), "say", "!")) == ["a!", "b!", "c!"]
    # neither slots nor tickets are left behind
    for ticket in busy:
        ticket.cancel()
    assert sorted(await results(a_handle(), "say")) == ["a", "b", "c"]
    assert await room.caller.submit_call("app_Echo", "say", dumps(((), {})), NO_REQUEST)


async def test_a_call_waits_until_it_is_known_where_the_replicas_are(room: Room) -> None:
    address = a_replica(room, "a")
    called = asyncio.create_task(results(a_handle(), "say"))
    await asyncio.sleep(0)
    room.route(address)
    assert await called == ["a"]


async def test_an_error_is_raised_or_stands_in_its_place(room: Room) -> None:
    room.route(a_replica(room, "a"), a_replica(room, "b"))
    with pytest.raises(KeyError, match="b"):
        await results(a_handle(), "fail_in", "b")
    found = await results(a_handle(), "fail_in", "b", return_exceptions=True)
    assert sorted(type(one).__name__ for one in found) == ["KeyError", "str"]


async def test_a_call_goes_nowhere_else(room: Room) -> None:
    leaves, dies = a_replica(room, "leaves"), a_replica(room, "dies")
    room.route(leaves, dies, a_replica(room, "stays"))
    waiting = a_handle().broadcast("wait")
    assert len(await results(a_handle(), "say")) == 3
    room.servers[leaves].drain()
    found = await results(a_handle(), "say", return_exceptions=True)
    assert sorted(str(type(one).__name__) for one in found) == ["ReplicaDiedError", "str", "str"]
    room.servers[dies].close()
    with pytest.raises(TimeoutError, match="the calls go on"):
        await waiting.results_async(timeout_s=0.05)
    found = await results(a_handle(), "say", return_exceptions=True)
    assert "stays" in found
    assert all(isinstance(one, ReplicaDiedError) for one in found if one != "stays")


async def test_a_deployment_without_replicas(room: Room) -> None:
    room.route()
    assert await results(a_handle(), "say") == []
    away = DeploymentTargets("app_Away", unavailable="its start failed")
    room.caller.apply_routing(Routing(9, targets=(away, DeploymentTargets("app_Not", exists=False))))
    with pytest.raises(DeploymentUnavailableError, match="its start failed"):
        await results(DeploymentHandle(DeploymentID("Away", "app")), "say")


async def test_one_that_does_not_exist(room: Room) -> None:
    called = asyncio.create_task(results(DeploymentHandle(DeploymentID("Not", "app")), "say"))
    await asyncio.sleep(0)
    room.caller.apply_routing(Routing(1, targets=(DeploymentTargets("app_Not", exists=False),)))
    with pytest.raises(UnknownDeploymentError, match="app_Not does not exist"):
        await called


async def test_other_calls_are_of_a_method_of_that_name(room: Room) -> None:
    async def broadcast(word: str) -> str:
        return f"told {word}"

    room.route(room.replica(methods={"broadcast": broadcast}))
    assert await a_handle().broadcast.remote("it") == "told it"
    assert await a_handle().broadcast.options(multiplexed_model_id="m").remote("it") == "told it"
    with pytest.raises(RuntimeError, match="results_async"):
        a_handle().broadcast("broadcast", "x").results()


def test_in_one_process() -> None:
    @servd.deployment
    class Cache:
        def __init__(self) -> None:
            self.kept = 7

        def empty(self, leave: int) -> int:
            self.kept = leave
            return threading.get_native_id()

        def __call__(self) -> int:
            return self.kept

    handle = servd.run(Cache.bind(), local=True)
    assert isinstance(handle, RayServeSyncHandle)
    response = handle.broadcast("empty", leave=1)
    assert len(response.results(timeout_s=LIMIT_S)) == 1
    assert handle.remote().result() == 1
    with pytest.raises(ServdError, match="no method 'nothing'"):
        handle.broadcast("nothing").results(timeout_s=LIMIT_S)
    servd.delete("default")
