"""Replicas that use more memory than they may: each is replaced by a fresh one, start first, drain last.

How this works: the verdict is written into the replica's fact and stays, so memory that is given back in the middle of a
replacement changes nothing. A limit that every fresh replica exceeds at once must not become a hot loop: replicas that lived
a short time only are replaced one by one, with a pause between.
"""

import math
from dataclasses import replace

from servd.controller.plan.observed import Observed
from servd.controller.plan.targets import DeploymentTarget
from servd.ground.states import ROUTABLE

PAUSE_S = 10.0
"""Between two replacements, where the second replica lived less than `SETTLED_S`."""
SETTLED_S = 60.0


def settle_memory(target: DeploymentTarget, observed: Observed, now: float) -> float:
    """Judge the replicas of one deployment; gives the moment to look again (monotonic seconds, inf = on news only)."""
    key = (target.id.app, target.id.name)
    fact = observed.deployments[key]
    wake_at = math.inf
    for replica in observed.replicas_of(*key):
        limit = replica.start.goal.memory_limit_bytes
        is_above = 0 < limit < replica.memory_bytes
        if not is_above or replica.outgrown or replica.state not in ROUTABLE:
            continue
        may_at = fact.outgrown_at + PAUSE_S
        if may_at > now and now - replica.created_at < SETTLED_S:
            wake_at = min(wake_at, may_at)
            continue
        fact = replace(fact, outgrown_at=now)
        observed.put(fact)
        observed.put(replace(replica, outgrown=over_limit_text(replica.memory_bytes, limit)))
    return wake_at


def over_limit_text(memory_bytes: int, limit_bytes: int) -> str:
    """For people: both figures."""
    return (
        f"uses {memory_bytes} bytes of memory ({_mebibytes(memory_bytes)}), above memory_limit_bytes {limit_bytes} "
        f"({_mebibytes(limit_bytes)})"
    )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
