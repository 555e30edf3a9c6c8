"""Loopback loses packets and is slow, in a network namespace of its own."""

import os
import subprocess
from pathlib import Path

from tests.faults.cell import Cell
from tests.faults.outcome import Outcome
from tests.faults.scenarios import a_stage
from tests.system.running_daemon import RunningDaemon

LOST = 0.02
"""Share of the packets; a connection whose first one is lost takes a second longer, as the kernel has it."""
RATE = "4mbit"
LASTS_S = 3.0
# classic BPF: drop (2) if a random number is above the bound, else pass on (-1)
_RANDOM, _ABOVE, _RETURN = "32 0 0 4294963256", "37 0 1 {}", "6 0 0 {}"


def why_not() -> str:
    """Why this cannot be tried here; "" if it can."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    script = f"{' && '.join([' '.join(line) for line in _quoted(_begin())])}"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", f"ip link set lo up && {script}"], capture_output=True, text=True
    )
    return done.stderr.strip() if done.returncode else ""


def _begin() -> list[list[str]]:
    bound = int((1 - LOST) * 2**32)
    code = [_RANDOM, _ABOVE.format(bound), _RETURN.format(2), _RETURN.format(2**32 - 1)]
    return [
        # no packet may be larger than what goes at once
        ["ip", "link", "set", "lo", "mtu", "1500"],
        ["tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", RATE, "burst", "8kb", "latency", "500ms"],
        ["tc", "qdisc", "add", "dev", "lo", "clsact"],
        ["tc", "filter", "add", "dev", "lo", "ingress", "bpf", "da", "bytecode", f"{len(code)},{','.join(code)},"],
    ]


def _quoted(commands: list[list[str]]) -> list[list[str]]:
    return [[f"'{word}'" for word in command] for command in commands]


class BadLoopback:
    """Packets are lost and wait in line."""

    def begin(self, daemon: RunningDaemon) -> None:
        """From now on."""
        for command in _begin():
            subprocess.run(command, check=True)

    def end(self) -> None:
        """All arrive, at once."""
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "clsact"], check=True)
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=True)

    def forget(self) -> None:
        """It ends with its namespace."""


def play(directory: Path) -> Outcome:
    """Packets on loopback are lost and delayed, while each kind of process is killed in turn."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with a_stage(directory, replicas=2, proxies=2) as stage:
        return Cell(stage, BadLoopback(), lasts_s=LASTS_S).play()
