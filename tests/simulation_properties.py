"""What must hold in every history: safety at each step, liveness once the world is calm; and planted faults."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from servd.controller.plan import actions
from servd.controller.plan.actions import Action
from servd.controller.plan.outgrown import OF_BEFORE
from servd.controller.plan.rollout import rolling_step
from servd.controller.plan.targets import wanted_count
from servd.ground.states import SERVING, ApplicationStatus, ReplicaState

if TYPE_CHECKING:
    from tests.simulation import Simulation


def _ready_counts(sim: "Simulation") -> Iterator[tuple[str, int, int, int]]:
    """(deployment, wanted, living ones, step) of every target."""
    for key, target in sim.observed.targets.items():
        wanted = wanted_count(target, sim.observed.deployments.get(key))
        living = [r for r in sim.observed.replicas_of(*key) if r.state is not ReplicaState.STOPPING]
        yield target.id.full_name, wanted, len(living), rolling_step(wanted)


def bounded(sim: "Simulation", plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """No start takes the processes of a deployment, STOPPING ones apart, above T + S."""
    started = {a.fact.key for a in plan if isinstance(a, actions.StartReplica)}
    names = {f"{app}_{name}" for app, name in started}
    return all(living <= wanted + step for name, wanted, living, step in _ready_counts(sim) if name in names)


def never_below(sim: "Simulation", plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """A plan that drains by choice leaves at least the wanted number routed, or what there was before."""
    choices = ("replaced", OF_BEFORE)
    drained = {a.goal.replica_id for a in plan if isinstance(a, actions.DrainReplica) and a.reason in choices}
    for key, target in sim.observed.targets.items():
        replicas = sim.observed.replicas_of(*key)
        if not any(r.replica_id in drained and r.replica_id in sim.served for r in replicas):
            continue  # what never served takes nothing away
        serving = sum(r.state in SERVING for r in replicas)
        wanted = wanted_count(target, sim.observed.deployments.get(key))
        before = routed.get(target.id.full_name, 0)
        spared = rolling_step(wanted) if sim.settings.num_cpus is not None else 0  # without room old ones stop first
        if serving < min(wanted, before) - spared:
            return False
    return True


def routes_before_drains(sim: "Simulation", plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """A drained replica is in no published routing."""
    published = sim.observed.published
    if published is None:
        return True
    endpoints = {e.replica_id for t in published.targets for e in t.endpoints}
    return not endpoints & {a.goal.replica_id for a in plan if isinstance(a, actions.DrainReplica)}


def finds_by_deployment(sim: "Simulation", plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """The replicas of each deployment are found as by a look at all."""
    replicas = list(sim.observed.replicas.values())
    keys = {replica.key for replica in replicas}
    return keys == set(sim.observed.replicas.deployments()) and all(
        sim.observed.replicas_of(*key) == [replica for replica in replicas if replica.key == key] for key in keys
    )


def no_deleted_routes(sim: "Simulation", plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """Applications that are not wanted have no route."""
    published = sim.observed.published
    wanted = {app.name for app in sim.goal.applications}
    return published is None or all(route.app in wanted for route in published.routes)


def stalled_updates_stand_still(sim: "Simulation", plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """Where too many of the new ones failed, no old one goes for a new one, and none is started beyond what is missing."""
    drained = {a.goal.replica_id for a in plan if isinstance(a, actions.DrainReplica) and a.reason == "replaced"}
    started = {a.fact.key for a in plan if isinstance(a, actions.StartReplica)}
    for key, target in sim.observed.targets.items():
        fact = sim.observed.deployments.get(key)
        if fact is None or not fact.is_stalled:
            continue
        replicas = sim.observed.replicas_of(*key)
        living = [r for r in replicas if r.state is not ReplicaState.STOPPING]
        serving = [r for r in replicas if r.version != target.version and r.replica_id in sim.served]
        if key in started and len(living) > wanted_count(target, fact):
            return False
        if len(serving) <= wanted_count(target, fact) and any(r.replica_id in drained for r in serving):
            return False
    return True


def spawned_from_then_on(sim: "Simulation", plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """What a forked replica has lost a wait in is not forked again."""
    for start in (action for action in plan if isinstance(action, actions.StartReplica)):
        fact = sim.observed.deployments[start.fact.key]
        if fact.spawned_version == start.fact.version and not start.spawn:
            return False
    return True


def upgrades_leave_a_proxy(sim: "Simulation", plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """Proxies go for those of another edition once these listen, in every slot."""
    if not any(isinstance(a, actions.SetProxyGoal) and a.reason == "upgrade" for a in plan):
        return True
    staying = [p for p in sim.observed.proxies.values() if p.listening and not p.draining]
    return len(staying) == sim.settings.proxies


def nobody_is_blamed(sim: "Simulation", plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """Where code is good and only controllers die, nothing has failed."""
    deployments, applications = sim.observed.deployments.values(), sim.observed.applications.values()
    blamed = any(fact.failures or fact.trouble for fact in deployments) or any(a.build_attempts for a in applications)
    return not sim.gentle or not blamed


def who_waits_is_served(sim: "Simulation", plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """Where a request waits no policy takes the last replica away."""
    waited = [t for t in sim.observed.targets.values() if t.policy is not None and sim.observed.waiting(t.id.full_name)]
    return all(wanted_count(t, sim.observed.deployments.get((t.id.app, t.id.name))) for t in waited)


def policies_take_small_steps(sim: "Simulation", plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """Where replicas served and still do, a policy's count grows by its share of the way alone, a new controller's too."""
    for key, target in sim.observed.targets.items():
        fact = sim.observed.deployments.get(key)
        if target.policy is None or target.autoscaling is None or fact is None:
            continue
        if fact.decisions in ((), sim.decided.get(key)):
            continue
        last, before = fact.decisions[-1], [r for r in sim.observed.replicas_of(*key) if r.replica_id in sim.served]
        if last.after <= last.before or not any(r.state in SERVING for r in before):
            continue
        low, high, share = (target.autoscaling[name] for name in ("min_replicas", "max_replicas", "upscaling_factor"))
        if last.after > max(low, math.ceil(len(before) + (high - len(before)) * share)):
            return False
    return True


SAFETY: dict[str, Callable[["Simulation", tuple[Action, ...], dict[str, int]], bool]] = {
    "at most T + S processes": bounded,
    "never below the wanted running count by choice": never_below,
    "a drained replica is not routed": routes_before_drains,
    "replicas are found by their deployment": finds_by_deployment,
    "a deleted application has no route": no_deleted_routes,
    "an update that has stopped stands still": stalled_updates_stand_still,
    "an upgrade leaves a proxy in every slot": upgrades_leave_a_proxy,
    "the death of a controller is nobody's failure": nobody_is_blamed,
    "who has lost a wait is spawned": spawned_from_then_on,
    "who waits is served whatever a policy says": who_waits_is_served,
    "a policy's steps are as small as they shall be": policies_take_small_steps,
}


def every_roll_has_ended(sim: "Simulation") -> bool:
    """Every wanted application is RUNNING or DEPLOY_FAILED, however bad its code is."""
    facts = [sim.observed.applications.get(app.name) for app in sim.goal.applications]
    pairs = zip(facts, sim.goal.applications, strict=True)
    return all(fact is not None and fact.goal.deploy_id == app.deploy_id and fact.settled for fact, app in pairs)


def goal_is_reached(sim: "Simulation") -> bool:
    """Every wanted application settled, every deployment at its count, one version, one config, no wait lost."""
    for wish in sim.goal.applications:
        fact = sim.observed.applications.get(wish.name)
        if fact is None or fact.built_deploy_id != wish.deploy_id or not fact.settled:
            return False
        if fact.settled == ApplicationStatus.DEPLOY_FAILED and "ImportError" in fact.message:
            continue
        for key, target in sim.observed.targets.items():
            if key[0] == wish.name:
                replicas = sim.observed.replicas_of(*key)
                fits = [r for r in replicas if r.version == target.version and r.state is ReplicaState.RUNNING]
                configs = {r.config_version for r in replicas}
                if any(r.lost_wait for r in replicas):
                    return False
                if len(fits) != len(replicas) or len(replicas) != wanted_count(
                    target, sim.observed.deployments.get(key)
                ):
                    return False
                if configs and configs != {target.config_version}:
                    return False
    return True


def nothing_is_left_over(sim: "Simulation") -> bool:
    """What is not wanted is gone, in the facts and in the world."""
    wanted = {app.name for app in sim.goal.applications}
    known = {*sim.observed.replicas, *sim.observed.fork_servers, *sim.observed.proxies}
    alive = {p.id for p in sim.processes.values() if p.alive}
    return set(sim.observed.applications) == wanted and alive == known


def data_plane_follows(sim: "Simulation") -> bool:
    """Every slot has a listening proxy exactly while Serve runs."""
    listening = [p for p in sim.observed.proxies.values() if p.listening]
    return len(listening) == (sim.settings.proxies if sim.goal.running else 0)


def every_replica_applied(sim: "Simulation") -> bool:
    """The processes run what the facts say."""
    processes = {r.replica_id: sim.processes.get(r.replica_id) for r in sim.observed.replicas.values()}
    return all(
        p is not None and p.applied == sim.observed.replicas[name].config_version for name, p in processes.items()
    )


def counts_fit_the_load(sim: "Simulation") -> bool:
    """An autoscaled deployment that nobody pinned has as many replicas as its load asks for, or its policy."""
    for (app, name), target in sim.observed.targets.items():
        config = target.autoscaling
        if config is None or target.pinned is not None or name != "Main":
            continue
        wish = sim.goal.application(app)
        fact = sim.observed.applications[app]
        if wish is None or fact.settled == ApplicationStatus.DEPLOY_FAILED:
            continue
        asked = math.ceil(sim.load.get(app, 0) / config["target_num_ongoing_requests_per_replica"])
        if target.policy is not None:
            asked = sim.CALM_POLICY
        wanted = max(config["min_replicas"], min(config["max_replicas"], asked))
        if len(sim.observed.replicas_of(app, name)) != wanted:
            return False
    return True


def upgrades_end(sim: "Simulation") -> bool:
    """Every process is of the daemon's edition, if that has changed."""
    observed = sim.observed
    if observed.upgrade is None:
        return True
    every = (*observed.proxies.values(), *observed.fork_servers.values(), *observed.replicas.values())
    return observed.upgrade.is_over and all(fact.edition == observed.edition for fact in every)


LIVENESS: dict[str, Callable[["Simulation"], bool]] = {
    "the goal is reached": goal_is_reached,
    "nothing is left over": nothing_is_left_over,
    "the data plane follows the goal": data_plane_follows,
    "every replica applied its config": every_replica_applied,
    "autoscaled counts fit the load": counts_fit_the_load,
    "an upgrade ends": upgrades_end,
}

FAULTS: dict[str, Callable[[Action], Action | None]] = {
    "a lost drain kill": lambda a: None if isinstance(a, actions.KillReplica) else a,
    "a lost start": lambda a: None if isinstance(a, actions.StartReplica) else a,
    "a lost reconfigure": lambda a: None if isinstance(a, actions.SetReplicaGoal) else a,
    "a lost fork server stop": lambda a: None if isinstance(a, actions.StopForkServer) else a,
    "a lost proxy stop": lambda a: None if isinstance(a, actions.SetProxyGoal | actions.KillProxy) else a,
    "a lost proxy start": lambda a: None if isinstance(a, actions.StartProxy) else a,
    "an id twice": lambda a: (
        replace(a, fact=replace(a.fact, start=replace(a.fact.start, replica_id="twice")))
        if isinstance(a, actions.StartReplica)
        else a
    ),
}
"""Planted faults: each must be caught by some history."""
