"""The routing that callers get, computed from facts."""

from collections.abc import Collection

from servd.controller.facts import ApplicationFact, ReplicaFact
from servd.controller.observed import Observed
from servd.controller.settle import failing_message, route_prefix, serving_ingress
from servd.controller.targets import DEFAULTS
from servd.ids import DeploymentID
from servd.messages import DeploymentTargets, Endpoint, Route, Routing
from servd.states import ROUTABLE, ReplicaState


def routing(observed: Observed, leaving: Collection[str]) -> Routing:
    """Everything that can be routed to now.

    Args:
        leaving: replica ids that this very plan drains or kills.

    Returns:
        Routing of generation 0; ordered, so that equal facts give equal routings.
    """
    routes = []
    for app in observed.applications.values():
        prefix = route_prefix(app)
        if app.deleting or app.active is None or prefix is None:
            continue
        routes.append(Route(prefix, DeploymentID(app.name, serving_ingress(app, observed)).full_name, app.name))
    keys = {*observed.targets, *(replica.key for replica in observed.replicas.values())}
    targets = [_targets_of(key, observed, leaving) for key in sorted(keys)]
    building = tuple(sorted(app.name for app in observed.applications.values() if _is_building(app)))
    return Routing(0, tuple(sorted(routes, key=lambda route: route.prefix)), tuple(targets), building)


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
        unavailable = failing_message(target, fact, observed)
    return DeploymentTargets(
        deployment=DeploymentID(*key).full_name,
        app=key[0],
        endpoints=tuple(Endpoint(r.replica_id, r.start.address, r.model_ids) for r in replicas),
        max_queued_requests=options["max_queued_requests"],
        request_timeout_s=options["request_timeout_s"],
        unavailable=unavailable,
    )


def _takes_requests(replica: ReplicaFact) -> bool:
    if replica.state in ROUTABLE or replica.state is ReplicaState.RECOVERING:
        return True
    # of a deleted application, still awaiting its own drain order: its callers may call it
    return replica.state is ReplicaState.STOPPING and not replica.drain_sent and replica.kill_at == float("inf")
