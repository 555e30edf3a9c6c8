"""Pools of native libraries around a fork: ended before it, and in the child as large as the replica shall have them.

How this works: a pool's threads do not exist in a forked child, and the library waits for them for ever. But GNU OpenMP can be
told to give its resources back (`omp_pause_resource_all` of OpenMP 5.0): the threads end, and the next parallel region starts
new ones. Nothing else changes: not the environment, not the thread counts that the user's code or the library has chosen,
neither here nor in threads that a child starts. Holding the pools at one thread during the import would change all of these.

LLVM's and Intel's OpenMP make their pools anew in a child by themselves; this library's call is known to crash there. (Tried
with Intel's; LLVM's, where its threads are seen, means spawn.)

A replica with thread counts of its own: libraries read their variables when they are loaded. What is loaded later finds them;
what is loaded is told. A count that is not the library's own was chosen in code, and stays. GNU OpenMP has a count for each
thread: the main one is told here, and each that `threading` starts as it begins. (Intel's and LLVM's read the variables anew in a
child, PyTorch tells its threads.)
"""

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from servd.ground.clock import SystemClock, block_for
from servd.replica.native.threads import loaded_libraries, native_threads

_GNU = "libgomp"
_PAUSE_SOFT = 1
_LIMIT_S = 0.5
_LOOK_AGAIN_S = 0.002
_MOST_OF_OPENBLAS = 64
"""Threads that it is built for, usually."""

_TOKENIZERS = "TOKENIZERS_PARALLELISM"

_NAMES_OF_OPENBLAS = [(prefix, suffix) for prefix in ("", "scipy_") for suffix in ("", "64_", "_64")]


def end_openmp_pools() -> None:
    """End this thread's pools of all copies of GNU OpenMP that are loaded; back when their threads are gone, at most 0.5 s.

    To be called outside of parallel regions, while no other thread is in one. What cannot be ended is left: `native_threads`
    tells.
    """
    paths = [path for path in loaded_libraries() if os.path.basename(path).startswith(_GNU)]
    ended = [path for path in paths if _end_pool(path)]
    if not ended:
        return
    clock = SystemClock()
    limit = clock.now() + _LIMIT_S
    # the threads are told, and end by themselves
    while any(thread.owner.startswith(_GNU) for thread in native_threads()) and clock.now() < limit:
        block_for(_LOOK_AGAIN_S)


def _end_pool(path: str) -> bool:
    try:
        library = ctypes.CDLL(path, mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
        return bool(library.omp_pause_resource_all(_PAUSE_SOFT) == 0)
    except (OSError, AttributeError):
        # its file has gone, or it is older than GCC 9
        return False


def let_tokenizers_do_without() -> None:
    """Let children work on the calling thread where tokenizers has had a pool, as they do unless the environment says otherwise:
    where it asks for the pool, they would wait for its threads for ever.
    """
    if os.environ.get(_TOKENIZERS) and any("tokenizers" in thread.owner for thread in native_threads()):
        os.environ[_TOKENIZERS] = "false"


@cache
def counting_libraries() -> tuple[str, ...]:
    """Paths of the libraries with thread counts that are loaded. Asked before the first fork, children know it."""
    return tuple(path for path in loaded_libraries() if _is_one(os.path.basename(path)))


def _is_one(name: str) -> bool:
    return name.startswith(("libgomp", "libmkl_rt")) or "openblas" in name


def apply_thread_counts(variables: Mapping[str, str]) -> None:
    """Set those variables that the environment has not, and tell the libraries that are loaded already.

    Belongs on the main thread, before there are others.

    Args:
        variables: number of threads by OMP_NUM_THREADS, OPENBLAS_NUM_THREADS, MKL_NUM_THREADS, NUMEXPR_NUM_THREADS.
    """
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    if not missing:
        return
    os.environ.update(missing)
    counts = {name: int(value) for name, value in missing.items()}
    if count := counts.get("MKL_NUM_THREADS"):
        for library in _loaded("libmkl_rt"):
            _tell(library.MKL_Get_Max_Threads, library.MKL_Set_Num_Threads, count)
    if count := counts.get("OMP_NUM_THREADS"):
        # first of all: asked for its count, it tells its OpenMP
        if (torch := _module("torch", "get_num_threads", "set_num_threads")) is not None:
            _tell(torch.get_num_threads, torch.set_num_threads, count)
        _tell_openmp(list(_loaded("libgomp")), count)
    if count := counts.get("OPENBLAS_NUM_THREADS"):
        for library in _loaded("openblas"):
            _tell_openblas(library, count)
    if count := counts.get("NUMEXPR_NUM_THREADS"):
        numexpr = _module("numexpr", "get_num_threads", "set_num_threads")
        if numexpr is not None:
            _tell(numexpr.get_num_threads, numexpr.set_num_threads, count)


def _tell(get: Any, tell: Any, count: int) -> None:
    # how many of the host's processors the library takes by itself is its own affair, but not one of many
    if get() > 1 or len(os.sched_getaffinity(0)) == 1:
        tell(count)


def _tell_openblas(library: ctypes.CDLL, count: int) -> None:
    for prefix, suffix in _NAMES_OF_OPENBLAS:
        get, tell, processors = (
            getattr(library, f"{prefix}openblas_{name}{suffix}", None)
            for name in ("get_num_threads", "set_num_threads", "get_num_procs")
        )
        if get and tell and processors:
            if get() >= min(processors(), _MOST_OF_OPENBLAS):
                tell(count)
            return


def _tell_openmp(libraries: Sequence[ctypes.CDLL], count: int) -> None:
    if not libraries:
        return
    for library in libraries:
        if library.omp_get_max_threads() == library.omp_get_num_procs():
            library.omp_set_num_threads(count)
    users = threading.getprofile()

    def begin(*_: object) -> None:
        sys.setprofile(users)
        for library in libraries:
            library.omp_set_num_threads(count)

    # the one hook that `threading` has for a thread's beginning; it is gone with its first event
    threading.setprofile(begin)


def _loaded(name: str) -> Iterator[ctypes.CDLL]:
    for path in counting_libraries():
        if name in os.path.basename(path):
            # its file may have gone
            with contextlib.suppress(OSError):
                yield ctypes.CDLL(path, mode=os.RTLD_LAZY | os.RTLD_NOLOAD)


def _module(name: str, *needed: str) -> Any:
    """A module that is loaded; None if there is none, or it is another of that name."""
    module = sys.modules.get(name)
    return module if all(callable(getattr(module, item, None)) for item in needed) else None
