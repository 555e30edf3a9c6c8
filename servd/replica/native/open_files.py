"""Files that an application has opened before a fork, and reads from: each replica has a place of its own in them.

How this works: the place at which a file is read next belongs to what the kernel opened, and a forked child shares that with its
parent. Two that seek and read at once read each other's parts. So each child opens the file anew, at the place where it was and
under the same number; the file need not have a name any more. What is only written to stays shared: lines that follow one another
there would overwrite one another.
"""

import fcntl
import os
import stat
from collections.abc import Iterable, Set

from servd.ground.quick_dataclass import dataclass

_LOCKED = (": FLOCK", ": OFDLCK")
"""As the kernel names locks that belong to what was opened, not to the process: opened anew, a child would not have it."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """identity: of the file behind it, device and inode. flags: how it was opened. place: offset, bytes."""

    fd: int
    identity: tuple[int, int]
    flags: int
    place: int


_found: list[OpenFile] = []


def open_files(fds: Set[int]) -> list[OpenFile]:
    """Those of these descriptors that are of files, and read from, in order."""
    return [one for fd in sorted(fds) if (one := _open_file(fd)) is not None]


def let_open_in_children(files: Iterable[OpenFile]) -> None:
    """To be called in a process that replicas are forked from, before the first."""
    _found[:] = files


def open_inherited() -> None:
    """In a forked child, before any code of the user's: what `let_open_in_children` was told of is this process's own."""
    for file in _found:
        # the parent may have closed it since, and opened something else
        if _identity(file.fd) != file.identity:
            continue
        try:
            own = os.open(f"/proc/self/fd/{file.fd}", file.flags | os.O_CLOEXEC)
        except OSError:
            # no descriptor is left, or it may not be opened any more: shared is better than nothing
            continue
        os.lseek(own, file.place, os.SEEK_SET)
        os.dup2(own, file.fd, inheritable=os.get_inheritable(file.fd))
        os.close(own)


def _open_file(fd: int) -> OpenFile | None:
    identity = _identity(fd)
    if identity is None:
        return None
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        place = os.lseek(fd, 0, os.SEEK_CUR)
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
            is_locked = any(word in file.read() for word in _LOCKED)
    except OSError:
        # not to be sought in
        return None
    mode = flags & os.O_ACCMODE
    is_wanted = mode == os.O_RDONLY or (mode == os.O_RDWR and not is_locked)
    return OpenFile(fd, identity, flags, place) if is_wanted else None


def _identity(fd: int) -> tuple[int, int] | None:
    """Of a file with contents; None of whatever else it is."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
