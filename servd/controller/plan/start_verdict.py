"""Starts that fail or take long: when failures are too many, what that stops, and what people are told.

How this works: the count belongs to a target, and begins anew once that is reached or a document comes. At the threshold the
deployment is UNHEALTHY, whether or not some of its replicas run. Where new replicas had come up beside older ones by then, the
update stops there. Else it is tried on, ever more seldom: what they all need may come back.
"""

import math
from dataclasses import replace

from servd.controller.plan.facts import ApplicationFact, DeploymentFact, ForkServerFact, ReplicaFact
from servd.controller.plan.observed import Observed
from servd.controller.plan.outgrown import is_ready_to_fork
from servd.controller.plan.restarts import PROBATION_S, back_off_text
from servd.controller.plan.targets import DeploymentTarget, failures_allowed, wanted_count
from servd.ground.settings import SLOW_START_S, variable
from servd.ground.states import ROUTABLE, ReplicaState

BUILD_RETRIES = 4
"""How often a build that failed is tried again, 1, 2, 4 and 8 s later."""
PERIOD_S = float(variable("SLOW_STARTUP_WARNING_PERIOD_S", "30.0"))
MUTE = "a forked replica said nothing; nothing is known of why"


def judge_starts(
    target: DeploymentTarget, fact: DeploymentFact, observed: Observed, now: float, dies_early: bool
) -> DeploymentFact:
    """The fact with the verdict on its failed starts, and without trouble once that is over."""
    if fact.template_error and is_ready_to_fork(target, observed):
        fact = replace(fact, template_error="")
    if is_settled(target, fact, observed):
        if fact.trouble:
            by_itself = fact.trigger == "REPLICA_FAILED"
            fact = replace(fact, trouble="", trigger="UNSPECIFIED" if by_itself else "CONFIG_UPDATE_COMPLETED")
        # one whose template does not come up has all that it wants for now, and is not to try without end
        return fact if dies_early or not is_ready_to_fork(target, observed) else fact.without_failures()
    threshold = failures_allowed(target, fact)
    if fact.failures < threshold:
        return fact
    # while new ones die early, only one that stayed says that the others may come up
    some_came_up = bool(_new_running(target, observed, now - PROBATION_S if dies_early else math.inf))
    if not fact.is_judged:
        fact = replace(fact, is_judged=True, is_stalled=some_came_up and _has_older(target, observed))
    if some_came_up:
        # the others are tried again and again at the first delay
        fact = replace(fact, failures=threshold)
    return replace(fact, trouble=failing_message(target, fact, observed), trigger="REPLICA_STARTUP_FAILED")


def failing_message(target: DeploymentTarget, fact: DeploymentFact, observed: Observed) -> str:
    """Why the deployment does not get the replicas that it shall have, "" while it may: too many starts have failed."""
    wanted = wanted_count(target, fact)
    threshold = failures_allowed(target, fact)
    if fact.failures < threshold:
        return ""
    reason = "The host gives no more" if fact.is_host_limit else "It may be wrong code or a wrong environment"
    tail = f"{reason}. Last error:\n{fact.last_error}"
    running = len(_new_running(target, observed))
    if fact.is_stalled:
        return (
            f"{fact.failed_starts} replicas of the new version or config failed to start, {running} of {wanted} run. The update "
            f"has stopped: older replicas keep their share until the application is deployed again. {tail}"
        )
    waits = back_off_text(target.id.full_name, fact, threshold)
    return f"{waits} {running} of {wanted} run. {tail}" if running else f"{waits} {tail}"


def try_at_once(observed: Observed) -> None:
    """What starts and builds lacked on this host is there again: the next ones wait no longer. What has been counted of starts
    stays; a build that was given up has all its tries again.
    """
    for app in list(observed.applications.values()):
        if _may_build_now(app):
            observed.put(replace(app, build_retries=0, build_retry_at=-math.inf))
    for fact in list(observed.deployments.values()):
        if fact.failures:
            observed.put(replace(fact, failed_at=-math.inf))
    if observed.data_plane.proxy_failures:
        observed.put(replace(observed.data_plane, proxy_failed_at=-math.inf))


def _may_build_now(app: ApplicationFact) -> bool:
    """Whether the build of what is wanted failed, and not for what the daemon had against it."""
    is_built = app.active_goal is not None and app.active_goal.deploy_id == app.goal.deploy_id
    is_given_up = app.built_deploy_id >= app.goal.deploy_id and app.build_retries >= BUILD_RETRIES
    return not app.deleting and not is_built and (is_given_up or app.build_retry_at < math.inf)


def note_slow_starts(observed: Observed, now: float) -> float:
    """Note each that has been starting for too long, once a period; gives the moment to look again (monotonic seconds,
    inf = never).
    """
    wake_at = math.inf
    noted = observed.slow_noted_at
    starting = {r.replica_id: r.created_at for r in observed.replicas.values() if r.state is ReplicaState.STARTING}
    templates = {server.fork_server_id: server.created_at for server in starting_templates(observed)}
    builds = {server.fork_server_id: server.created_at for server in current_builds(observed)}
    observed.slow_noted_at = {name: noted[name] for name in (*starting, *templates, *builds) if name in noted}
    for name, began_at in (starting | templates | builds).items():
        said_at = noted.get(name)
        due_at = began_at + SLOW_START_S if said_at is None else said_at + PERIOD_S
        if due_at <= now:
            observed.slow_noted_at[name] = now
            kind = "template" if name in templates else "build" if name in builds else "replica"
            observed.notes.append(f"{kind} {name} has been starting for {now - began_at:.0f} s")
            due_at = now + PERIOD_S
        wake_at = min(wake_at, due_at)
    return wake_at


def starting_templates(observed: Observed) -> list[ForkServerFact]:
    """Templates that are about to construct an instance."""
    return [s for s in observed.fork_servers.values() if s.preload_key and s.result is None and not s.stopping]


def slow_templates(observed: Observed, now: float) -> list[ForkServerFact]:
    """Those of them that have been at it for too long."""
    return [server for server in starting_templates(observed) if now - server.created_at > SLOW_START_S]


def current_builds(observed: Observed) -> list[ForkServerFact]:
    """Builders whose environment is made, or whose code is imported."""
    return [s for s in observed.fork_servers.values() if s.is_builder and s.result is None and not s.stopping]


def settle_templates(observed: Observed, now: float) -> None:
    """Judge the templates that have ended their build.

    One whose environment, import or constructor failed counts as a failed start of its deployments. One whose constructed
    instance cannot be forked is given up: replicas of that version construct their own.
    """
    for server in list(observed.fork_servers.values()):
        if server.is_builder or not server.template_version or server.result is None:
            continue
        reason = unfit_reason(server)
        if not server.result.error and not reason:
            continue
        served = observed.served_by(server)
        observed.put(replace(server, template_version=""))  # so nobody needs it and it is stopped
        if server.result.error:
            observed.count_failed_template(served, server.result.error, now)
            continue
        for target in served:
            fact = observed.deployments[(target.id.app, target.id.name)]
            observed.put(replace(fact, unfit_version=target.version, unfit_reason=reason))


def unfit_reason(server: ForkServerFact) -> str:
    """Why a template that has constructed an instance cannot fork replicas with it, "" if it can or constructs none."""
    if not server.preload_key or server.result is None:
        return ""
    return server.result.fork_unsafe or (MUTE if server.mute_children else "")


def is_settled(target: DeploymentTarget, fact: DeploymentFact, observed: Observed) -> bool:
    """Whether nothing is under way: RUNNING at the target version = wanted count, and no replica in another state."""
    replicas = observed.replicas_of(target.id.app, target.id.name)
    return len(replicas) == wanted_count(target, fact) and all(
        r.state is ReplicaState.RUNNING
        and r.version == target.version
        and r.config_version == target.config_version
        and not r.outgrown
        for r in replicas
    )


def _new_running(target: DeploymentTarget, observed: Observed, since: float = math.inf) -> list[ReplicaFact]:
    """Replicas that run as they are wanted, and were ready at `since` (monotonic seconds, inf = whenever)."""
    replicas = observed.replicas_of(target.id.app, target.id.name)
    running = [r for r in replicas if r.state is ReplicaState.RUNNING and _is_new(r, target)]
    return [replica for replica in running if since == math.inf or replica.ready_at <= since]


def _has_older(target: DeploymentTarget, observed: Observed) -> bool:
    """Whether a replica of another version or config serves."""
    replicas = observed.replicas_of(target.id.app, target.id.name)
    return any(replica.state in ROUTABLE and not _is_new(replica, target) for replica in replicas)


def _is_new(replica: ReplicaFact, target: DeploymentTarget) -> bool:
    return replica.version == target.version and replica.config_version == target.config_version
