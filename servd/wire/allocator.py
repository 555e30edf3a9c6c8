"""How the C library allocates blocks of the size of bodies and arrays, in processes that move them. Standard library only."""

import ctypes
import os
from collections.abc import Callable

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_LARGEST_KEPT_BYTES = 4 * 1024 * 1024
_KEPT_BYTES = 32 * 1024 * 1024
_GROWN_BYTES = 256 * 1024 * 1024
_LONGEST_REST = 60
_USERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> None:
    """Use freed blocks again before the system gets them back, up to 32 MiB per heap; blocks above 4 MiB are always new.

    By default a body of 1 MB is given back and asked for again with each request, which costs more than copying it: each of
    its pages is taken, cleared and counted anew. Nothing happens where the environment says something about the allocator,
    or where the C library is another than glibc.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back_freed() -> None:
    """Give all that is free back to the system now."""
    if (give_back := _function("malloc_trim")) is not None:
        give_back(0)


class FreedMemory:
    """Gives freed memory back to the system once a process has grown by 256 MiB and grows no more.

    A large message may come in many small pieces, which lie between blocks that live on: the pages of those that were freed stay
    with the process, for whoever allocates next, even if nobody does. Nothing happens where `keep_freed_memory` does nothing.

    Args:
        resident: gives the memory in use, bytes.
    """

    def __init__(self, resident: Callable[[], int]) -> None:
        self._resident = resident
        self._give_back = _function("malloc_trim")
        self._usual = self._last = resident()
        self._pause = self._rest = 0

    def __repr__(self) -> str:
        return f"FreedMemory(usual={self._usual}, last={self._last})"

    def look(self) -> bool:
        """To be called every second; whether it gave back what it could. While that changes little it is tried less often, down
        to once a minute.
        """
        before, self._last = self._last, self._resident()
        if self._last <= self._usual + _GROWN_BYTES:
            self._pause = self._rest = 0
            return False
        if self._rest:
            self._rest -= 1
            return False
        if self._last > before or self._give_back is None:
            return False
        self._give_back(0)
        self._pause = self._rest = min(2 * self._pause + 1, _LONGEST_REST)
        return True


def _function(name: str) -> Callable[..., int] | None:
    """One of glibc's; None where another one allocates, or the environment says something about it."""
    if any(name in os.environ for name in _USERS):
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found
