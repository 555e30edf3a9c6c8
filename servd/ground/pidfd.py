"""Processes by number, safely: start times and pidfds. Standard library only."""

import os


def start_ticks(pid: int) -> int:
    """Start time of a process, in clock ticks since boot; 0 when there is no such process.

    Source: field 22 of `/proc/<pid>/stat`.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the second field is the name in brackets and may hold anything, brackets included
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def open_process(pid: int, expected_ticks: int) -> int | None:
    """A pidfd of that very process, or None when it is gone or the number belongs to another one now."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return None
    # a handle first, then the question: the number cannot change its owner in between unnoticed
    if start_ticks(pid) != expected_ticks:
        os.close(fd)
        return None
    return fd


def exit_code_of(status: "os.waitid_result") -> int:
    """Exit code as `subprocess` has it, negative = killed by that signal, of a `waitid` result."""
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
