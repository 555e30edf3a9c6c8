"""The loop of a process that runs user code goes on when a task or a callback wants to end the interpreter."""

import asyncio
import gc
import sys

import pytest

from servd.ground.event_loop import load, run


async def leave(kind: type[BaseException]) -> None:
    await asyncio.sleep(0)
    raise kind(3)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_task_that_leaves_fails_whoever_awaits_it(kind: type[BaseException]) -> None:
    async def main() -> str:
        others = [asyncio.create_task(asyncio.sleep(0, number)) for number in range(20)]
        with pytest.raises(kind):
            await asyncio.gather(leave(kind))
        with pytest.raises(kind):
            async with asyncio.TaskGroup() as group:
                group.create_task(leave(kind))
        assert await asyncio.gather(*others) == list(range(20))
        return "went on"

    told: list[BaseException] = []
    assert run(main(), on_exit=told.append) == "went on"
    assert {type(error) for error in told} == {kind}


def test_a_callback_that_leaves_is_told() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(sys.exit, 3)
        for _ in range(3):
            await asyncio.sleep(0)

    told: list[BaseException] = []
    run(main(), on_exit=told.append)
    assert [str(error) for error in told] == ["3"]


def test_what_main_raises_ends_the_loop() -> None:
    with pytest.raises(SystemExit):
        run(leave(SystemExit), on_exit=lambda _: None)
    with pytest.raises(SystemExit):
        run(leave(SystemExit))


@pytest.mark.parametrize("searches", [True, False])
async def test_loading_a_module_leaves_the_garbage_collector_as_it_was(searches: bool) -> None:
    try:
        if not searches:
            gc.disable()
        assert await load("json") is sys.modules["json"]
        assert gc.isenabled() == searches
    finally:
        gc.enable()
