"""What people see, computed from the goal and the facts."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from servd.controller.plan.data_plane import RETRY_S, flag_options, is_served
from servd.controller.plan.facts import (
    ApplicationFact,
    DeadReplicaFact,
    DeploymentFact,
    ForkServerFact,
    ProxyFact,
    ReplicaFact,
)
from servd.controller.plan.goal import Goal, HttpGoal
from servd.controller.plan.neighbours import built_prefix, route_prefixes
from servd.controller.plan.observed import Observed
from servd.controller.plan.outgrown import is_outdated
from servd.controller.plan.resources import Pool
from servd.controller.plan.settle import deployment_status
from servd.controller.plan.start_verdict import current_builds, starting_templates
from servd.controller.plan.targets import DEFAULTS, DeploymentTarget, wanted_count
from servd.controller.shown.advice import application_message, deployment_message
from servd.controller.shown.standing import application_standing, deployment_standing, status_trigger
from servd.daemon.data_tls import files_in_force
from servd.documents.control_plane import (
    ApplicationView,
    DeadReplicaView,
    DeploymentView,
    HttpView,
    InstanceView,
    ProxyView,
    ReplicaView,
)
from servd.documents.controller_views import ControllerHealth, ScalingView, UpgradeView
from servd.ground.edition import edition_of
from servd.ground.ids import full_name_of
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import SLOW_START_S, Settings
from servd.ground.states import (
    ApplicationStatus,
    DeployMode,
    ProxyStatus,
    ReplicaState,
    UpgradeStage,
)

PROXY_SILENCE_S = 20.0
CLOCK_STEP_S = 1.0
STATE_ORDER = list(ReplicaState)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this controller and this host are, as GET V2 shows them."""

    pid: int
    actor_id: str
    worker_id: str
    node_id: str
    node_ip: str
    edition: str = ""


def epoch_of(told: float, wall_time: float, now: float) -> float:
    """Wall time minus monotonic time, seconds: as `told` before, unless somebody has set the clock since.

    So ages stay true, and small corrections move no stamp that was told.
    """
    epoch = wall_time - now
    return epoch if abs(epoch - told) > CLOCK_STEP_S else told


def instance_view(
    goal: Goal,
    observed: Observed,
    settings: Settings,
    identity: Identity,
    *,
    version: int,
    now: float,
    notice: str = "",
    health: ControllerHealth | None = None,
) -> InstanceView:
    """The whole instance at `now` (monotonic seconds). notice: what is wrong with the daemon itself, for people."""
    http = observed.data_plane.http
    shown = http or goal.http or flag_options(settings)
    files = files_in_force(shown.tls_files, settings)
    proxies = tuple(_proxy(fact, now) for fact in sorted(observed.proxies.values(), key=lambda p: p.slot))
    applications = sorted(observed.applications.values(), key=lambda app: app.ordinal)
    names: dict[str, set[str]] = {app.name: set() for app in applications}
    for app_name, name in (*observed.deployments, *observed.replicas.deployments()):
        names.setdefault(app_name, set()).add(name)
    prefixes = {**{app.name: built_prefix(app) for app in applications if app.deleting}, **route_prefixes(observed)}
    # what a replica makes for itself only it knows; the oldest is asked
    docs = {replica.app: replica.docs_path for replica in reversed(observed.replicas.values()) if replica.docs_path}
    return InstanceView(
        revision=goal.revision,
        version=version,
        running=goal.running,
        mode=DeployMode(goal.mode),
        http=HttpView(
            host=shown.host,
            port=shown.port,
            root_path=shown.root_path,
            location=shown.location,
            listening=is_served(http) and any(p.listening and not p.draining for p in observed.proxies.values()),
            request_timeout_s=shown.request_timeout_s,
            grpc=_grpc_options(shown),
            ssl_certfile=files.certificate,
            ssl_keyfile=files.key,
            ssl_ca_certs=files.client_ca,
        ),
        proxies=proxies,
        applications=tuple(
            _application(
                app, prefixes.get(app.name), names[app.name], docs.get(app.name), observed, Pool.of(settings), now
            )
            for app in applications
        ),
        controller_pid=identity.pid,
        controller_actor_id=identity.actor_id,
        controller_worker_id=identity.worker_id,
        node_id=identity.node_id,
        node_ip=identity.node_ip,
        log_dir=settings.log_dir,
        notice="\n".join(filter(None, (notice, _missing_proxies(observed, settings), *_proxy_trouble(observed)))),
        edition=identity.edition,
        upgrade=_upgrade(observed),
        health=health or ControllerHealth(),
        target_capacity=goal.target_capacity,
        page_url=settings.page_url,
    )


def _missing_proxies(observed: Observed, settings: Settings) -> str:
    """Why a proxy is missing, "" if none is, or one is being started for the first time."""
    fact = observed.data_plane
    missing = settings.proxies - sum(p.listening and not p.draining for p in observed.proxies.values())
    if not fact.proxy_failures or missing <= 0 or not is_served(fact.http):
        return ""
    return (
        f"{missing} of {settings.proxies} proxies cannot be started: {fact.proxy_error}. It is tried again every "
        f"{RETRY_S:.0f} s; nothing else is touched"
    )


def _proxy_trouble(observed: Observed) -> Iterator[str]:
    """What keeps clients out."""
    slots: dict[str, list[str]] = {}
    for proxy in sorted(observed.proxies.values(), key=lambda proxy: proxy.slot):
        if proxy.trouble and not proxy.draining:
            slots.setdefault(proxy.trouble, []).append(str(proxy.slot))
    for text, found in slots.items():
        yield f"{'proxy' if len(found) == 1 else 'proxies'} {', '.join(found)}: {text}"


def _upgrade(observed: Observed) -> UpgradeView | None:
    fact = observed.upgrade
    if fact is None:
        return None

    def count(facts: Iterable[ProxyFact | ForkServerFact | ReplicaFact]) -> int:
        return 0 if fact.is_over else sum(one.edition != observed.edition for one in facts)

    return UpgradeView(
        edition=str(edition_of(fact.edition)),
        before=str(edition_of(fact.before)),
        stage=UpgradeStage(fact.stage),
        message=fact.message or _hindrance(observed),
        proxies=count(observed.proxies.values()),
        fork_servers=count(observed.fork_servers.values()),
        replicas=count(observed.replicas.values()),
    )


def _hindrance(observed: Observed) -> str:
    """What failed of what takes the place of processes of before an upgrade, or has not ended of these; "" if nothing."""
    if any(is_outdated(proxy, observed) for proxy in observed.proxies.values()) and observed.data_plane.proxy_failures:
        return f"a proxy did not start: {observed.data_plane.proxy_error}"
    waiting = {replica.key for replica in observed.replicas.values() if is_outdated(replica, observed)}
    facts = {full_name_of(*key): observed.deployments.get(key) for key in sorted(waiting)}
    failed = {name: fact.last_error for name, fact in facts.items() if fact is not None and fact.failures}
    builds = sorted(build.order.app for build in current_builds(observed) if is_outdated(build, observed))
    return "\n".join(
        [
            *(f"{name}: {error}" for name, error in failed.items()),
            *(f"{app}: its build has not ended" for app in builds),
        ]
    )


def application_status(app: ApplicationFact) -> ApplicationStatus:
    """Status of one application."""
    if app.deleting:
        return ApplicationStatus.DELETING
    return ApplicationStatus(app.settled) if app.settled else ApplicationStatus.DEPLOYING


def _application(
    app: ApplicationFact,
    prefix: str | None,
    known: set[str],
    docs: str | None,
    observed: Observed,
    pool: Pool,
    now: float,
) -> ApplicationView:
    """prefix: of its route. known: bare names of its deployments. docs: path of the documentation that a replica
    has made, None where none has.
    """
    order = [built.name for built in app.active.deployments] if app.active else []
    names = [name for name in order if name in known] + sorted(known - set(order))
    built_docs = (d.docs_path for d in app.active.deployments if d.docs_path) if app.active else ()
    status = application_status(app)
    deployments = tuple(_deployment(app, name, observed, pool, now) for name in names)
    standing, standing_message = application_standing(status, app, deployments)
    return ApplicationView(
        name=app.name,
        route_prefix=prefix,
        docs_path=next(iter(built_docs), docs),
        status=status,
        message=application_message(app, observed, now),
        last_deployed_time_s=app.goal.deployed_at,
        config=None if app.deleting else app.goal.document.stored,
        deployments=deployments,
        standing=standing,
        standing_message=standing_message,
        is_declarative=app.goal.document.stored is not None,
        ingress=app.active.ingress if app.active and not app.deleting else "",
        external_scaler_enabled=app.goal.document.external_scaler_enabled,
    )


def _deployment(app: ApplicationFact, name: str, observed: Observed, pool: Pool, now: float) -> DeploymentView:
    key = (app.name, name)
    target = observed.targets.get(key) or _last_target(app, name, observed)
    fact = observed.deployments.get(key)
    status = deployment_status(observed.targets.get(key), fact, observed)
    replicas = sorted(observed.replicas_of(*key), key=lambda r: (STATE_ORDER.index(r.state), r.created_at))
    dead = fact.dead if fact else ()
    autoscaled = target is not None and target.autoscaling is not None and target.pinned is None
    return DeploymentView(
        name=full_name_of(*key),
        bare_name=name,
        status=status,
        status_trigger=status_trigger(status, app, fact),
        message=deployment_message(status, target, fact, app, observed, pool, now),
        config=dict(target.shown) if target else _plain_config(key),
        target_num_replicas=wanted_count(target, fact) if target and not app.deleting else 0,
        replicas=tuple(_replica(replica, observed) for replica in replicas),
        recent_dead=tuple(_dead(one, observed) for one in dead),
        autoscaling=_autoscaling(target, fact, observed) if target and autoscaled and fact else None,
        standing=deployment_standing(
            status,
            app,
            fact,
            pinned=target.pinned if target else None,
            running=sum(replica.state is ReplicaState.RUNNING for replica in replicas),
        ),
        max_queued_requests=target.options["max_queued_requests"] if target else DEFAULTS["max_queued_requests"],
        outbound=next((one.outbound for one in app.active.deployments if one.name == name), ()) if app.active else (),
        decisions=tuple(
            ScalingView(round(observed.epoch + one.at, 3), one.before, one.after, one.reason) for one in fact.decisions
        )
        if fact
        else (),
    )


def _autoscaling(target: DeploymentTarget, fact: DeploymentFact, observed: Observed) -> dict[str, Any]:
    found: dict[str, Any] = {"target": wanted_count(target, fact), "reason": fact.reason}
    if target.policy is not None:
        error, at = fact.policy.error, fact.policy.failed_at
        found["policy"] = {
            "policy_function": target.policy["policy_function"],
            "wanted": fact.policy.wanted,
            "error": error,
            "failed_at": round(observed.epoch + at, 3) if error else None,
        }
    return found


def _last_target(app: ApplicationFact, name: str, observed: Observed) -> DeploymentTarget | None:
    cached = observed.resolved.get(app.name)
    return next((t for t in cached[1] if t.id.name == name), None) if cached else None


def _plain_config(key: tuple[str, str]) -> dict[str, object]:
    names = list(DEFAULTS)[: list(DEFAULTS).index("max_queued_requests")]
    config = {name: DEFAULTS[name] for name in names if name != "autoscaling_config"}
    return {"name": full_name_of(*key), **config}


def _replica(fact: ReplicaFact, observed: Observed) -> ReplicaView:
    return ReplicaView(
        replica_id=fact.replica_id,
        state=fact.state,
        pid=fact.pid or None,
        start_time_s=round(observed.epoch + fact.created_at, 3),
        actor_id=fact.actor_id,
        worker_id=fact.worker_id,
        ongoing=fact.ongoing,
        message=fact.stop_reason or fact.outgrown or fact.health_message or fact.stack,
        start_method="fork" if fact.was_forked else "spawn",
    )


def _dead(fact: DeadReplicaFact, observed: Observed) -> DeadReplicaView:
    return DeadReplicaView(
        fact.replica_id,
        fact.pid or None,
        fact.exit_code,
        fact.age_s,
        fact.reason,
        fact.ongoing,
        tuple(fact.log_lines),
        fact.stack,
        fact.actor_id,
        fact.worker_id,
        round(observed.epoch + fact.created_at, 3),
    )


def proxy_status(fact: ProxyFact, now: float) -> ProxyStatus:
    """Status of one proxy at `now` (monotonic seconds)."""
    if not fact.listening:
        return ProxyStatus.STARTING
    return ProxyStatus.UNHEALTHY if now - fact.reported_at > PROXY_SILENCE_S else ProxyStatus.HEALTHY


def _proxy(fact: ProxyFact, now: float) -> ProxyView:
    return ProxyView(
        proxy_id=fact.proxy_id,
        slot=fact.slot,
        status=proxy_status(fact, now),
        pid=fact.pid or None,
        actor_id=fact.actor_id,
        worker_id=fact.worker_id,
        connections=fact.connections,
    )


def next_visible_change(observed: Observed, now: float) -> float:
    """When a message or status changes by time alone (monotonic seconds, inf = never)."""
    moments = [r.created_at + SLOW_START_S for r in observed.replicas.values() if r.state is ReplicaState.STARTING]
    moments += [server.created_at + SLOW_START_S for server in starting_templates(observed)]
    return min((m for m in moments if m > now), default=math.inf)


def _grpc_options(http: HttpGoal) -> dict[str, Any]:
    """As a document would have them."""
    if not http.grpc_port:
        return {}
    return {
        "port": http.grpc_port,
        "grpc_servicer_functions": list(http.grpc_servicers),
        "request_timeout_s": http.grpc_request_timeout_s or None,
        "enable_reflection": http.grpc_reflection,
    }
