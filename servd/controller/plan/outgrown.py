"""Processes that are replaced though their version is right: by a fresh one each, start first, drain last.

How this works: the verdict is written into the replica's fact and stays, so memory that is given back in the middle of a
replacement changes nothing. A limit that every fresh replica exceeds at once must not become a hot loop: replicas that lived
a short time only are replaced one by one, with a pause between.

When the daemon has become another edition of servd, whatever is of another one makes room: proxies first, then, once a fork
server of this edition stands ready, its deployments' replicas. A process counts as what started it, whatever it says of itself:
so none is replaced twice.
"""

import math
from dataclasses import replace

from servd.controller.plan.facts import ForkServerFact, ProxyFact, ReplicaFact
from servd.controller.plan.observed import Observed
from servd.controller.plan.targets import DeploymentTarget
from servd.ground.states import ROUTABLE, ReplicaState, UpgradeStage

PAUSE_S = 10.0
"""Between two replacements, where the second replica lived less than `SETTLED_S`."""
SETTLED_S = 60.0
OF_BEFORE = "is of the servd before the upgrade"
"""Why a replica is outgrown that is of another edition; for people."""


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


def is_outdated(fact: ProxyFact | ForkServerFact | ReplicaFact, observed: Observed) -> bool:
    """Whether an upgrade is to replace it now: it is of another edition, and its turn has come."""
    upgrade = observed.upgrade
    if upgrade is None or upgrade.is_over or fact.edition == observed.edition:
        return False
    return isinstance(fact, ProxyFact) or upgrade.stage == UpgradeStage.REPLICAS


def settle_upgrade(observed: Observed) -> None:
    """Note how far an upgrade is, and which replicas it may replace now."""
    upgrade = observed.upgrade
    if upgrade is None or upgrade.is_over:
        return
    if any(is_outdated(proxy, observed) and not proxy.draining for proxy in observed.proxies.values()):
        return
    observed.change(upgrade, stage=UpgradeStage.REPLICAS.value)
    for key, target in observed.targets.items():
        if not is_ready_to_fork(target, observed):
            continue
        for replica in observed.replicas_of(*key):
            is_going = replica.outgrown or replica.state is ReplicaState.STOPPING
            if not is_going and is_outdated(replica, observed):
                observed.put(replace(replica, outgrown=OF_BEFORE))
    every: list[ProxyFact | ForkServerFact | ReplicaFact] = [*observed.proxies.values()]
    every += [*observed.fork_servers.values(), *observed.replicas.values()]
    if not any(is_outdated(fact, observed) for fact in every):
        observed.change(upgrade, stage=UpgradeStage.DONE.value)


def is_ready_to_fork(target: DeploymentTarget, observed: Observed) -> bool:
    """Whether a fork server that stays stands ready for replicas of the target."""
    app = observed.applications.get(target.id.app)
    return app is not None and any(
        server.template_version == app.code_version
        and server.result is not None
        and not server.result.error
        and not server.stopping
        and not is_outdated(server, observed)
        and target in observed.served_by(server)
        for server in observed.fork_servers.values()
    )


def over_limit_text(memory_bytes: int, limit_bytes: int) -> str:
    """For people: both figures."""
    return (
        f"uses {memory_bytes} bytes of memory ({_mebibytes(memory_bytes)}), above memory_limit_bytes {limit_bytes} "
        f"({_mebibytes(limit_bytes)})"
    )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
