"""Facts that follow from other facts: a wish becomes known, a finished build becomes active, an application is RUNNING.

Called once per turn, before `reconcile`. It has no effects and mints no ids.
"""

import math
from dataclasses import asdict, replace
from typing import Any

from servd.controller.plan.autoscaler import first_target
from servd.controller.plan.data_plane import settle_data_plane
from servd.controller.plan.differences import code_fields, differences
from servd.controller.plan.facts import ApplicationFact, DeploymentFact, ForkServerFact
from servd.controller.plan.goal import ApplicationGoal, Goal
from servd.controller.plan.neighbours import check_neighbours, ended_build
from servd.controller.plan.observed import Observed
from servd.controller.plan.outgrown import settle_memory, settle_upgrade
from servd.controller.plan.restarts import EARLY_DEATH_S
from servd.controller.plan.scaling import autoscale
from servd.controller.plan.silence import settle_lost_waits, settle_silence
from servd.controller.plan.start_verdict import (
    BUILD_RETRIES,
    is_settled,
    judge_starts,
    note_slow_starts,
    settle_templates,
)
from servd.controller.plan.targets import (
    DeploymentTarget,
    base_environment,
    digest,
    resolve,
    wanted_count,
)
from servd.exceptions import DeployError
from servd.ground.states import SERVING, ApplicationStatus, DeploymentStatus, ReplicaState

# a verdict on a version holds for it whatever its counts and options
_KEPT = (
    "dead",
    "unfit_version",
    "unfit_reason",
    "spawned_version",
    "spawned_reason",
    "decisions",
    "restarts",
    "scaled_up_at",
    "scaled_down_at",
)
RUNNING = ApplicationStatus.RUNNING.value
DEPLOY_FAILED = ApplicationStatus.DEPLOY_FAILED.value


def settle(goal: Goal, observed: Observed, now: float) -> float:
    """Bring derived facts up to date; gives the moment to look again (monotonic seconds, inf = on news only)."""
    for wish in goal.applications:
        _take_wish(wish, observed)
    wanted = {wish.name for wish in goal.applications}
    # first of all: what they leave is free
    for app in list(observed.applications.values()):
        if app.name not in wanted:
            _settle_deletion(app, observed, now)
    for app in list(observed.applications.values()):
        if app.name in wanted:
            _settle_build(_to_build_again(app, observed, now), observed, now)
    # of those that needed no build the first ones could not know yet what the last ones keep
    for app in list(observed.applications.values()):
        if app.name in wanted:
            _settle_build(app, observed, now)
    observed.targets = _targets(observed)
    settle_templates(observed, now)
    settle_lost_waits(observed, now)
    settle_upgrade(observed)
    wake_at = min((app.build_retry_at for app in observed.applications.values()), default=math.inf)
    for target in observed.targets.values():
        wake_at = min(wake_at, _settle_deployment(target, observed, now), settle_memory(target, observed, now))
    wake_at = min(wake_at, settle_silence(observed, now), note_slow_starts(observed, now))
    _forget_gone(observed)
    settle_data_plane(goal, observed)
    for app in list(observed.applications.values()):
        _settle_application(app, observed)
    return wake_at


def deployment_status(
    target: DeploymentTarget | None, fact: DeploymentFact | None, observed: Observed
) -> DeploymentStatus:
    """Status of one deployment, from facts."""
    if fact is not None and fact.trouble and target is not None:
        return DeploymentStatus.UNHEALTHY
    if target is None or fact is None or not is_settled(target, fact, observed):
        return DeploymentStatus.UPDATING
    return DeploymentStatus.HEALTHY


def _take_wish(wish: ApplicationGoal, observed: Observed) -> None:
    fact = observed.applications.get(wish.name)
    active = fact.active_goal if fact is not None else None
    if fact is not None and fact.goal.target_capacity != wish.target_capacity:
        for one in list(observed.deployments.values()):
            if one.app == wish.name and one.trigger == "AUTOSCALING":
                observed.put(replace(one, trigger="CONFIG_UPDATE_STARTED"))
    if fact is None:
        ordinal = 1 + max((a.ordinal for a in observed.applications.values()), default=0)
        observed.put(ApplicationFact(wish.name, ordinal, wish))
    elif fact.goal.deploy_id != wish.deploy_id:
        observed.put(
            replace(
                fact,
                goal=wish,
                build_attempts=0,
                build_retries=0,
                build_retry_at=math.inf,
                settled="",
                message="",
                deleting=False,
                active=None if fact.deleting else fact.active,
                active_goal=None if fact.deleting else active and replace(active, target_capacity=wish.target_capacity),
            )
        )
    elif fact.goal.counts != wish.counts:
        counted = active and replace(active, scale=wish.scale, target_capacity=wish.target_capacity)
        observed.put(replace(fact, goal=wish, active_goal=counted))


def _settle_deletion(app: ApplicationFact, observed: Observed, now: float) -> None:
    if not app.deleting:
        observed.put(replace(app, deleting=True, message="", build_retry_at=math.inf))
    for replica in list(observed.replicas.values()):
        if replica.app == app.name and replica.state is not ReplicaState.STOPPING:
            observed.put(
                replace(replica, state=ReplicaState.STOPPING, state_since=now, stop_reason="application deleted")
            )


def _to_build_again(app: ApplicationFact, observed: Observed, now: float) -> ApplicationFact:
    """The application, with its failed build forgotten if the time has come to try once more."""
    if now < app.build_retry_at:
        return app
    again = replace(app, built_deploy_id=0, build_retries=app.build_retries + 1, build_retry_at=math.inf)
    observed.notes.append(f"application {app.name} is built again, try {again.build_retries} of {BUILD_RETRIES}")
    observed.put(again)
    return again


def _settle_build(app: ApplicationFact, observed: Observed, now: float) -> None:
    if app.built_deploy_id >= app.goal.deploy_id:
        return
    if is_same_code(app):
        assert app.active is not None
        builder, result, code_version = None, app.active, app.code_version
    else:
        builder = ended_build(app, observed)
        if builder is None or builder.result is None:
            return
        result, code_version = builder.result, builder.result.code_version
        if app.goal.document.application_hash:
            code_version = digest(code_version, app.goal.deploy_id)  # by value: unversioned, always new
    built = replace(app, built_deploy_id=app.goal.deploy_id)
    error = result.error
    targets: tuple[DeploymentTarget, ...] = ()
    if not error:
        try:
            targets = resolve(app.goal, result, code_version)
            if not check_neighbours(app, result, targets, observed):
                return
        except DeployError as problem:
            error = str(problem)
    if error:
        message = f"Deploying application {app.name} failed: {error}"
        # what the build itself needs may come back; the daemon's own objections stay
        may_pass = bool(result.error) and app.build_retries < BUILD_RETRIES
        retry_at = now + 2.0**app.build_retries if may_pass else math.inf
        observed.put(replace(built, settled=DEPLOY_FAILED, message=message, build_retry_at=retry_at))
        return
    if built.build_retries:
        built = replace(built, settled="", message="")
    if builder is not None and not _has_twin(builder, code_version, observed):
        observed.put(replace(builder, template_version=code_version))
    before = serving_ingress(app, observed) if app.active is not None else ""
    last_ingress = before if before != result.ingress else ""
    observed.put(
        replace(built, active=result, active_goal=app.goal, code_version=code_version, last_ingress=last_ingress)
    )
    observed.targets.update({(target.id.app, target.id.name): target for target in targets})
    for target in targets:
        _try_anew(target, observed)


def _try_anew(target: DeploymentTarget, observed: Observed) -> None:
    """A document has come: what failed before may have been mended, also where it asks for the very same."""
    fact = observed.deployments.get((target.id.app, target.id.name))
    if fact is not None and (fact.failures or fact.trouble):
        observed.put(replace(fact.without_failures(), trouble="", trigger="CONFIG_UPDATE_STARTED"))


def is_same_code(app: ApplicationFact) -> bool:
    """Whether the latest wish means the very code that serves, with other options: a build would give the same again.

    Import path, arguments, runtime environment, content of the snapshots and the shipping driver's paths are compared, and none
    of the modules came from a directory that can change behind servd's back. A wish that is the same to the last option asks
    for a build.

    Source: rest.md section 8.
    """
    if app.active is None or app.active_goal is None or not app.active.is_pinned:
        return False
    if not any(differences("", asdict(app.active_goal.document), asdict(app.goal.document))):
        return False
    same_directories = base_environment(app.active_goal) == base_environment(app.goal)
    return same_directories and not code_fields(app.active_goal, app.goal)


def _has_twin(builder: ForkServerFact, code_version: str, observed: Observed) -> bool:
    """Whether a fork server of the same code in the same environment stands ready: one is enough, and that one has children."""
    return any(
        f.template_version == code_version
        and f.env_key == builder.env_key
        and f.edition == builder.edition
        and not f.preload_key
        and not f.stopping
        and f.result is not None
        and not f.result.error
        for f in observed.fork_servers.in_group(builder.app)
    )


def serving_ingress(app: ApplicationFact, observed: Observed) -> str:
    """Bare name of the deployment that the application's route leads to: the ingress of the build before goes on until the new
    one has a replica that serves. The application must have an active build."""
    assert app.active is not None
    goes_on = bool(app.last_ingress) and _serves(app.name, app.last_ingress, observed)
    return app.last_ingress if goes_on and not _serves(app.name, app.active.ingress, observed) else app.active.ingress


def is_replaced(app: ApplicationFact, observed: Observed) -> bool:
    """Whether every deployment of the active build serves, so that what the build before had beyond it may go."""
    assert app.active is not None
    return all(
        key[0] != app.name or wanted_count(target, observed.deployments.get(key)) == 0 or _serves(*key, observed)
        for key, target in observed.targets.items()
    )


def _serves(app: str, deployment: str, observed: Observed) -> bool:
    return any(replica.state in SERVING for replica in observed.replicas_of(app, deployment))


def _targets(observed: Observed) -> dict[tuple[str, str], DeploymentTarget]:
    found = {}
    for app in observed.applications.values():
        if app.deleting or app.active is None or app.active_goal is None:
            continue
        key = (app.active_goal.deploy_id, app.code_version, app.active_goal.counts)
        cached = observed.resolved.get(app.name)
        if cached is None or cached[0] != key:
            cached = (key, resolve(app.active_goal, app.active, app.code_version))
            observed.resolved[app.name] = cached
        for target in cached[1]:
            found[(target.id.app, target.id.name)] = target
    return found


def _settle_deployment(target: DeploymentTarget, observed: Observed, now: float) -> float:
    key = (target.id.app, target.id.name)
    fact = observed.deployments.get(key)
    if fact is None or fact.target_key != target.key:
        fact = fresh_fact(target, fact)
        observed.put(fact)
        observed.questions.pop(key, None)
    wake_at = float("inf")
    if target.autoscaling is not None and target.pinned is None:
        fact, wake_at = autoscale(target, fact, observed, now)
    forgets_at = fact.died_early_at + EARLY_DEATH_S
    dies_early = forgets_at > now
    if fact.failures or fact.trouble:
        judged = judge_starts(target, fact, observed, now, dies_early)
        if judged != fact:
            observed.put(judged)
    return min(wake_at, forgets_at) if dies_early else wake_at


def fresh_fact(target: DeploymentTarget, old: DeploymentFact | None) -> DeploymentFact:
    """What is remembered of a deployment when its target has just changed."""
    desired = None
    if target.autoscaling is not None:
        low, high = target.autoscaling["min_replicas"], target.autoscaling["max_replicas"]
        desired = first_target(target.autoscaling)
        if old is not None and old.desired is not None and target.autoscaling["initial_replicas"] is None:
            desired = max(low, min(high, old.desired))
        if target.pinned is not None:
            desired = target.pinned  # where the autoscaler goes on from, once the pin is gone
    kept: dict[str, Any] = {} if old is None else {name: getattr(old, name) for name in _KEPT}
    return DeploymentFact(target.id.app, target.id.name, target.key, desired=desired, **kept)


def _settle_application(app: ApplicationFact, observed: Observed) -> None:
    if app.settled or app.deleting or app.built_deploy_id != app.goal.deploy_id or app.active is None:
        return
    keys = [key for key in observed.targets if key[0] == app.name]
    statuses = {key: deployment_status(observed.targets[key], observed.deployments[key], observed) for key in keys}
    troubled = [key for key, status in statuses.items() if status is DeploymentStatus.UNHEALTHY]
    if troubled:
        texts = [f"{observed.targets[key].id.full_name}: {observed.deployments[key].trouble}" for key in troubled]
        message = f"Deploying application {app.name} failed. Unhealthy deployments:\n" + "\n".join(texts)
        observed.put(replace(app, settled=DEPLOY_FAILED, message=message))
    elif all(status is DeploymentStatus.HEALTHY for status in statuses.values()):
        busy = observed.replicas.deployments()
        leftover = any(key[0] == app.name and key not in observed.targets for key in busy)
        if not leftover:
            observed.put(replace(app, settled=RUNNING, message=""))


def _forget_gone(observed: Observed) -> None:
    busy = observed.replicas.deployments()
    for key, fact in list(observed.deployments.items()):
        if key not in observed.targets and key not in busy:
            observed.forget(fact)
    for app in list(observed.applications.values()):
        alive = any(key[0] == app.name for key in busy) or bool(observed.fork_servers.in_group(app.name))
        if app.deleting and not alive:
            observed.forget(app)
            observed.resolved.pop(app.name, None)


def builder_of(app: ApplicationFact, observed: Observed) -> ForkServerFact | None:
    """The fork server that builds, or built, the latest deploy of an application."""
    return next(
        (
            f
            for f in observed.fork_servers.in_group(app.name)
            if f.is_builder and f.deploy_id == app.goal.deploy_id and not f.stopping
        ),
        None,
    )
