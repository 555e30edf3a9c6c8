"""Pipes, queues and terminals by which an application hears of other processes, opened before a fork.

How this works: a program that an application has started with pipes, or a process behind queues of `multiprocessing`, answers
whoever asks, and each answer is read by whichever replica reads next. So these are connections like those to a database. A pipe
whose ends are both in this process wakes up something in it, and means nothing to others: libraries have such.
"""

import fcntl
import os
import select
import stat
import sys
from collections.abc import Set
from typing import Any

from servd.ground import process
from servd.ground.quick_dataclass import dataclass
from servd.replica.native.connections import Connection
from servd.replica.native.descriptor_links import children, links_of
from servd.replica.native.objects import living
from servd.replica.native.process_pools import descriptors_of_pools

_CONNECTIONS = ("multiprocessing.connection", "multiprocess.connection")
"""The latter is that of `dill`'s friends."""
_QUEUE = "a queue or pipe of multiprocessing"
_TERMINALS = os.makedev(5, 2)
_poll = select.poll


@dataclass(frozen=True, slots=True)
class _End:
    fd: int
    inode: int
    is_read: bool


def open_pipes(fds: Set[int]) -> list[Connection]:
    """Those of these descriptors from which this process reads what others write.

    Raises:
        OSError: there is no descriptor left to look with.
    """
    opened = fds - {process.tracker_fd()}
    ends = [end for fd in sorted(opened) if (end := _pipe_end(fd)) is not None]
    written = {end.inode for end in ends if not end.is_read}
    found = [
        Connection(end.fd, end.inode, _process_with(end.inode))
        for end in ends
        if end.is_read and end.inode not in written and not _is_over(end.fd)
    ]
    found += [
        Connection(fd, os.fstat(fd).st_ino, "a program in a terminal")
        for fd in sorted(opened)
        if _is_terminal(fd) and not _is_over(fd)
    ]
    queues = _queues() & opened - descriptors_of_pools() - {one.fd for one in found}
    return found + [Connection(fd, os.fstat(fd).st_ino, _QUEUE) for fd in sorted(queues)]


def _pipe_end(fd: int) -> _End | None:
    try:
        about = os.fstat(fd)
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        return None
    return _End(fd, about.st_ino, mode == os.O_RDONLY) if stat.S_ISFIFO(about.st_mode) else None


def _is_terminal(fd: int) -> bool:
    """Whether it is the side that a program's terminal is worked from."""
    try:
        about = os.fstat(fd)
    except OSError:
        return False
    return stat.S_ISCHR(about.st_mode) and about.st_rdev == _TERMINALS


def _is_over(fd: int) -> bool:
    """Whether nobody is left at the other end."""
    poller = _poll()
    poller.register(fd, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))


def _queues() -> set[int]:
    """Descriptors that objects of multiprocessing read from."""
    kinds = tuple(kind for name in _CONNECTIONS if isinstance(kind := _kind_in(name), type))
    return {item._handle for item in living(*kinds) if item._handle is not None and item._readable}


def _kind_in(name: str) -> Any:
    return getattr(sys.modules.get(name), "Connection", None)


def _process_with(inode: int) -> str:
    """Who has the other end of a pipe, for people: one that this process has started, mostly."""
    link = f"pipe:[{inode}]"
    for pid in children():
        try:
            links = links_of(pid)
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                name = file.read().strip()
        except OSError:
            # it has ended, or is another user's
            continue
        if link in links:
            return f"process {pid} ({name})"
    return "another process"
