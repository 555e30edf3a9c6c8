"""What people are told of a deployment that is not as it should be."""

from collections.abc import Iterable

from servd.controller.plan.facts import ApplicationFact, DeploymentFact, ReplicaFact
from servd.controller.plan.observed import Observed
from servd.controller.plan.resources import Pool, place, shortage
from servd.controller.plan.restarts import back_off_text
from servd.controller.plan.silence import is_unborn
from servd.controller.plan.start_verdict import MUTE, current_builds, slow_templates
from servd.controller.plan.targets import DeploymentTarget, failures_allowed, wanted_count
from servd.controller.plan.templates import template_for
from servd.ground.settings import SLOW_START_S, fork_server_log
from servd.ground.states import DeploymentStatus, ReplicaState

_MOST_NAMED = 3


def deployment_message(
    status: DeploymentStatus,
    target: DeploymentTarget | None,
    fact: DeploymentFact | None,
    app: ApplicationFact,
    observed: Observed,
    pool: Pool,
    now: float,
) -> str:
    """Why the deployment is not as it should be, "" where there is nothing to say; now: monotonic seconds.

    Args:
        target: the last one that was known, also while the application goes.
    """
    if target is not None:
        key = target.id.app, target.id.name
    elif fact is not None:
        key = fact.app, fact.name
    else:
        return ""
    present = observed.targets.get(key)
    replicas = sorted(observed.replicas_of(*key), key=lambda replica: replica.created_at)
    return (
        _message(status, target, fact, replicas, now)
        or _slow_template(status, present, observed, now)
        or _shortage(present, fact, observed, pool)
        or _without_template(status, fact)
        or _without_policy(present, fact)
        or _without_fork(target, fact, app, observed)
    )


def application_message(app: ApplicationFact, observed: Observed, now: float) -> str:
    """Why the application is not as it should be, "" where there is nothing to say; now: monotonic seconds."""
    if app.message or app.settled:
        return app.message
    return "\n".join(
        f"the build {s.fork_server_id} has been going on for more than {SLOW_START_S:.0f} s: the environment or the import is "
        f"slow; the stack of the import is in {fork_server_log(s.order.log_dir)}"
        for s in current_builds(observed)
        if s.deploy_id == app.goal.deploy_id and now - s.created_at > SLOW_START_S
    )


def _message(
    status: DeploymentStatus,
    target: DeploymentTarget | None,
    fact: DeploymentFact | None,
    replicas: list[ReplicaFact],
    now: float,
) -> str:
    if fact is None:
        return ""
    if status is DeploymentStatus.UNHEALTHY:
        waits = _waits(target, fact)
        return fact.trouble if waits in fact.trouble else f"{fact.trouble}\n{waits} Last error:\n{fact.last_error}"
    if status is DeploymentStatus.UPDATING:
        slow = [r for r in replicas if r.state is ReplicaState.STARTING and now - r.created_at > SLOW_START_S]
        if unborn := [r for r in slow if is_unborn(r)]:
            return (
                f"{len(unborn)} replica(s) have not been forked for more than {SLOW_START_S:.0f} s: their fork server "
                f"carries out no order; it is replaced if it goes on so"
            )
        if slow:
            return (
                f"{len(slow)} replica(s) have been starting for more than {SLOW_START_S:.0f} s: "
                f"the constructor, reconfigure or first health check is slow"
            )
        outgrown = [f"replica {r.replica_id} {r.outgrown} and is replaced" for r in replicas if r.outgrown]
        if outgrown:
            return "\n".join(outgrown)
        if fact.last_error and fact.failed_starts:
            return f"{fact.failed_starts} failed start(s); last error:\n{fact.last_error}"
    return ""


def _without_policy(target: DeploymentTarget | None, fact: DeploymentFact | None) -> str:
    """Why its autoscaling policy decides nothing, "" while it does."""
    if target is None or fact is None or target.policy is None or not fact.policy.error:
        return ""
    why = "since it has said nothing yet" if fact.policy.wanted is None else "by what it said last"
    there = f"{wanted_count(target, fact)} replicas stay wanted {why}"
    return f"autoscaling policy {target.policy['policy_function']} decides nothing, {there}: {fact.policy.error}"


def _slow_template(status: DeploymentStatus, target: DeploymentTarget | None, observed: Observed, now: float) -> str:
    """What the template is at, "" if it has not been constructing for long."""
    if target is None or status is not DeploymentStatus.UPDATING:
        return ""
    slow = [s for s in slow_templates(observed, now) if target in observed.served_by(s)]
    return "\n".join(
        f"the template {s.fork_server_id} has been starting for more than {SLOW_START_S:.0f} s: the import or the constructor is "
        f"slow; its stack is in {fork_server_log(s.order.log_dir)}"
        for s in slow
    )


def _without_template(status: DeploymentStatus, fact: DeploymentFact | None) -> str:
    """Why a replica that dies now could not be replaced, "" if it could."""
    if fact is None or status is not DeploymentStatus.HEALTHY or not fact.template_error:
        return ""
    return f"all replicas run, but no other one can be started; it is tried again. Last error:\n{fact.template_error}"


def _without_fork(
    target: DeploymentTarget | None, fact: DeploymentFact | None, app: ApplicationFact, observed: Observed
) -> str:
    """Why replicas are spawned, or construct their own instances though they should not, "" where all is as wished."""
    if target is None or fact is None:
        return ""
    if fact.spawned_version == target.version:
        own = " and construct their own instances" if target.options["preload"] else ""
        return f"replicas are spawned{own} until the next version: {fact.spawned_reason}"
    if fact.unfit_version == target.version:
        return f"preload has no effect, each replica constructs its own instance: {fact.unfit_reason}"
    server = template_for(target, app, observed)
    if server is None or server.result is None or target.options["start_method"] == "spawn":
        return ""
    reason = server.result.fork_unsafe or (server.mute_children and MUTE)
    return f"replicas are spawned: {reason}" if reason else ""


def chosen_log_directories(targets: Iterable[DeploymentTarget]) -> dict[str, str]:
    """Directories that deployments have chosen for their log files, and what each is called."""
    names: dict[str, list[str]] = {}
    for target in targets:
        if directory := (target.options.get("logging_config") or {}).get("logs_dir"):
            names.setdefault(str(directory), []).append(str(target.id))
    return {directory: f"log directory of {_listed(sorted(whose))}" for directory, whose in names.items()}


def _listed(names: list[str]) -> str:
    left_out = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {left_out} more" if left_out > 0 else "")


def _waits(target: DeploymentTarget | None, fact: DeploymentFact) -> str:
    """When the next start is tried, "" if at once."""
    if target is None or fact.is_stalled or fact.failures < (threshold := failures_allowed(target, fact)):
        return ""
    return back_off_text(target.id.full_name, fact, threshold)


def _shortage(target: DeploymentTarget | None, fact: DeploymentFact | None, observed: Observed, pool: Pool) -> str:
    """Why a wanted replica cannot be placed, "" if it can, or if none is wanted."""
    if target is None:
        return ""
    living = [r for r in observed.replicas_of(target.id.app, target.id.name) if r.version == target.version]
    if len(living) >= wanted_count(target, fact):
        return ""
    # after that: all replicas of the host are looked at
    held = [replica.held for replica in observed.replicas.values()]
    if place(target.need, held, pool) is not None:
        return ""
    text = shortage(target.need, held, pool)
    older = len(observed.replicas_of(target.id.app, target.id.name)) > len(living)
    return f"{text}; old replicas stop before new ones start" if older else f"{text}; waiting until that much is free"
