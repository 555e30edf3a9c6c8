"""Roll-out steps as tables: at no moment fewer routed than wanted, at most T + R processes."""

from dataclasses import replace

import pytest

from servd.controller.plan.facts import ReplicaFact
from servd.controller.plan.rollout import next_step, rolling_step
from servd.ground.states import ReplicaState
from tests.core.build import a_replica

S, U, C, R, X = (
    ReplicaState.STARTING,
    ReplicaState.UPDATING,
    ReplicaState.RECOVERING,
    ReplicaState.RUNNING,
    ReplicaState.STOPPING,
)


def replicas(new: str, old: str = "") -> list[ReplicaFact]:
    """`new` and `old` are letters of states: S U C R X."""
    letters = {"S": S, "U": U, "C": C, "R": R, "X": X}
    return [
        a_replica(f"D#{version}{number}", version=version, state=letters[letter], created_at=float(number))
        for version, states in (("new", new), ("old", old))
        for number, letter in enumerate(states)
    ]


@pytest.mark.parametrize(
    ("target", "new", "old", "start", "drained"),
    [
        (0, "", "", 0, []),
        (2, "", "", 2, []),
        (2, "RR", "", 0, []),
        (2, "SR", "", 0, []),
        (2, "R", "", 1, []),
        (1, "", "R", 1, []),  # start first, also with one replica
        (1, "S", "R", 0, []),
        (1, "R", "R", 0, ["old0"]),
        (1, "R", "X", 0, []),
        (4, "", "RRRR", 1, []),
        (4, "R", "RRRR", 0, ["old0"]),
        (4, "R", "XRRR", 1, []),
        (10, "", "RRRRRRRRRR", 2, []),
        (10, "SR", "RRRRRRRRRR", 0, ["old0"]),
        (2, "RRR", "", 0, ["new2"]),
        (1, "RS", "", 0, ["new1"]),  # STARTING leaves before RUNNING
        (0, "RR", "R", 0, ["old0", "new1", "new0"]),
        (2, "", "S", 2, ["old0"]),  # an old one that does not serve yet leaves at once
        (2, "C", "", 1, []),
        (2, "XX", "", 2, []),
    ],
)
def test_step(target: int, new: str, old: str, start: int, drained: list[str]) -> None:
    step = next_step(replicas(new, old), "new", "config", target)
    assert step.start == start
    assert [fact.replica_id.removeprefix("D#") for fact, _ in step.drain] == drained


@pytest.mark.parametrize(("target", "step"), [(0, 1), (1, 1), (4, 1), (9, 1), (10, 2), (25, 5)])
def test_rolling_step(target: int, step: int) -> None:
    assert rolling_step(target) == step


@pytest.mark.parametrize(("count", "updating", "expected"), [(1, 0, 1), (4, 0, 1), (10, 0, 2), (10, 1, 1), (10, 2, 0)])
def test_reconfigure_in_steps(count: int, updating: int, expected: int) -> None:
    behind = [a_replica(f"D#{n}", version="new", config="before", state=R) for n in range(count - updating)]
    busy = [a_replica(f"D#u{n}", version="new", config="config", state=U) for n in range(updating)]
    step = next_step([*behind, *busy], "new", "config", count)
    assert (step.start, step.drain, len(step.reconfigure)) == (0, (), expected)


@pytest.mark.parametrize(
    ("target", "new", "old", "drained"),
    [
        (1, "", "R", 1),
        (1, "", "X", 0),
        (4, "", "RRRR", 1),
        (4, "", "XRRR", 0),  # the one that goes holds its device until it is gone
        (4, "S", "RRR", 0),
        (4, "R", "RRR", 1),
        (10, "", "RRRRRRRRRR", 2),
        (5, "", "RR", 1),  # less room than wanted
        (5, "", "XR", 0),
        (2, "RR", "", 0),
    ],
)
def test_old_ones_stop_first_where_no_device_is_free(target: int, new: str, old: str, drained: int) -> None:
    step = next_step(replicas(new, old), "new", "config", target, scarce=True)
    assert len(step.drain) == drained


@pytest.mark.parametrize(
    ("target", "states", "failing", "expected"),
    [
        (3, "RRR", False, 1),
        (3, "RR", False, 1),  # short for another reason
        (3, "RR", True, 0),
        (3, "RRS", True, 0),
        (3, "RRR", True, 1),
        (10, "RRRRRRRRR", True, 1),
        (10, "RRRRRRRR", True, 0),
    ],
)
def test_after_a_failure_what_is_missing_counts_as_being_updated(
    target: int, states: str, failing: bool, expected: int
) -> None:
    behind = [replace(r, version="new") for r in replicas("", states)]
    step = next_step(behind, "new", "another", target, failing=failing)
    assert len(step.reconfigure) == expected
