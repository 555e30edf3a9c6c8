"""The routing that callers get, computed from facts."""

import math
from collections.abc import Collection, Iterator

from servd.controller.plan.facts import ApplicationFact, DeploymentFact, ReplicaFact
from servd.controller.plan.neighbours import route_prefixes
from servd.controller.plan.observed import Observed
from servd.controller.plan.settle import serving_ingress
from servd.controller.plan.start_verdict import failing_message
from servd.controller.plan.targets import DEFAULTS, DeploymentTarget, failures_allowed, likely_prefix, wanted_count
from servd.documents.router_names import rule_of
from servd.ground.ids import full_name_of
from servd.ground.states import SERVING, ReplicaState
from servd.wire.grpc.messages import GrpcRoute
from servd.wire.messages import DeploymentTargets, Endpoint, Route, Routing

_STARTING = "it starts again with the daemon; ask again in a moment"
_NO_CAPACITY = "target_capacity is 0, so it has no replica; send the document with more"


def routing(observed: Observed, leaving: Collection[str]) -> Routing:
    """Everything that can be routed to now.

    Args:
        leaving: replica ids that this very plan drains or kills.

    Returns:
        Routing of generation 0; ordered, so that equal facts give equal routings.
    """
    prefixes = route_prefixes(observed)
    routes = []
    for app in observed.applications.values():
        prefix = prefixes.get(app.name)
        if app.deleting or app.active is None or prefix is None:
            continue
        routes.append(Route(prefix, full_name_of(app.name, serving_ingress(app, observed)), app.name))
    taken = {route.prefix for route in routes}
    starting = {prefix: app for prefix, app in _starting(observed) if prefix not in taken}
    routes += [Route(prefix, _nameless(app), app, is_starting=True) for prefix, app in starting.items()]
    keys = {*observed.targets, *observed.replicas.deployments()}
    targets = [_targets_of(key, observed, leaving) for key in sorted(keys)]
    targets += [DeploymentTargets(_nameless(app), app, unavailable=_STARTING) for app in starting.values()]
    building = tuple(sorted(app.name for app in observed.applications.values() if _is_building(app)))
    grpc = tuple(_grpc_routes(observed))
    return Routing(0, tuple(sorted(routes, key=lambda route: route.prefix)), tuple(targets), building, grpc)


def _grpc_routes(observed: Observed) -> Iterator[GrpcRoute]:
    """Applications whose build knows methods of gRPC, exposed to HTTP or not."""
    http = observed.data_plane.http
    if http is None or not http.grpc_port:
        return
    for _, app in sorted(observed.applications.items()):
        if app.deleting or app.active is None or not app.active.grpc_methods:
            continue
        key = (app.name, serving_ingress(app, observed))
        target = observed.targets.get(key)
        own_s = target.options["request_timeout_s"] if target is not None else None
        limits = [limit for limit in (own_s, http.grpc_request_timeout_s) if limit]
        limit_s = min(limits) if limits else None
        yield GrpcRoute(app.name, full_name_of(*key), app.active.grpc_methods, limit_s, http.grpc_reflection)


def _starting(observed: Observed) -> Iterator[tuple[str, str]]:
    """Prefix and application of what served before this daemon started and is not built yet."""
    for app in observed.applications.values():
        is_known = observed.data_plane.restored.get(app.name) == app.goal.deploy_id
        if not is_known or app.active is not None or app.settled or app.deleting:
            continue
        prefix = likely_prefix(app.goal.document)
        if prefix is not None:
            yield prefix, app.name


def _nameless(app: str) -> str:
    """What stands for the ingress of an application while only the build can tell its name; no deployment has this form."""
    return f"application {app!r}"


def _is_building(app: ApplicationFact) -> bool:
    return not app.deleting and app.built_deploy_id < app.goal.deploy_id


def _targets_of(key: tuple[str, str], observed: Observed, leaving: Collection[str]) -> DeploymentTargets:
    target = observed.targets.get(key)
    options = target.options if target is not None else DEFAULTS
    replicas = [
        replica
        for replica in observed.replicas_of(*key)
        if _takes_requests(replica) and replica.replica_id not in leaving
    ]
    unavailable = ""
    fact = observed.deployments.get(key)
    if not replicas and target is not None and fact is not None:
        # only failing starts: after a mere death the successor is on its way, so requests wait for it
        unavailable = _NO_CAPACITY if target.capacity == 0 else failing_message(target, fact, observed)
    return DeploymentTargets(
        deployment=full_name_of(*key),
        app=key[0],
        endpoints=tuple(Endpoint(r.replica_id, r.start.address, r.model_ids) for r in replicas),
        max_queued_requests=options["max_queued_requests"],
        request_timeout_s=_time_limit(options["request_timeout_s"], observed),
        unavailable=unavailable,
        backpressure=target.backpressure if target is not None else (503, None),
        may_grow=target is not None and _may_grow(target, fact, len(replicas)),
        router=rule_of(options.get("request_router_config")),
    )


def _time_limit(own_s: float | None, observed: Observed) -> float | None:
    """Of a request to a deployment: the less of its own and that of all; None = none."""
    http = observed.data_plane.http
    limits = [limit for limit in (own_s, http.request_timeout_s if http is not None else None) if limit]
    return min(limits) if limits else None


def _may_grow(target: DeploymentTarget, fact: DeploymentFact | None, routed: int) -> bool:
    """Whether a request that waits for a slot will see more replicas than are routed now."""
    if fact is not None and fact.failures:
        # what died soon after its start did start, and so may its successor, until that is tried ever more seldom
        has_started = fact.died_early_at > -math.inf
        if not has_started or fact.failures >= failures_allowed(target, fact):
            return False
    scaling = target.autoscaling
    if scaling is None or target.pinned is not None:
        return routed < wanted_count(target, fact)
    # what runs and what waits counts for the autoscaler: with one that waits, full replicas must be more than it wants for each
    scales = target.options["max_concurrent_queries"] >= scaling["target_num_ongoing_requests_per_replica"]
    return routed < (scaling["max_replicas"] if scales else wanted_count(target, fact))


def _takes_requests(replica: ReplicaFact) -> bool:
    if replica.state in SERVING:
        return True
    # of a deleted application, still awaiting its own drain order: its callers may call it
    return replica.state is ReplicaState.STOPPING and not replica.drain_sent and replica.kill_at == float("inf")
