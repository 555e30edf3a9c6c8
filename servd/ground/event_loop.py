"""The event loop of a process."""

import asyncio
import ctypes
import logging
import os
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any, TypeVar

import uvloop

from servd.ground import entry
from servd.ground.host_limits import host_limit_in

_DONTNEED = 4
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_zero = ctypes.c_char()
_libc = ctypes.CDLL(None)
_memcmp, _madvise = _libc.memcmp, _libc.madvise
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


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
    runner = asyncio.Runner(loop_factory=_new_loop)
    if not closes_loop:
        return _run(runner, main, on_exit)
    with runner:
        return _run(runner, main, on_exit)


def _new_loop() -> asyncio.AbstractEventLoop:
    """A loop that does not hold what it has not used: its room for what is read is 256 KB, which are cleared as it is made."""
    loop = uvloop.new_event_loop()
    give_back_zeros(id(loop), type(loop).__basicsize__)
    return loop


def give_back_zeros(address: int, size: int) -> None:
    """Give the whole pages of this memory back to the system if they hold nothing but zeros, as they do again when they are used.

    Only private memory of no file, which nobody writes to meanwhile.
    """
    begin = -(-address // _PAGE_BYTES) * _PAGE_BYTES
    count = (address + size) // _PAGE_BYTES * _PAGE_BYTES - begin
    # each byte is what the one before it is
    if count > 0 and not _memcmp(begin, ctypes.addressof(_zero), 1) and not _memcmp(begin, begin + 1, count - 1):
        # where that is refused they stay
        _madvise(begin, count, _DONTNEED)


async def load(name: str) -> ModuleType:
    """The module of that name, imported in a thread while the loop goes on; in the loop where no thread can be had."""
    try:
        return await asyncio.to_thread(entry.load, name)
    except RuntimeError as error:
        if not host_limit_in(error):
            raise
        return entry.load(name)


def lifelong(work: Coroutine[Any, Any, None], on_failure: Callable[[], None]) -> asyncio.Task[None]:
    """Run what has no reason to fail while its process lives; where it does, that is logged, and `on_failure` is called."""
    task = asyncio.get_running_loop().create_task(work)

    def end(_: object) -> None:
        # a process that goes on without it looks well, and is not
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("task_failed task=%s", task.get_coro(), exc_info=error)
            on_failure()

    task.add_done_callback(end)
    return task


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
