"""Actions for the replicas of every deployment: start, tell, drain, kill."""

import math
import random
from collections.abc import Iterator
from dataclasses import fields, replace
from operator import attrgetter

from servd.controller.plan import actions
from servd.controller.plan.facts import ApplicationFact, DeploymentFact, ReplicaFact
from servd.controller.plan.observed import Observed
from servd.controller.plan.resources import Held, Pool, place
from servd.controller.plan.restarts import PROBATION_S, BackOff, retry_delay_s
from servd.controller.plan.rollout import free_ranks, next_step, ranks_of
from servd.controller.plan.settle import is_replaced
from servd.controller.plan.silence import is_spawned
from servd.controller.plan.targets import DeploymentTarget, failures_allowed, wanted_count
from servd.controller.plan.templates import template_for
from servd.ground.ids import ReplicaID, random_hex, random_letters
from servd.ground.settings import Settings, replica_address
from servd.ground.states import ROUTABLE, ReplicaState
from servd.wire.messages import ReplicaGoal, ReplicaStart

KILL_AGAIN_S = 5.0
RECOVERING_LIMIT_S = 30.0
_shared = attrgetter(*(field.name for field in fields(ReplicaGoal) if field.name not in ("replica_id", "rank")))
MAX_STARTING = 64
"""Replicas of one deployment that start at a time: a large goal is reached in steps, and the host stays usable."""


def replica_actions(
    observed: Observed, settings: Settings, now: float, rng: random.Random
) -> Iterator[actions.Action | float]:
    """Actions that bring the replicas of all deployments to their goals, and moments to look again."""
    # what living replicas hold, and what is promised to those that start now
    held = [replica.held for replica in observed.replicas.values()]
    keys = {**observed.targets, **dict.fromkeys(observed.replicas.deployments())}
    # what is freed goes to who has least: an update that had to stop first must not lose its place to a bystander
    for key in sorted(keys, key=lambda key: _share(key, observed)):
        replicas = observed.replicas_of(*key)
        target = observed.targets.get(key)
        app = observed.applications.get(key[0])
        fact = observed.deployments.get(key)
        if not replicas and target is not None and wanted_count(target, fact) == 0:
            continue  # at zero, as wanted: there may be thousands of these
        if target is not None and app is not None and fact is not None:
            yield from _to_goal(target, app, fact, replicas, held, observed, settings, now, rng)
        else:
            yield from _drain_all(replicas, key, observed)
        for replica in replicas:
            yield from _kill_late(replica, now)


def _share(key: tuple[str, str], observed: Observed) -> float:
    """Replicas that are not STOPPING over wanted ones."""
    target = observed.targets.get(key)
    wanted = 0 if target is None else wanted_count(target, observed.deployments.get(key))
    living = sum(replica.state is not ReplicaState.STOPPING for replica in observed.replicas_of(*key))
    return living / wanted if wanted else 1.0


def _to_goal(
    target: DeploymentTarget,
    app: ApplicationFact,
    fact: DeploymentFact,
    replicas: list[ReplicaFact],
    held: list[Held],
    observed: Observed,
    settings: Settings,
    now: float,
    rng: random.Random,
) -> Iterator[actions.Action | float]:
    wanted = wanted_count(target, fact)
    scarce = place(target.need, held, Pool.of(settings)) is None
    proven_at = _proven_at(target, fact, replicas)
    step = next_step(
        replicas,
        target.version,
        target.config_version,
        wanted,
        share=target.rolling_share,
        surge_percent=target.surge_percent,
        scarce=scarce,
        failing=fact.failures > 0,
        stalled=fact.is_stalled,
        unproven=[replica_id for replica_id, at in proven_at.items() if at > now],
    )
    yield min((at for at in proven_at.values() if at > now), default=math.inf)
    leaving = {replica.replica_id for replica, _ in step.drain}
    staying = [r for r in replicas if _counts(r, target) and r.replica_id not in leaving]
    ranks = ranks_of(staying, wanted)
    running = sum(r.state is ReplicaState.RUNNING for r in replicas)
    starting = sum(r.state is ReplicaState.STARTING for r in replicas)
    # the news of those that start bring us back
    count = min(step.start, MAX_STARTING - starting)
    if count > 0:
        reason = f"goal {wanted}, running {running}"
        free = free_ranks(set(ranks.values()))
        yield from _start(count, reason, target, app, fact, held, observed, settings, now, rng, free)
    for replica, reason in step.drain:
        yield _drain(replica, target, reason)
    may_reconfigure = {replica.replica_id for replica in step.reconfigure}
    told = _shared(target.replica_goal("", world_size=wanted))
    for replica in replicas:
        if _awaits_drain(replica):
            yield _drain(replica, target, replica.stop_reason)
        rank = ranks.get(replica.replica_id, replica.start.goal.rank)
        is_up_to_date = replica.start.goal.rank == rank and _shared(replica.start.goal) == told
        if not is_up_to_date and replica.replica_id not in leaving and replica.version == target.version:
            goal = target.replica_goal(replica.replica_id, rank, wanted)
            yield from _tell(replica, goal, replica.replica_id in may_reconfigure)


def _counts(replica: ReplicaFact, target: DeploymentTarget) -> bool:
    """Whether it is one of those that the deployment shall have, and that have ranks."""
    return replica.version == target.version and not replica.outgrown and replica.state is not ReplicaState.STOPPING


def _proven_at(target: DeploymentTarget, fact: DeploymentFact, replicas: list[ReplicaFact]) -> dict[str, float]:
    """When old replicas may go for each new one that runs; empty while none of the new ones has died early."""
    if fact.died_early_at == -math.inf:
        return {}
    running = [r for r in replicas if r.version == target.version and r.state in ROUTABLE]
    return {r.replica_id: r.ready_at + PROBATION_S for r in running}


def _start(
    count: int,
    reason: str,
    target: DeploymentTarget,
    app: ApplicationFact,
    fact: DeploymentFact,
    held: list[Held],
    observed: Observed,
    settings: Settings,
    now: float,
    rng: random.Random,
    ranks: Iterator[int],
) -> Iterator[actions.Action | float]:
    threshold = failures_allowed(target, fact)
    retry_at = fact.failed_at + retry_delay_s(
        target.id.full_name, fact.failures, threshold, BackOff(), is_host_limit=fact.is_host_limit
    )
    if retry_at > now:
        yield retry_at
        return
    server = template_for(target, app, observed)
    if server is None or server.result is None or server.result.error:
        return  # the template's news bring us back
    if fact.failures >= threshold:
        count = 1  # probe with one: a broken version must not burn a whole round of processes at each try
    spawn = is_spawned(target, fact, server)
    for _ in range(count):
        placed = place(target.need, held, Pool.of(settings))
        if placed is None:
            return  # the exit of another replica brings us back
        held.append(placed)
        place_among = next(ranks), wanted_count(target, fact)
        fresh = _new_replica(target, server.fork_server_id, observed, settings, now, rng, place_among)
        fresh = replace(_on_devices(fresh, placed), was_forked=not spawn, edition=server.edition)
        yield actions.StartReplica(fresh, spawn, reason)


def _on_devices(replica: ReplicaFact, placed: Held) -> ReplicaFact:
    variables = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, placed.devices))} if placed.devices else {}
    return replace(
        replica,
        start=replace(replica.start, variables=variables),
        cpus=placed.cpus,
        gpu_share=placed.share,
        devices=placed.devices,
    )


def _new_replica(
    target: DeploymentTarget,
    fork_server_id: str,
    observed: Observed,
    settings: Settings,
    now: float,
    rng: random.Random,
    place_among: tuple[int, int],
) -> ReplicaFact:
    replica_id = str(ReplicaID(target.id, random_letters(6, rng)))
    while replica_id in observed.replicas:
        replica_id = str(ReplicaID(target.id, random_letters(6, rng)))
    actor_id, worker_id = random_hex(32, rng), random_hex(56, rng)
    start = ReplicaStart(
        replica_id=replica_id,
        app=target.id.app,
        deployment=target.id.name,
        token=random_hex(32, rng),
        address=replica_address(settings.socket_dir, actor_id[:12]),
        goal=target.replica_goal(replica_id, *place_among),
        max_sync_threads=target.options["max_sync_threads"],
        state_dir=settings.state_dir,
        socket_dir=settings.socket_dir,
        log_dir=settings.log_dir,
        default_variables=target.thread_variables,
        actor_id=actor_id,
        worker_id=worker_id,
    )
    return ReplicaFact(
        replica_id=replica_id,
        app=target.id.app,
        deployment=target.id.name,
        version=target.version,
        fork_server_id=fork_server_id,
        start=start,
        actor_id=actor_id,
        worker_id=worker_id,
        created_at=now,
        state_since=now,
    )


def _tell(replica: ReplicaFact, goal: ReplicaGoal, may_reconfigure: bool) -> Iterator[actions.Action]:
    if replica.state is ReplicaState.STOPPING:
        return
    current = replica.start.goal
    if goal == current:
        return
    held_back = replica.state in (ReplicaState.RUNNING, ReplicaState.UPDATING) and not may_reconfigure
    if goal.config_version != current.config_version and held_back:
        goal = replace(goal, config_version=current.config_version, user_config=current.user_config)
    if goal != current:
        yield actions.SetReplicaGoal(goal, _reason_to_tell(current, goal))


def _reason_to_tell(before: ReplicaGoal, after: ReplicaGoal) -> str:
    if after.config_version != before.config_version:
        return "reconfigure"
    # how many are wanted, that is
    return "new count" if before == replace(after, rank=before.rank, world_size=before.world_size) else "new options"


def _drain(replica: ReplicaFact, target: DeploymentTarget | None, reason: str) -> actions.DrainReplica:
    timeout_s = target.drain_timeout_s if target else replica.start.goal.graceful_shutdown_timeout_s
    wait_s = float(target.options["graceful_shutdown_wait_loop_s"]) if target else 2.0
    goal = replace(replica.start.goal, drain=True, graceful_shutdown_timeout_s=timeout_s)
    return actions.DrainReplica(goal, wait_s, reason)


def _drain_all(replicas: list[ReplicaFact], key: tuple[str, str], observed: Observed) -> Iterator[actions.Action]:
    """Of a deployment that is not wanted any more. In a deleted application callers go first, so what runs can still call."""
    app = observed.applications.get(key[0])
    if app is not None and app.deleting and _callers_live(app, key[1], observed):
        return
    goes_on = app is not None and not app.deleting and app.active is not None
    if app is not None and goes_on and (not is_replaced(app, observed) or _earlier_callers_live(app, key[1], observed)):
        return  # the build before goes on until the new one serves, and what it calls until its requests have ended
    for replica in replicas:
        if replica.state is not ReplicaState.STOPPING or _awaits_drain(replica):
            yield _drain(replica, None, replica.stop_reason or "no longer in the application")


def _awaits_drain(replica: ReplicaFact) -> bool:
    """Whether it shall go, and has not been told yet."""
    return replica.state is ReplicaState.STOPPING and not replica.drain_sent and replica.kill_at == math.inf


def _callers_live(app: ApplicationFact, deployment: str, observed: Observed) -> bool:
    if app.active is None:
        return False
    names = [built.name for built in app.active.deployments]
    if deployment not in names:
        return False
    later = set(names[names.index(deployment) + 1 :])
    return any(r.app == app.name and r.deployment in later for r in observed.replicas.values())


def _earlier_callers_live(app: ApplicationFact, deployment: str, observed: Observed) -> bool:
    """Whether replicas of the build before live that may call one of its deployments, which the new one has not."""

    def may_call(replica: ReplicaFact) -> bool:
        target = observed.targets.get((replica.app, replica.deployment))
        if target is None:
            return replica.deployment == app.last_ingress != deployment
        return replica.version != target.version

    return any(replica.app == app.name and may_call(replica) for replica in observed.replicas.values())


def _kill_late(replica: ReplicaFact, now: float) -> Iterator[actions.Action | float]:
    kill_at = replica.kill_at
    if replica.state is ReplicaState.RECOVERING:
        kill_at = min(kill_at, replica.state_since + RECOVERING_LIMIT_S)
    due = max(kill_at, replica.killed_at + KILL_AGAIN_S)
    if due <= now:
        reason = (
            "did not report after the restart" if replica.state is ReplicaState.RECOVERING else "drain time is over"
        )
        yield actions.KillReplica(replica.replica_id, replica.stop_reason or reason)
    elif due < math.inf:
        yield due
