"""Files that an application has locked for itself alone before a fork, as databases in a file do.

How this works: such a lock (of `fcntl`, POSIX) is the process's. A forked child writes to the file and has none, so that several
overwrite each other's without a word. Where it is spawned instead, it opens the file itself and takes the lock, or hears who has
it. (The process that has run the code only to know it has let go by then: see `begun_anew`.)
"""

from collections.abc import Set

from servd.replica.native.descriptor_links import link_of

_LOCK, _POSIX, _ALONE = "lock:", "POSIX", "WRITE"


def locked_files(fds: Set[int]) -> list[str]:
    """Paths of those of these descriptors' files that this process alone may write to, in order."""
    return sorted({link_of(fd) for fd in fds if _is_locked(fd)})


def _is_locked(fd: int) -> bool:
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
            words = [line.split() for line in file if line.startswith(_LOCK)]
    except OSError:
        return False
    return any(_POSIX in about and _ALONE in about for about in words)
