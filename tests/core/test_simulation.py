"""Seeded histories of the core: crashes, lost and late news, failing code; and planted faults that must be caught."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from servd.controller.plan import events
from servd.controller.plan.autoscaler import Decision
from servd.controller.plan.facts import DeploymentFact
from servd.controller.plan.observed import Observed
from servd.controller.plan.rollout import Step, next_step
from servd.controller.plan.routing import routing
from servd.controller.plan.start_verdict import is_settled, judge_starts
from servd.controller.plan.targets import DeploymentTarget
from servd.ground.states import ReplicaState
from servd.wire.messages import REPLICA, Routing
from tests.simulation import Simulation, Violation
from tests.simulation_properties import FAULTS

apply = Observed.apply
KINDS = 60
"""Of hosts, documents and daemons: what a history is about is its seed's remainder by 2, 3, 4 and 5."""


@pytest.mark.slow
@pytest.mark.parametrize("block", [0, pytest.param(1, marks=pytest.mark.long)])
def test_histories(block: int) -> None:
    for seed in range(block * KINDS, (block + 1) * KINDS):
        Simulation(seed).run()


@pytest.mark.slow
def test_gentle_histories() -> None:
    # every remainder comes up
    for seed in range(0, KINDS, 7):
        Simulation(seed, gentle=True).run()


@pytest.mark.long
@pytest.mark.parametrize("block", range(20))
def test_many_histories(block: int) -> None:
    for seed in range(10_000 + block * 1000, 11_000 + block * 1000):
        Simulation(seed, gentle=seed % 5 == 0).run()


FIRST = {"a lost drain kill": 1, "a lost reconfigure": 5, "a lost proxy stop": 19}
"""A history in which each is noticed, where that is not the first of all: it is played first."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str) -> None:
    for seed in (FIRST.get(fault, 0), *range(50)):
        try:
            Simulation(seed, mutate=FAULTS[fault]).run()
        except Violation:
            return
    pytest.fail(f"no history noticed: {fault}")


def stop_before_start(*args: Any, **options: Any) -> Step:
    step = next_step(*args, **options)
    old = [r for r in args[0] if r.version != args[1] and r.state is ReplicaState.RUNNING]
    return replace(step, drain=tuple((r, "replaced") for r in old))


def start_too_many(*args: Any, **options: Any) -> Step:
    step = next_step(*args, **options)
    return replace(step, start=step.start + 2 if step.start else 0)


def route_who_leaves(observed: Observed, leaving: object) -> Routing:
    return routing(observed, ())


def blame_for_lost_starts(observed: Observed, event: events.Event, now: float) -> bool:
    if isinstance(event, events.StartLost) and event.kind == REPLICA:
        event = events.StartFailed(REPLICA, event.id, "lost")
    return apply(observed, event, now)


def never_told(replica: object, target: object, may_reconfigure: bool) -> list[object]:
    return []


def never_scaled(config: object, current: int, *args: object, **options: object) -> Decision:
    return Decision(current, 0, 0.0, "", math.inf)


def judge_only_if_none_runs(
    target: DeploymentTarget, fact: DeploymentFact, observed: Observed, *args: Any
) -> DeploymentFact:
    replicas = observed.replicas_of(target.id.app, target.id.name)
    some_run = any(r.version == target.version and r.state is ReplicaState.RUNNING for r in replicas)
    if some_run and not is_settled(target, fact, observed):
        return fact
    return judge_starts(target, fact, observed, *args)


def roll_on(*args: Any, **options: Any) -> Step:
    return next_step(*args, **{**options, "stalled": False})


def never_outdated(fact: object, observed: Observed) -> bool:
    return False


DECISIONS = [
    ("servd.controller.plan.templates.is_outdated", never_outdated, "an upgrade ends", 2),
    ("servd.controller.plan.outgrown.is_ready_to_fork", never_outdated, "an upgrade ends", 2),
    ("servd.controller.plan.replica_plan.next_step", roll_on, "stands still", 25),
    ("servd.controller.plan.settle.judge_starts", judge_only_if_none_runs, "a roll ends", 25),
    ("servd.controller.plan.replica_plan.next_step", stop_before_start, "never below", 8),
    ("servd.controller.plan.replica_plan.next_step", start_too_many, "at most T + S", 0),
    ("servd.controller.plan.reconciler.routing", route_who_leaves, "a drained replica is not routed", 0),
    ("servd.controller.plan.observed.Observed.apply", blame_for_lost_starts, "nobody's failure", 6),
    ("servd.controller.plan.replica_plan._tell", never_told, "a roll ends", 5),
    ("servd.controller.plan.scaling.decide", never_scaled, "counts fit the load", 0),
]
"""(where, a wrong decision, the property that must notice, a history in which it does: it is played first)."""


@pytest.mark.slow
@pytest.mark.parametrize(("where", "wrong", "noticed", "first"), DECISIONS)
def test_wrong_decisions_are_caught(
    monkeypatch: pytest.MonkeyPatch, where: str, wrong: Callable[..., Any], noticed: str, first: int
) -> None:
    monkeypatch.setattr(where, wrong)
    gentle = "failure" in noticed
    for seed in (first, *range(KINDS)):
        try:
            Simulation(seed, gentle=gentle).run()
        except Violation as violation:
            if noticed in str(violation):
                return
    pytest.fail(f"no history noticed that {wrong.__name__}")
