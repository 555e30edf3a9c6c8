"""Holds the processes of one system: `python launcher.py COMMANDS`, a JSON list of command lines.

All of them share the launcher's session, as Linux shares out the CPU by sessions (autogroups) and then by processes; whoever
they leave behind becomes the launcher's child, so one walk down the tree finds every process of the system. They end when
the launcher's standard input does, that is also when the benchmark is killed.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 10.0


def descendants(pid: int) -> list[int]:
    """Every process below one, parents first."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def reap() -> bool:
    """Bury the dead; whether anybody lives."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def tell(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those that still live."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def end_all(started: list[int]) -> None:
    """End every process below: gently what was started here, then all by force."""
    tell(descendants(os.getpid()), signal.SIGCONT)
    tell(started, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while reap() and time.monotonic() < deadline:
        time.sleep(0.02)
    while reap():
        tell(descendants(os.getpid()), signal.SIGKILL)
        time.sleep(0.02)


def main() -> None:
    """Start the commands, wait, end them."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # a Ctrl-C meant for the benchmark is its business
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    started: list[int] = []
    try:
        for command in json.loads(sys.argv[1]):
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            process.returncode = 0  # reaped here, not by the object
            started.append(process.pid)
        while reap():
            if select.select([sys.stdin], [], [], 1.0)[0]:
                break
    finally:
        end_all(started)


if __name__ == "__main__":
    main()
