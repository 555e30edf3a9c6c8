"""Locks, events, numbers and arrays of `multiprocessing` that an application has made before a fork: each replica has its own.

How this works: they are for a process and for those that it starts. Replicas that share one wait for each other, and for ever
where one was killed that held it; tqdm has such a lock, which is taken at each step of a bar. So each child makes them anew in
their place, with the values that they had. What a process that the application has started may use too leads there, and stays.
"""

import ctypes
import mmap
import multiprocessing
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from servd.ground import process
from servd.replica.native.descriptor_links import children
from servd.replica.native.objects import living

_PACKAGES = ("multiprocessing", "multiprocess")
"""The latter is that of `dill`'s friends."""
_MOST_BYTES = 16 * 1024 * 1024
"""An array that is larger holds data rather than state, and to have it once is why it is there."""
_FIXED = 0x10
"""MAP_FIXED."""

_locks: list[tuple[weakref.ReferenceType[Any], int]] = []
"""And the values that they had: how many more may enter."""
_arenas: list[weakref.ReferenceType[Any]] = []
_holders: list[weakref.ReferenceType[Any]] = []
"""What calls a lock's own functions by other names: conditions, and numbers with a lock."""


def note_shared_locks() -> None:
    """To be called in a process that replicas are forked from, before the first."""
    locks, arenas = _kinds("synchronize.SemLock"), _kinds("heap.Arena")
    holders = _kinds("synchronize.Condition") + _kinds("sharedctypes.SynchronizedBase")
    is_alone = not set(children()) - {str(process.tracker_pid())}
    found = living(*locks, *arenas, *holders) if is_alone else []
    _locks[:] = [(weakref.ref(one), one._semlock._get_value()) for one in found if _is_whole(one, locks)]
    _arenas[:] = [weakref.ref(one) for one in found if isinstance(one, arenas)]
    _holders[:] = [weakref.ref(one) for one in found if isinstance(one, holders)]


def _is_whole(item: Any, locks: tuple[type, ...]) -> bool:
    return isinstance(item, locks) and hasattr(item, "_semlock")


def renew_shared_locks() -> None:
    """In a forked child, before any code of the user's: what `note_shared_locks` found is this process's own."""
    # half made, of another release's making, or nothing is left to make it of: shared is better than nothing
    for reference, value in _locks:
        with suppress(OSError, AttributeError):
            _renew_lock(reference(), value)
    for arena in _living(_arenas):
        with suppress(OSError, AttributeError):
            _renew_arena(arena)
    for holder in _living(_holders):
        with suppress(AttributeError):
            lock = holder._lock
            holder.acquire, holder.release = lock.acquire, lock.release


def _kinds(name: str) -> tuple[type, ...]:
    room, _, kind = name.partition(".")
    found = [getattr(sys.modules.get(f"{package}.{room}"), kind, None) for package in _PACKAGES]
    return tuple(one for one in found if isinstance(one, type))


def _living(found: list[weakref.ReferenceType[Any]]) -> Iterator[Any]:
    return (item for reference in found if (item := reference()) is not None)


def _renew_lock(lock: Any, value: int) -> None:
    if lock is None:
        return
    base: Any
    [base] = [kind for kind in type(lock).__mro__ if kind.__name__ == "SemLock"]
    old = lock._semlock
    # one with a name is for processes that are spawned, which find it by that
    context = multiprocessing.get_context("fork" if old.name is None else "spawn")
    # past the constructor of its class, which gives it the value that it has at first
    base.__init__(lock, old.kind, value, old.maxvalue, ctx=context)


def _renew_arena(arena: Any) -> None:
    if arena.size > _MOST_BYTES:
        return
    fd = os.memfd_create("servd")
    try:
        os.truncate(fd, arena.size)
        os.pwrite(fd, arena.buffer, 0)
        place = ctypes.addressof(ctypes.c_char.from_buffer(arena.buffer))
        call = ctypes.CDLL(None, use_errno=True).mmap
        call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
        call.restype = ctypes.c_void_p
        if call(place, arena.size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _FIXED, fd, 0) == place:
            # what spawned processes are given
            os.dup2(fd, arena.fd, inheritable=False)
    finally:
        os.close(fd)
