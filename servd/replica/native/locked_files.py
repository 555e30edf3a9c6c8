"""Files on which an application has a lock before a fork that a forked child would not have, as databases in files have them.

How this works: such a lock (of `fcntl`, POSIX) is the process's. A forked child goes on as if it had it. Where the lock lets this
process alone write, several overwrite each other's without a word. SQLite has one as long as a database in WAL mode is in use, or
a query under way: it tells that somebody is there, and who closes the database and finds nobody takes the log away to which the
others write on. Where a replica is spawned instead, it opens the file and takes the lock itself, or hears who has it. (What has
run the code only to know it has let go by then: see `begun_anew`.)
"""

import os
import sys
from collections.abc import Set
from contextlib import suppress
from typing import Any

from servd.ground.quick_dataclass import dataclass
from servd.replica.native.descriptor_links import link_of
from servd.replica.native.objects import living

_LOCK, _POSIX, _ALONE = "lock:", "POSIX", "WRITE"
_FIRST_OF_SQLITE = str(0x40000002)
"""Byte at which the lock begins that its readers share; the file need not be so long."""


@dataclass(frozen=True, slots=True, order=True)
class LockedFile:
    """is_shared: others may have that lock too, as with SQLite."""

    path: str
    is_shared: bool = False


def locked_files(fds: Set[int]) -> list[LockedFile]:
    """Those of these descriptors' files on which this process has a lock that a fork cannot do without, in order."""
    found = {LockedFile(link_of(fd), is_shared) for fd in fds for is_shared in _locks(fd)}
    if not any(file.is_shared for file in found):
        return sorted(found)
    # onnxruntime has one for what it tells its makers, which a fork does without
    databases = _databases()
    return sorted(file for file in found if not file.is_shared or file.path in databases)


def _locks(fd: int) -> set[bool]:
    """Whether others may share them, of each such lock."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
            words = [line.split() for line in file if line.startswith(_LOCK)]
    except OSError:
        return set()
    own = [about for about in words if _POSIX in about and (_ALONE in about or _FIRST_OF_SQLITE in about)]
    return {_ALONE not in about for about in own}


def _databases() -> set[str]:
    """Paths of those of SQLite that Python code has open."""
    kind = getattr(sys.modules.get("sqlite3"), "Connection", None)
    found: set[str] = set()
    connections: list[Any] = living(kind) if isinstance(kind, type) else []
    for connection in connections:
        # closed, another thread's, or whatever a class of the application's raises
        with suppress(Exception):
            cursor = connection.cursor()
            cursor.row_factory = None
            found |= {os.path.realpath(os.fsdecode(path)) for _, _, path in cursor.execute("pragma database_list")}
    return found
