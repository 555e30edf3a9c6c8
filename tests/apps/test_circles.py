"""Handle calls that call each other: circles, depth, and what a cancelled call takes with it."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import servd
from servd.exceptions import BackPressureError, RequestCancelledError, ServdError
from servd.handle import DeploymentHandle
from tests.system.running_daemon import eventually

pytestmark = pytest.mark.usefixtures("port")


@servd.deployment
class Recursive:
    async def down(self, levels: int) -> int:
        own = servd.get_deployment_handle("Recursive")
        return 0 if not levels else 1 + await own.down.remote(levels - 1)

    async def later(self, path: str) -> str:
        own = servd.get_deployment_handle("Recursive")

        async def call() -> None:
            Path(path).write_text(str(await own.down.remote(0)))

        self.task = asyncio.get_running_loop().create_task(call_after(call()))
        return "left running"


async def call_after(work: Any) -> None:
    """Let the handler end first."""
    for _ in range(10):
        await asyncio.sleep(0)
    await work


@servd.deployment(max_ongoing_requests=1)
class There:
    def __init__(self, app: str) -> None:
        self.back = servd.get_deployment_handle("AndBack", app)

    async def go(self, turns: int) -> int:
        return turns if not turns else await self.back.go.remote(turns - 1)


@servd.deployment(max_ongoing_requests=1)
class AndBack:
    def __init__(self, there: DeploymentHandle) -> None:
        self.there = there

    async def go(self, turns: int) -> int:
        return turns if not turns else await self.there.go.remote(turns - 1)


def test_a_call_of_itself_with_one_slot_is_refused() -> None:
    handle = servd.run(Recursive.options(max_ongoing_requests=1).bind(), route_prefix=None)
    assert handle.down.remote(0).result(20) == 0
    with pytest.raises(ServdError, match="default_Recursive -> default_Recursive"):
        handle.down.remote(1).result(20)
    assert handle.down.remote(0).result(20) == 0


def test_a_circle_holds_every_slot_only_when_it_does() -> None:
    handle = servd.run(Recursive.options(max_ongoing_requests=4).bind(), route_prefix=None)
    assert handle.down.remote(3).result(20) == 3
    with pytest.raises(ServdError, match="can never run"):
        handle.down.remote(4).result(20)


def test_a_circle_over_two_deployments() -> None:
    handle = servd.run(AndBack.bind(There.bind("pair")), name="pair", route_prefix=None)
    assert handle.go.remote(1).result(20) == 0
    with pytest.raises(ServdError, match="pair_AndBack -> pair_There -> pair_AndBack"):
        handle.go.remote(2).result(20)
    assert handle.go.remote(1).result(20) == 0


def test_what_a_handler_leaves_running_is_in_no_circle(tmp_path: Path) -> None:
    handle = servd.run(Recursive.options(max_ongoing_requests=1).bind(), route_prefix=None)
    assert handle.later.remote(str(tmp_path / "said")).result(20) == "left running"
    assert eventually(lambda: (tmp_path / "said").exists() and (tmp_path / "said").read_text()) == "0"


def test_calls_without_end_stop_at_depth_64() -> None:
    handle = servd.run(Recursive.bind(), route_prefix=None)
    # the first call is one deep
    assert handle.down.remote(63).result(20) == 63
    with pytest.raises(ServdError, match="64"):
        handle.down.remote(64).result(20)
    with pytest.raises(ServdError, match="64"):
        handle.down.remote(10_000).result(20)
    assert handle.down.remote(0).result(20) == 0


def test_many_calls_without_end_do_not_wait_for_each_other() -> None:
    handle = servd.run(Recursive.options(max_ongoing_requests=100).bind(), route_prefix=None)
    # each stays below the depth, together they hold every slot
    for call in [handle.down.remote(10_000) for _ in range(5)]:
        with pytest.raises(ServdError, match=r"can never run|deeper than 64"):
            call.result(20)
    assert handle.down.remote(10).result(20) == 10


@servd.deployment
class Slow:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    async def hold(self, name: str) -> None:
        path = os.path.join(self.folder, name)
        Path(f"{path}.begun").touch()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            Path(f"{path}.cancelled").touch()
            raise

    def ping(self) -> str:
        return "pong"


@servd.deployment
class Parent:
    def __init__(self, slow: DeploymentHandle) -> None:
        self.slow = slow

    async def hold_all(self) -> Any:
        awaited, unawaited = self.slow.hold.remote("awaited"), self.slow.hold.remote("unawaited")
        self.kept = unawaited
        return await awaited


def test_cancelling_a_call_cancels_the_calls_it_made(tmp_path: Path) -> None:
    handle = servd.run(Parent.bind(Slow.bind(str(tmp_path))), route_prefix=None)
    call = handle.hold_all.remote()
    names = ("awaited", "unawaited")
    eventually(lambda: all((tmp_path / f"{name}.begun").exists() for name in names))
    call.cancel()
    with pytest.raises(RequestCancelledError):
        call.result(20)
    eventually(lambda: all((tmp_path / f"{name}.cancelled").exists() for name in names))


def test_a_full_line_pushes_back(tmp_path: Path) -> None:
    slow = Slow.options(max_ongoing_requests=1, max_queued_requests=2)
    servd.run(slow.bind(str(tmp_path)), name="small", route_prefix=None)
    handle = servd.get_app_handle("small")
    first = handle.hold.remote("first")
    eventually(lambda: (tmp_path / "first.begun").exists())
    waiting = [handle.hold.remote("waiting"), handle.hold.remote("waiting")]
    with pytest.raises(BackPressureError, match="2 requests waiting, 2 allowed"):
        handle.hold.remote("refused").result(20)
    for call in (*waiting, first):
        call.cancel()
        with pytest.raises(RequestCancelledError):
            call.result(20)
    assert handle.ping.remote().result(20) == "pong"
    assert not (tmp_path / "refused.begun").exists()


def test_a_sync_handle_waits_until_a_replica_is_chosen(tmp_path: Path) -> None:
    slow = Slow.options(max_ongoing_requests=1)
    handle = servd.run(slow.bind(str(tmp_path)), name="small", route_prefix=None)
    first = handle.hold.remote("first")
    eventually(lambda: (tmp_path / "first.begun").exists())
    # the first one to be rejected: only then the caller knows that the replica is full
    rejected = handle.ping.remote()
    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(lambda: handle.ping.remote().result(20))
        with pytest.raises(TimeoutError):
            blocked.result(0.1)
        first.cancel()
        assert blocked.result(20) == "pong"
    assert rejected.result(20) == "pong"
