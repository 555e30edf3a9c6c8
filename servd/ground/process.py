"""What every child does first: its title, signals, descriptors, the watch on the daemon's life."""

import asyncio
import multiprocessing
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkProcess
from multiprocessing.process import BaseProcess
from typing import Any, TextIO

import setproctitle

from servd.ground.names import on_one_line
from servd.ground.quick_dataclass import dataclass

_NULL = os.makedev(1, 3)

LIFETIME_DRAIN_S = 4.0
"""How long a process may go on after the daemon is gone, seconds."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses. cpu_s: so far, of all its threads, seconds. memory_bytes: resident, shared parts included.

    descriptors, threads: how many it has now.
    """

    cpu_s: float = 0.0
    memory_bytes: int = 0
    descriptors: int = 0
    threads: int = 0


def begin(title: str, state_dir: str, *inherited_fds: int) -> None:
    """First lines of a child: its title, no Ctrl-C, its descriptors for itself.

    Args:
        title: what it is, e.g. "proxy 0"; shown as `servd: proxy 0 <state dir>`.
        inherited_fds: descriptors it was started with; the user's own subprocesses shall not get them.
    """
    show_title(f"{title} {state_dir}")
    # Ctrl-C and a closed terminal reach the whole foreground group; only the daemon acts on them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for fd in inherited_fds:
        os.set_inheritable(fd, False)
    read_nothing()


def resident_bytes() -> int:
    """Memory of this process that is in use now, shared parts included."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def own_usage() -> Usage:
    """What this process uses now.

    Raises:
        OSError: no descriptor is left to look with.
    """
    with open("/proc/self/stat", "rb") as file:
        # the second field is the name in brackets and may hold anything, brackets included
        fields = file.read().rpartition(b")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    # the one that lists them is among them
    descriptors = len(os.listdir("/proc/self/fd")) - 1
    return Usage(
        ticks / os.sysconf("SC_CLK_TCK"), int(fields[21]) * resource.getpagesize(), descriptors, int(fields[17])
    )


def show_title(title: str) -> None:
    """Be called `servd: <title>` in lists of processes, on one line."""
    setproctitle.setproctitle(on_one_line(f"servd: {title}"))


def read_nothing() -> None:
    """Let descriptor 0 and `sys.stdin` be at their end, whatever became of them.

    `multiprocessing` gives a child a `sys.stdin` on some descriptor of its own, which a child may have closed since; and
    a terminal is the daemon's, not the user's code's.
    """
    if _at_end and sys.stdin is _at_end[0] and not sys.stdin.closed and _is_null(0):
        # the parent has seen to it
        return
    fd = os.open(os.devnull, os.O_RDONLY)
    if fd:
        os.dup2(fd, 0)
        os.close(fd)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process lives
    _at_end[:] = [sys.stdin]


_at_end: list[TextIO] = []


def _is_null(fd: int) -> bool:
    try:
        return os.fstat(fd).st_rdev == _NULL
    except OSError:
        return False


def _nothing() -> None:
    pass


@contextmanager
def stdin_kept() -> Iterator[None]:
    """A child that is forked in here has its parent's `sys.stdin`, which is at its end: multiprocessing would open another."""
    util: Any = multiprocessing.util
    close = util._close_stdin

    def keep() -> None:
        # in the child, which never comes back to the end of this context
        util._close_stdin = close

    util._close_stdin = keep
    try:
        yield
    finally:
        util._close_stdin = close


def watch_lifetime(
    loop: asyncio.AbstractEventLoop,
    fd: int,
    on_end: Callable[[], None],
    limit_s: float = LIFETIME_DRAIN_S,
    at_limit: Callable[[], None] = _nothing,
) -> None:
    """Call `on_end` on `loop` when the daemon is gone, and end the process at the latest `limit_s` after.

    Args:
        at_limit: called right before that end.
        fd: read end of the lifetime pipe; nothing is ever written to it, so readable means end of file.
    """

    def ended() -> None:
        loop.remove_reader(fd)
        loop.call_later(limit_s, cut_off)
        on_end()

    def cut_off() -> None:
        at_limit()
        os._exit(1)

    loop.add_reader(fd, ended)


def raise_file_limit() -> None:
    """Lift the soft limit of open files to the hard one: a process with many connections needs it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            # "unlimited" is refused by some kernels; the soft limit stays
            pass


def forget_start_method() -> None:
    """Let user code find multiprocessing's default, and choose another: a spawned process has the choice of its parent."""
    multiprocessing.set_start_method(None, force=True)


class Forked(ForkProcess):
    """A forked process: whatever start method its parent's code has chosen, or none yet, is its own too."""

    # multiprocessing would choose "fork" for good
    _start_method: Any = None


def ends_of_pipes(child: BaseProcess) -> set[int]:
    """Descriptors that this process has for a child that was started, and not closed yet."""
    finalizer = getattr(getattr(child, "_popen", None), "finalizer", None)
    return {*finalizer._args} if finalizer is not None and finalizer.still_active() else set()


def allow_tracker() -> None:
    """Let code of the user's have multiprocessing's resource tracker, which servd does without (`servd.daemon.boot`)."""
    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    fd, tracker._fd = tracker._fd, None
    if fd is not None:
        os.close(fd)


def tracker_fd() -> int | None:
    """Descriptor by which multiprocessing's resource tracker is held, None where there is none."""
    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    fd: int | None = tracker._fd
    return fd


def tracker_pid() -> int | None:
    """Process of that tracker, None where this process has started none."""
    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    pid: int | None = tracker._pid
    return pid


def open_fds() -> set[int]:
    """Numbers of this process's descriptors.

    Raises:
        OSError: there is none left to look with.
    """
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    # that with which the list was read was the lowest free one, and is so again
    lowest = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.close(lowest)
    return found - {lowest}


def close_fd(fd: int) -> None:
    """Close a descriptor that may be closed already."""
    try:
        os.close(fd)
    except OSError:
        # somebody else's code has closed it
        pass
