"""What the controller itself knows, as metrics: statuses, what the autoscaler wants, how replicas are."""

import math
from collections import Counter
from collections.abc import Iterable

from servd.controller.plan.autoscaler import desired_replicas, factor, loads_of
from servd.controller.plan.facts import DeploymentFact
from servd.controller.plan.observed import Observed
from servd.controller.plan.settle import deployment_status
from servd.controller.plan.targets import DeploymentTarget, wanted_count
from servd.controller.shown.status import application_status, proxy_status
from servd.documents.controller_views import ControllerHealth
from servd.ground.states import ROUTABLE, ApplicationStatus, DeploymentStatus, ProxyStatus, ReplicaState
from servd.observability.measures import Distribution, Pairs, family, labelled
from servd.wire.messages import MetricFamily

APPLICATION_CODES = {
    ApplicationStatus.DEPLOY_FAILED: 1,
    ApplicationStatus.NOT_STARTED: 3,
    ApplicationStatus.DELETING: 4,
    ApplicationStatus.DEPLOYING: 5,
    ApplicationStatus.RUNNING: 6,
}
UNHEALTHY, UPDATING, UPSCALING, DOWNSCALING, HEALTHY = 2, 3, 4, 5, 6
"""Codes of deployments. Source: the dashboards of Ray 2.60, as for the others."""
PROXY_CODES = {ProxyStatus.STARTING: 1, ProxyStatus.HEALTHY: 2, ProxyStatus.UNHEALTHY: 3}
PROXY_DRAINING = 4
_UNBOUNDED = 10**6


def status_metrics(observed: Observed, now: float) -> list[MetricFamily]:
    """Statuses as codes, of applications, deployments, proxies and replicas; what is autoscaled. now: monotonic seconds."""
    apps = [
        (labelled(application=app.name), APPLICATION_CODES[application_status(app)])
        for app in observed.applications.values()
    ]
    deployments = [
        (_tags(target), _deployment_code(target, observed.deployments.get(key), observed))
        for key, target in observed.targets.items()
    ]
    running = Counter(one.key for one in observed.replicas.values() if one.state in ROUTABLE)
    proxies = [
        (labelled(proxy=proxy.proxy_id), PROXY_DRAINING if proxy.draining else PROXY_CODES[proxy_status(proxy, now)])
        for proxy in observed.proxies.values()
    ]
    return [
        family("serve_application_status", apps),
        family("serve_deployment_status", deployments),
        family(
            "serve_deployment_wanted_replicas",
            [(_tags(one), wanted_count(one, observed.deployments.get(key))) for key, one in observed.targets.items()],
        ),
        family(
            "serve_deployment_running_replicas", [(_tags(one), running[key]) for key, one in observed.targets.items()]
        ),
        family(
            "serve_deployment_replica_failures_total",
            [
                (_tags(one), observed.deployments[key].restarts)
                for key, one in observed.targets.items()
                if key in observed.deployments
            ],
        ),
        family("serve_proxy_status", proxies),
        *_replica_families(observed),
        *_autoscaling_families(observed, now),
    ]


def loop_metrics(health: ControllerHealth) -> list[MetricFamily]:
    """How the controller's own loop does."""
    return [
        family("serve_controller_num_control_loops", [((), health.turns)]),
        family("serve_controller_control_loop_duration_s", [((), health.turn.mean)]),
    ]


def _tags(target: DeploymentTarget) -> Pairs:
    return labelled(deployment=target.id.full_name, application=target.id.app)


def _deployment_code(target: DeploymentTarget, fact: DeploymentFact | None, observed: Observed) -> int:
    status = deployment_status(target, fact, observed)
    if status is not DeploymentStatus.UPDATING:
        return HEALTHY if status is DeploymentStatus.HEALTHY else UNHEALTHY
    if fact is None or fact.trigger != "AUTOSCALING":
        return UPDATING
    there = [r for r in observed.replicas_of(target.id.app, target.id.name) if r.state is not ReplicaState.STOPPING]
    starting = any(replica.state is ReplicaState.STARTING for replica in there)
    return UPSCALING if starting or len(there) < wanted_count(target, fact) else DOWNSCALING


def _replica_families(observed: Observed) -> Iterable[MetricFamily]:
    """One sample per living replica that has started."""
    living = [
        (labelled(deployment=one.full_name, replica=one.replica_id, application=one.app), one)
        for one in observed.replicas.values()
        if one.state in ROUTABLE
    ]
    yield family("serve_deployment_replica_healthy", [(tags, int(not one.health_failures)) for tags, one in living])
    yield family(
        "serve_replica_utilization_percent",
        [(tags, 100.0 * one.ongoing / one.start.goal.max_concurrent_queries) for tags, one in living],
    )
    took = [(tags, one.ready_at - one.created_at) for tags, one in living if one.ready_at < math.inf]
    # each replica starts once
    yield family("serve_replica_startup_latency_ms", [(tags, Distribution(1000 * s).sample()) for tags, s in took])


def _autoscaling_families(observed: Observed, now: float) -> Iterable[MetricFamily]:
    scaled = [
        (target, target.autoscaling, observed.deployments.get(key))
        for key, target in observed.targets.items()
        if target.autoscaling is not None
    ]
    yield family("serve_autoscaling_target_replicas", [(_tags(t), wanted_count(t, fact)) for t, _, fact in scaled])
    aims = [(_tags(t), config["target_num_ongoing_requests_per_replica"]) for t, config, _ in scaled]
    yield family("serve_autoscaling_target_ongoing_requests", aims)
    wanted, requests = [], []
    for target, config, _ in scaled:
        since = now - config["look_back_period_s"]
        samples = [
            observed.samples[one.replica_id]
            for one in observed.replicas_of(target.id.app, target.id.name)
            if one.state is ReplicaState.RUNNING and one.replica_id in observed.samples
        ]
        loads = loads_of(samples, since, now, config.get("aggregation_function", "mean"))
        requests.append((_tags(target), sum(loads)))
        if loads:
            # what they ask for: neither bounded nor delayed
            aim = config["target_num_ongoing_requests_per_replica"]
            share = factor(config, up=sum(loads) / len(loads) > aim)
            wanted.append((_tags(target), desired_replicas(loads, aim, low=0, high=_UNBOUNDED, smoothing=share)))
    yield family("serve_autoscaling_desired_replicas", wanted)
    yield family("serve_autoscaling_total_requests", requests)
