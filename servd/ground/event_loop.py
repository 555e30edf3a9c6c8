"""The event loop of a process."""

import asyncio
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any, TypeVar

import uvloop

from servd.ground import entry
from servd.ground.host_limits import host_limit_in

_T = TypeVar("_T")


def run(
    main: Coroutine[Any, Any, _T],
    *,
    closes_loop: bool = True,
    on_exit: Callable[[BaseException], None] | None = None,
) -> _T:
    """Run a child's main coroutine on a loop of its own.

    Args:
        closes_loop: False for a process that ends right after: closing waits for threads of the user's
            without limit.
        on_exit: is told what a task or a callback raised to leave the interpreter (`sys.exit()` in user code); the loop
            goes on. Without it that ends the loop, as asyncio has it.
    """
    # a Runner does not care which loop policy the user's module set
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    if not closes_loop:
        return _run(runner, main, on_exit)
    with runner:
        return _run(runner, main, on_exit)


async def load(name: str) -> ModuleType:
    """The module of that name, imported in a thread while the loop goes on; in the loop where no thread can be had."""
    try:
        return await asyncio.to_thread(entry.load, name)
    except RuntimeError as error:
        if not host_limit_in(error):
            raise
        return entry.load(name)


def _run(runner: asyncio.Runner, main: Coroutine[Any, Any, _T], on_exit: Callable[[BaseException], None] | None) -> _T:
    if on_exit is None:
        return runner.run(main)
    loop = runner.get_loop()
    task = loop.create_task(main)
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            # whoever awaits the task that raised it gets it too
            if task.done():
                raise
            on_exit(error)
