"""The autoscaler at one deployment: its load as observed, its decision as a fact, and what a policy of user code is told."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from servd.controller.plan.autoscaler import (
    POLICY_DEADLINE_S,
    POLICY_IS_LATE,
    Decision,
    Question,
    Samples,
    decide,
    decide_by_policy,
    loads_of,
    look_again_at,
)
from servd.controller.plan.facts import DeploymentFact, ReplicaFact
from servd.controller.plan.observed import Observed
from servd.controller.plan.targets import DeploymentTarget, wanted_count
from servd.ground.states import SERVING, ReplicaState
from servd.wire.policy_messages import PolicyAsk

WARM_UP_S = 2.0
"""A replica that has just begun to report has done nothing yet: for so long its samples shrink nothing."""


def autoscale(
    target: DeploymentTarget, fact: DeploymentFact, observed: Observed, now: float
) -> tuple[DeploymentFact, float]:
    """The fact with the decision of this moment, and when to look again, monotonic seconds."""
    config = target.autoscaling
    assert config is not None
    current = wanted_count(target, fact)
    waiting = observed.waiting(target.id.full_name)
    if target.policy is not None:
        question = observed.questions.get(key := (target.id.app, target.id.name), Question())
        if now >= question.late_at:
            question = observed.questions[key] = question.given_up(now)
            fact = replace(fact, policy=fact.policy.failed(POLICY_IS_LATE, now))
        lean, serving = (fact.lean, fact.lean_since), len(_serving(target, observed))
        decision = decide_by_policy(config, current, serving, fact.policy.wanted, *lean, now, queued=waiting)
        wake_at = min(decision.wake_at, question.late_at)
    else:
        running = [replica for replica in _serving(target, observed) if replica.state is ReplicaState.RUNNING]
        samples, loads = _load(target, running, observed, now)
        decision = _decision(config, current, loads, waiting, fact, samples, now)
        wake_at = min(decision.wake_at, look_again_at(config, samples, loads, decision.lean, now))
    updated = replace(
        fact,
        # at none at all nothing is decided: whatever comes after begins anew
        desired=None if target.capacity == 0 else decision.target,
        lean=decision.lean,
        lean_since=decision.lean_since if decision.lean else 0.0,
        reason=decision.reason if decision.target != current or not fact.reason else fact.reason,
    ).after_decision(now, current, decision.target)
    if updated != observed.deployments.get((target.id.app, target.id.name)):
        observed.put(updated)
    return updated, wake_at


def _decision(
    config: dict[str, Any],
    current: int,
    loads: list[float],
    waiting: int,
    fact: DeploymentFact,
    samples: Sequence[Samples],
    now: float,
) -> Decision:
    warm_up_s = min(config["look_back_period_s"], WARM_UP_S)
    full_at = max((sample.began_at for sample in samples), default=-math.inf) + warm_up_s
    return decide(config, current, loads, waiting, fact.lean, fact.lean_since, now, full_at=full_at)


def _serving(target: DeploymentTarget, observed: Observed) -> list[ReplicaFact]:
    """Replicas that take requests, whether this controller has heard of them yet or not."""
    return [replica for replica in observed.replicas_of(target.id.app, target.id.name) if replica.state in SERVING]


def _load(
    target: DeploymentTarget, running: Sequence[ReplicaFact], observed: Observed, now: float
) -> tuple[list[Samples], list[float]]:
    """Samples of the replicas that have some, and their loads, shape (n,) both."""
    assert target.autoscaling is not None
    samples = [observed.samples[r.replica_id] for r in running if r.replica_id in observed.samples]
    since = now - target.autoscaling["look_back_period_s"]
    return samples, loads_of(samples, since, now, target.autoscaling.get("aggregation_function", "mean"))


def asked_next_at(targets: Sequence[DeploymentTarget], asked: Sequence[Question]) -> float:
    """When the policy of these deployments is to be asked next, monotonic seconds. asked: the last questions, as `targets`."""
    return max(one.next_at(target.autoscaling or {}) for target, one in zip(targets, asked, strict=True))


def ask_of(ask_id: str, targets: Sequence[DeploymentTarget], observed: Observed, now: float) -> PolicyAsk:
    """What is asked of the policy that these deployments have together."""
    policy = targets[0].policy
    assert policy is not None
    return PolicyAsk(
        ask_id,
        policy["policy_function"],
        json.dumps(policy.get("policy_kwargs") or {}),
        json.dumps([_told(target, observed, now) for target in targets]),
        of_application=bool(policy.get("of_application")),
        deadline_s=POLICY_DEADLINE_S,
        deployment="" if policy.get("of_application") else targets[0].id.name,
    )


def _told(target: DeploymentTarget, observed: Observed, now: float) -> dict[str, Any]:
    """As `autoscaling_context.context_of` reads it; times are seconds ago."""
    config, key = target.autoscaling, (target.id.app, target.id.name)
    assert config is not None
    fact = observed.deployments[key]
    serving = _serving(target, observed)
    _, loads = _load(target, serving, observed, now)
    queued = sum(line for (_, name), line in observed.queued.items() if name == target.id.full_name)
    up_s, down_s = (now - at if at > -math.inf else None for at in (fact.scaled_up_at, fact.scaled_down_at))
    return {
        "app": target.id.app,
        "deployment": target.id.name,
        "current_num_replicas": len(serving),
        "target_num_replicas": wanted_count(target, fact),
        "running_replicas": [replica.replica_id for replica in serving],
        # what waits is part of the replicas' loads, where there are any
        "total_num_requests": sum(loads) if loads else float(queued),
        "total_queued_requests": float(queued),
        "min_replicas": config["min_replicas"],
        "max_replicas": config["max_replicas"],
        "last_scale_up_s": up_s,
        "last_scale_down_s": down_s,
        "config": {name: value for name, value in config.items() if name != "policy" and value is not None},
    }
