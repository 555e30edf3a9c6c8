"""Pools of processes that an application has made before a fork, and not used: each replica has one of its own.

How this works: a `ProcessPoolExecutor` makes its pipes at once, its processes and its thread with the first job. Where it has had
one, its thread forbids to fork. Where it has not, all children would put their jobs into the same pipe, and take each other's
results.
"""

import sys
import weakref
from typing import Any

from servd.replica.native.objects import living

_found: list[weakref.ReferenceType[Any]] = []


def note_process_pools() -> None:
    """To be called in a process that replicas are forked from, before the first."""
    _found[:] = [weakref.ref(pool) for pool in _pools()]


def descriptors_of_pools() -> set[int]:
    """Those by which pools that each replica has one of its own of would be read from."""
    found: set[int] = set()
    for pool in filter(_is_unused, _pools()):
        ends = pool._call_queue, pool._result_queue, pool._executor_manager_thread_wakeup
        found |= {end._reader.fileno() for end in ends}
    return found


def renew_process_pools() -> None:
    """To be called in a forked child, before any code of the user's."""
    for pool in filter(None, [reference() for reference in _found]):
        if not _is_unused(pool):
            continue
        kind: Any = sys.modules["concurrent.futures.process"].ProcessPoolExecutor
        # past the constructor of a class of the user's
        kind.__init__(
            pool,
            pool._max_workers,
            mp_context=pool._mp_context,
            initializer=pool._initializer,
            initargs=pool._initargs,
            max_tasks_per_child=pool._max_tasks_per_child,
        )


def _pools() -> list[Any]:
    module = sys.modules.get("concurrent.futures.process")
    if module is None:
        return []
    return living(module.ProcessPoolExecutor)


def _is_unused(pool: Any) -> bool:
    # one of a class of the user's may be half made
    return not getattr(pool, "_shutdown_thread", True) and pool._executor_manager_thread is None
