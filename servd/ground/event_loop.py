"""The event loop of a process."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

_T = TypeVar("_T")


def run(main: Coroutine[Any, Any, _T], *, closes_loop: bool = True) -> _T:
    """Run a child's main coroutine on a loop of its own.

    Args:
        closes_loop: False for a process that ends right after: closing waits for threads of the user's
            without limit.
    """
    # a Runner does not care which loop policy the user's module set
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    if not closes_loop:
        return runner.run(main)
    with runner:
        return runner.run(main)
