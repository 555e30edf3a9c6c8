"""The kernel's books on a tree of processes: CPU time, memory; and pausing it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from benchmarks.compare.launcher import descendants, tell

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_ticks(stat: str) -> int:
    """CPU time of a process and of its children that have ended, from the text of its `stat` file.

    Source: proc(5); the name in parentheses may hold anything, so fields are counted from its end.
    """
    return sum(int(word) for word in stat.rpartition(")")[2].split()[11:15])


def _files(pids: list[int], name: str) -> Iterator[str]:
    for pid in pids:
        try:
            yield Path(f"/proc/{pid}/{name}").read_text()
        except OSError:
            continue


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and everybody below it, so far. Children that end count on at their parent."""
    return sum(map(cpu_ticks, _files([pid, *descendants(pid)], "stat"))) / TICKS_PER_S


def pss_mb(pid: int) -> float:
    """Proportional memory of everybody below a process, MB."""
    found = 0
    for text in _files(descendants(pid), "smaps_rollup"):
        found += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return found / 1000


def pause(pid: int) -> None:
    """Stop everybody below a process, so that nothing of it runs."""
    tell(descendants(pid), signal.SIGSTOP)


def go_on(pid: int) -> None:
    """Let those below go on."""
    tell(descendants(pid), signal.SIGCONT)
