"""Every scenario by its name. `python -m tests.faults.catalogue NAME TIMES DIRECTORY` plays one where it stands."""

import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from servd.ground.clock import SystemClock
from tests.faults import clock_steps, disks, hostile, hostile_grpc, limits, moments, network, older, sizes
from tests.faults.outcome import Outcome, from_json
from tests.faults.scenarios import UNDER_LOAD

Play = Callable[[Path, int], Outcome]
_OUTCOME = "outcome.json"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One line of the table.

    Args:
        few: repetitions in `make test`, 0 = not there.
        many: repetitions in `make faults` and `make test-all`, 0 = not there.
        namespaces: flags of `unshare`; () plays it in this very process.
        why_not: gives the reason why it cannot be tried here, "" if it can.
        is_test: also in `make test-all`.
    """

    play: Play
    few: int
    many: int
    namespaces: tuple[str, ...] = ()
    why_not: Callable[[], str] = str
    is_test: bool = True


def _once(play: Callable[[Path], Outcome]) -> Play:
    return lambda directory, _: play(directory)


_MOUNTS = ("-m", "--propagation", "private")
SCENARIOS: dict[str, Scenario] = {
    **{name: Scenario(play, few, many) for name, (play, few, many) in UNDER_LOAD.items()},
    "two_killed_at_once": Scenario(partial(moments.killed_together, moments.TWO), 0, 2 * len(moments.TWO)),
    "three_killed_at_once": Scenario(partial(moments.killed_together, moments.THREE), 0, 2 * len(moments.THREE)),
    **{
        f"stopped:{title}:{seconds}s": Scenario(partial(moments.stop, title, seconds), 0, 1)
        for title in moments.STOPPED
        for seconds in moments.SECONDS
    },
    **{
        f"descriptors:{title}": Scenario(_once(partial(limits.descriptors, title)), 0, 1)
        for title in limits.DESCRIPTORS
    },
    "crowd": Scenario(_once(limits.crowd), 0, 1),
    "processes": Scenario(_once(limits.processes), 0, 1, why_not=partial(limits.why_no_group, "pids")),
    "memory": Scenario(limits.memory, 0, 2, why_not=partial(limits.why_no_group, "memory")),
    "clock_steps": Scenario(clock_steps.clock_steps, 0, len(clock_steps.STEPS), why_not=clock_steps.why_not),
    "lost_packets": Scenario(_once(network.play), 0, 1, ("-n",), network.why_not),
    "idle_connections": Scenario(sizes.idle_connections, 0, 3),
    "documents_at_once": Scenario(sizes.documents_at_once, 0, 5),
    "deploys_in_a_row": Scenario(sizes.deploys_in_a_row, 0, 1),
    "many_applications": Scenario(sizes.many_applications, 0, 1),
    "many_replicas": Scenario(sizes.many_replicas, 0, 1, is_test=False),
    "first_release": Scenario(older.first_release, 0, 1),
    "sixty_commits_ago": Scenario(older.commits_ago, 0, 1, why_not=older.why_not),
    **{
        f"hostile:{kind}": Scenario(
            partial(hostile.play, kind),
            0,
            hostile.CONNECTIONS,
            why_not=hostile_grpc.why_not if kind in hostile_grpc.KINDS else str,
        )
        for kind in hostile.KINDS
    },
    "hostile": Scenario(hostile.play_some, 1, 0),
    **{cell: Scenario(_once(partial(disks.play, cell)), 0, 1, _MOUNTS, disks.why_not) for cell in disks.CELLS},
}


def play(name: str, times: int) -> Outcome:
    """Play one, in a directory and, where it asks for them, in namespaces of its own."""
    scenario = SCENARIOS[name]
    reason = scenario.why_not()
    if reason:
        return Outcome(name=name, reason=reason)
    # a short path, since sockets lie in it
    with tempfile.TemporaryDirectory(prefix="servd-f-") as path:
        directory = Path(path)
        if not scenario.namespaces:
            return _played(name, times, directory)
        apart = ["unshare", *scenario.namespaces, sys.executable, "-m", "tests.faults.catalogue"]
        done = subprocess.run([*apart, name, str(times), path], capture_output=True, text=True)
        try:
            return from_json((directory / _OUTCOME).read_text())
        except FileNotFoundError:
            return Outcome(times, name=name, notes=["it said nothing"], errors=done.stdout + done.stderr)


def _played(name: str, times: int, directory: Path) -> Outcome:
    clock = SystemClock()
    began = clock.now()
    try:
        outcome = SCENARIOS[name].play(directory, times)
    except AssertionError as error:
        # what it waited for did not come: the others are played all the same
        outcome = Outcome(times, notes=[f"ended early: {error}"], errors=traceback.format_exc())
    outcome.name, outcome.times, outcome.seconds = name, times, clock.now() - began
    return outcome


if __name__ == "__main__":
    given = sys.argv[1:]
    home = Path(given[2])
    (home / _OUTCOME).write_text(_played(given[0], int(given[1]), home).as_json())
