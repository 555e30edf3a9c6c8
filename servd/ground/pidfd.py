"""Processes by number, safely: start times and pidfds. Standard library only."""

import os

from servd.ground.host_limits import host_limit_in

_STAT_BYTES = 4096
"""More than `/proc/<pid>/stat` ever has."""


def start_ticks(pid: int) -> int:
    """Start time of a process, in clock ticks since boot; 0 when there is no such process.

    Raises:
        OSError: nobody can tell, since no descriptor is left.
    """
    return _field(pid, 22)


def parent_of(pid: int) -> int:
    """Pid of the parent of a process; 0 when there is no such process, OSError as `start_ticks`."""
    return _field(pid, 4)


def children() -> list[int]:
    """Processes whose parent this one is; zombies count until they are reaped."""
    own = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and parent_of(int(name)) == own]


def _field(pid: int, number: int) -> int:
    """A number in `/proc/<pid>/stat`, fields counted from 1 as its manual does."""
    try:
        # a file object would cost each replica that starts a dozen pages of memory
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, _STAT_BYTES)
        finally:
            os.close(fd)
        # the second field is the name in brackets and may hold anything, brackets included
        return int(data.rpartition(b")")[2].split()[number - 3])
    except (OSError, IndexError, ValueError) as error:
        if host_limit_in(error):
            raise
        return 0


def open_process(pid: int, expected_ticks: int) -> int | None:
    """A pidfd of that very process, or None when it is gone or the number belongs to another one now.

    Raises:
        OSError: there is a process of that number, and no descriptor is left to hold or to look at it.
    """
    try:
        fd = os.pidfd_open(pid)
    except OSError as error:
        if host_limit_in(error):
            raise
        return None
    # a handle first, then the question: the number cannot change its owner in between unnoticed
    try:
        is_it = start_ticks(pid) == expected_ticks
    except OSError:
        os.close(fd)
        raise
    if is_it:
        return fd
    os.close(fd)
    return None


def is_called(pid: int, titles: tuple[str, ...]) -> bool:
    """Whether that process is one of servd's whose title begins like one of these."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            shown = file.read(200)
    except OSError:
        return False
    return shown.startswith(tuple(f"servd: {title} " for title in titles))


def exit_code_of(status: "os.waitid_result") -> int:
    """Exit code as `subprocess` has it, negative = killed by that signal, of a `waitid` result."""
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
