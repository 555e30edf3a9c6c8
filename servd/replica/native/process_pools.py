"""Pools of processes that an application has made before a fork, and not used: each replica has one of its own.

How this works: a `ProcessPoolExecutor` makes its pipes at once, its processes and its thread with the first job. Where it has had
one, its thread forbids to fork. Where it has not, all children would put their jobs into the same pipe, and take each other's
results.
"""

import gc
import sys
import weakref
from typing import Any

_found: list[weakref.ReferenceType[Any]] = []


def note_process_pools() -> None:
    """To be called in a process that replicas are forked from, before the first."""
    module = sys.modules.get("concurrent.futures.process")
    if module is not None:
        kind = module.ProcessPoolExecutor
        # of the type alone: `isinstance` asks the object too
        _found[:] = [weakref.ref(item) for item in gc.get_objects() if issubclass(type(item), kind)]


def renew_process_pools() -> None:
    """To be called in a forked child, before any code of the user's."""
    for pool in filter(None, [reference() for reference in _found]):
        if pool._shutdown_thread or pool._executor_manager_thread is not None:
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
