"""Files that an application writes to: what is left in their buffers goes out before a fork, and as a process ends.

How this works: Python writes what is left when it ends in the ordinary way, which no process of servd's does; and each forked
child has a copy of what was left, and would write it again. What is there at a fork is not to be found any more afterwards (its
memory is frozen), so it is remembered.
"""

import io
import weakref
from contextlib import suppress
from typing import Any

from servd.replica.native.objects import living

_KINDS = (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)

_kept: list[weakref.ReferenceType[Any]] = []


def flush_and_keep() -> None:
    """To be called in a process that others are forked from, before the first, and before it is looked where files are read."""
    _kept[:] = [weakref.ref(file) for file in living(*_KINDS)]
    flush()


def flush() -> None:
    """Write what is in the buffers of all files that are open."""
    inherited = (reference() for reference in _kept)
    for file in (*inherited, *living(*_KINDS)):
        # closed meanwhile, a full disk, nobody who reads, or whatever a class of the application's raises
        with suppress(Exception):
            if file is not None and file.writable():
                file.flush()
