"""What the host gives no more of: descriptors, processes and threads, memory. How that is recognised, and told.

Standard library only.
"""

import contextlib
import errno
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterator

from servd.ground.clock import Clock, SystemClock

KNOWN_S = 10.0
"""How long the news that the kernel has killed a process stand for the death of one: a large one takes a while to be gone."""

_GROUPS = "/sys/fs/cgroup"
_OPEN = "/proc/self/fd"
_WORTH_COUNTING = 4096
_NO_THREAD = "can't start new thread"
_SPARE_DESCRIPTORS = 16
_UNBOUND = 2**60
"""Bytes; how the first kind of control groups says that there is no bound."""


def host_limit_in(error: BaseException | None, *, at_fork: bool = False) -> str:
    """Which limit of the host an error comes from and what to do, for people; "" if it comes from none.

    What it was raised from counts: adapters translate the errors of their libraries.

    Args:
        at_fork: it came from making a process. EAGAIN says there that none is left, and elsewhere only "later".
    """
    while error is not None:
        number = getattr(error, "errno", None)
        if number == errno.EMFILE:
            return no_descriptor()
        if number == errno.ENFILE:
            return "the host can open no more files and sockets: raise fs.file-max (sysctl)"
        if number == errno.ENOMEM or isinstance(error, MemoryError):
            return "the host, or the control group, has no memory left"
        if (at_fork and number == errno.EAGAIN) or (isinstance(error, RuntimeError) and _NO_THREAD in str(error)):
            return no_process()
        error = error.__cause__
    return ""


def told(error: BaseException, *, at_fork: bool = False) -> str:
    """The text of an error, with what to do where a limit of the host is its reason."""
    text, limit = str(error) or type(error).__name__, host_limit_in(error, at_fork=at_fork)
    return f"{text}: {limit}" if limit else text


def no_descriptor() -> str:
    """What to tell when this process may open nothing more."""
    return (
        f"one process of servd may have {descriptor_limit()} files and sockets open. Raise the limit (`ulimit -n`, "
        "LimitNOFILE= of a service) and start servd again"
    )


def no_process() -> str:
    """What to tell when no further process or thread can be started."""
    limits = []
    # the kernel does not hold the superuser to it
    if (most := resource.getrlimit(resource.RLIMIT_NPROC)[0]) != resource.RLIM_INFINITY and os.getuid():
        limits.append(f"this user may have {most} (`ulimit -u`, LimitNPROC= of a service)")
    if (group := min((most for most, _ in _groups()), default=None)) is not None:
        limits.append(f"this control group {group} (pids.max; TasksMax= of a service, the pids limit of a container)")
    return (
        f"no further process or thread can be started; {' and '.join(limits) or 'see kernel.pid_max'}. Raise the limit"
    )


def descriptor_limit() -> int:
    """How many descriptors this process may have."""
    return _most(0)


def is_one_of_the_last(descriptor: int) -> bool:
    """Whether it is one of the last few, which the process needs itself: numbers are the lowest free ones."""
    return descriptor >= descriptor_limit() - _SPARE_DESCRIPTORS


def descriptors_allowed() -> int:
    """How many a process may have that lifts its own limit, as those of servd do."""
    return _most(1)


def _most(which: int) -> int:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[which]
    return 2**31 if most == resource.RLIM_INFINITY else most


def descriptors_left(fd: int = 0) -> int:
    """How many more descriptors this process may have, or fewer; 0 = none.

    Costs two system calls: new ones get the lowest free number. Where numbers in between are free it gives too many, until those
    are used up.

    Args:
        fd: any that is open; where servd has a process to itself the standard input is.
    """
    try:
        lowest = os.dup(fd)
    except OSError:
        return 0
    os.close(lowest)
    return descriptor_limit() - lowest


def count_descriptors_left() -> int:
    """How many more descriptors this process may have; 0 = none. Costs some 5 µs, before Linux 6.2 1 µs for each that it has."""
    try:
        # their number; nothing where it has to be counted
        if count := os.stat(_OPEN).st_size:
            return descriptor_limit() - count
        # one of them is that with which the list is read
        return descriptor_limit() - len(os.listdir(_OPEN)) + 1
    except OSError:
        return 0


def no_process_for(threads: int) -> str:
    """What to tell where not even so many threads could be started, "" where they could."""
    left = processes_left()
    return no_process() if left is not None and left < threads else ""


def processes_left() -> int | None:
    """How many more processes and threads may be started here; None where nothing is known to bound them.

    Blocks for some milliseconds where the user's own are few enough to be worth counting.
    """
    left = [most - current for most, current in _groups()]
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.getuid() and 0 <= most <= _WORTH_COUNTING:
        left.append(most - _own_threads())
    return min(left, default=None)


def _own_threads() -> int:
    """Processes and threads of this user."""
    count, own = 0, os.getuid()
    for name in os.listdir("/proc"):
        # those that end meanwhile
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == own:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def oom_kills() -> int:
    """How many processes the kernel has killed so far for want of memory: of this control group, else of the host."""
    files = [f"{group}/{name}" for group in _groups_of("memory") for name in ("memory.events", "memory.oom_control")]
    for path in (*files, "/proc/vmstat"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    return 0


def memory_bound() -> int | None:
    """How many bytes this control group may use; None where it has no bound."""
    found = []
    for group in _groups_of("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                found.append(_number(f"{group}/{name}"))
    return min((bound for bound in found if bound < _UNBOUND), default=None)


class Deaths:
    """Tells which processes of ours the kernel has killed for want of memory.

    Args:
        kills: gives how many processes the kernel has killed for that so far.
    """

    def __init__(self, clock: Clock | None = None, kills: Callable[[], int] = oom_kills) -> None:
        self._now = (clock or SystemClock()).now
        self._kills = kills
        self._seen = kills()
        self._fresh: deque[float] = deque()

    def __repr__(self) -> str:
        return f"Deaths({self._seen} killed for want of memory, {len(self._fresh)} of them unknown)"

    def look(self) -> None:
        """To be called every second: what was killed long ago was somebody else's."""
        now, count = self._now(), self._kills()
        self._fresh.extend([now] * (count - self._seen))
        self._seen = count
        while self._fresh and self._fresh[0] < now - KNOWN_S:
            self._fresh.popleft()

    def cause_of(self, exit_code: int | None) -> str:
        """Why a process ended so, "" where nobody knows. To be called once for each."""
        if exit_code != -signal.SIGKILL:
            return ""
        self.look()
        if not self._fresh:
            return ""
        self._fresh.popleft()
        bound = memory_bound()
        where = "the host" if bound is None else f"the control group ({bound // 2**20} MiB) or the host"
        return f"the kernel killed it, for {where} had no memory left"


def _groups() -> list[tuple[int, int]]:
    """Bound and present number of processes and threads of each control group of this process that has a bound."""
    found: list[tuple[int, int]] = []
    for group in _groups_of("pids"):
        # "max" is no number, and the topmost has no such file
        with contextlib.suppress(OSError, ValueError):
            found.append((_number(f"{group}/pids.max"), _number(f"{group}/pids.current")))
    return found


def _groups_of(controller: str) -> Iterator[str]:
    """Directories of the control groups of this process in which something may be bounded, each before those above it."""
    lines: list[list[str]] = []
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as file:
        lines += [line.rstrip("\n").split(":", 2) for line in file]
    for _, controllers, place in lines:
        if controllers not in ("", controller):
            continue
        home = os.path.join(_GROUPS, controllers).rstrip("/")
        while True:
            yield f"{home}{place}"
            if place in ("", "/"):
                break
            place = os.path.dirname(place)


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())
