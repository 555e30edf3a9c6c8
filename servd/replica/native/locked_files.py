"""Files that an application has locked for itself alone before a fork, as databases in a file do.

How this works: such a lock (of `fcntl`, POSIX) is the process's. A forked child writes to the file and has none, so that several
overwrite each other's without a word. Where it is spawned instead, it opens the file itself and takes the lock, or hears who has
it. The process that has run the code only to know it must not be who: it lets go.
"""

import os
from collections.abc import Iterable, Set
from contextlib import suppress

from servd.replica.native.descriptor_links import link_of

_LOCK, _POSIX, _ALONE = "lock:", "POSIX", "WRITE"


def locked_files(fds: Set[int]) -> dict[int, str]:
    """Path of what this process alone may write to, by descriptor."""
    return {fd: link_of(fd) for fd in sorted(fds) if _is_locked(fd)}


def let_go(fds: Iterable[int]) -> None:
    """Give up the locks on what is behind these descriptors; to be called where no code of the user's will run any more."""
    for fd in fds:
        # a process that closes one descriptor of a file has no lock on it any more, whichever it was locked by
        with suppress(OSError):
            os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))


def _is_locked(fd: int) -> bool:
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
            words = [line.split() for line in file if line.startswith(_LOCK)]
    except OSError:
        return False
    return any(_POSIX in about and _ALONE in about for about in words)
