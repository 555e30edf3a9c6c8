"""How the C library allocates blocks of the size of bodies and arrays, in processes that move them. Standard library only."""

import ctypes
import os

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_LARGEST_KEPT_BYTES = 4 * 1024 * 1024
_KEPT_BYTES = 32 * 1024 * 1024
_USERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> None:
    """Use freed blocks again before the system gets them back, up to 32 MiB per heap; blocks above 4 MiB are always new.

    By default a body of 1 MB is given back and asked for again with each request, which costs more than copying it: each of
    its pages is taken, cleared and counted anew. Nothing happens where the environment says something about the allocator,
    or where the C library is another than glibc.
    """
    if any(name in os.environ for name in _USERS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
