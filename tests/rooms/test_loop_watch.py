"""Where threads and tasks are: what an operator is shown of code that waits."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from servd.calls.request_context import NO_REQUEST
from servd.observability.loop_watch import stacks
from servd.observability.tracebacks import show_as
from tests.rooms.test_user_callable import constructed


class Waits:
    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def plain(self) -> None:
        await self.deeper()

    async def deeper(self) -> None:
        await self.event.wait()

    async def from_items(self) -> None:
        async with aclosing(self.items()) as items:
            async for _ in items:
                pass

    async def items(self) -> AsyncIterator[int]:
        await self.deeper()
        yield 1


@pytest.mark.parametrize("method", ["plain", "from_items"])
async def test_a_task_is_shown_where_it_waits_in_user_code_and_since_when(method: str) -> None:
    user = await constructed(Waits)
    task = asyncio.create_task(user.call(method, (), {}, NO_REQUEST), name="r1")
    await asyncio.sleep(0)
    text = await asyncio.to_thread(stacks, asyncio.get_running_loop())
    (shown,) = [part for part in text.split("\n\n") if part.startswith("task r1")]
    assert re.match(r"task r1, 0\.\d s:\n", shown)
    places = re.findall(r'File ".*?([^/]+)", line \d+, in (\w+)', shown)
    own = [name for file, name in places if file == Path(__file__).name]
    assert own == ([method, "deeper"] if method == "plain" else [method, "items", "deeper"])
    assert "self.event.wait()" in shown
    assert "user_callable.py" not in shown, "frames above the user's are servd's own"
    task.cancel()
    await asyncio.wait([task])


async def test_paths_are_the_users(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    show_as({here: "/home/me/code"})
    try:
        user = await constructed(Waits)
        task: asyncio.Task[Any] = asyncio.create_task(user.call("plain", (), {}, NO_REQUEST))
        await asyncio.sleep(0)
        text = await asyncio.to_thread(stacks, asyncio.get_running_loop())
        assert f'"/home/me/code/{Path(__file__).name}"' in text
        assert here not in text
    finally:
        show_as({})
    task.cancel()
    await asyncio.wait([task])
