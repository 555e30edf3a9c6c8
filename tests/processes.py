"""Living processes as `/proc` tells of them: any of them may end between two looks."""

import os
from pathlib import Path

Process = tuple[int, str]
"""Pid and start time in ticks, for a number may be given again."""


def stat_of(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` from the state on; None when it is gone, or dead and not yet reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields


def command_line(pid: int) -> bytes:
    """What `/proc/PID/cmdline` says; nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def pids() -> list[int]:
    """Every process that there is now."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parents() -> dict[int, int]:
    """Every living process and its parent."""
    return {pid: int(fields[1]) for pid in pids() if (fields := stat_of(pid)) is not None}


def process(pid: int) -> Process | None:
    """That process, if it lives."""
    fields = stat_of(pid)
    return None if fields is None else (pid, fields[19])


def offspring(pid: int) -> set[Process]:
    """Living descendants of a process."""
    above = parents()
    found = {pid}
    while more := {child for child, parent in above.items() if parent in found} - found:
        found |= more
    return {living for child in found - {pid} if (living := process(child)) is not None}


def alive(processes: set[Process]) -> set[Process]:
    """Those of them that have not ended."""
    return {each for each in processes if process(each[0]) == each}
