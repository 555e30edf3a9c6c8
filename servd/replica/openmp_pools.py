"""Ends the pools of GNU OpenMP in a process that is about to fork, so that each child starts its own.

How this works: a pool's threads do not exist in a forked child, and the library waits for them for ever. But it can be told to
give its resources back (`omp_pause_resource_all` of OpenMP 5.0): the threads end, and the next parallel region starts new ones.
Nothing else changes: not the environment, not the thread counts that the user's code or the library has chosen, neither here
nor in threads that a child starts. Holding the pools at one thread during the import would change all of these.

LLVM's and Intel's OpenMP make their pools anew in a child by themselves; this library's call is known to crash there. (Tried
with Intel's; LLVM's, where its threads are seen, means spawn.)
"""

import ctypes
import os

from servd.ground.clock import SystemClock, block_for
from servd.replica.native_threads import loaded_libraries, native_threads

_GNU = "libgomp"
_PAUSE_SOFT = 1
_LIMIT_S = 0.5
_LOOK_AGAIN_S = 0.002


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
