"""Everything that a replica has counted, as families of samples."""

import sys

from servd.calls.caller import Caller
from servd.ground.ids import DeploymentID
from servd.observability.journal import Journal
from servd.observability.measures import LoopLag, family, labelled, replica_families
from servd.wire.messages import MetricFamily, ReplicaStart


def replica_metrics(
    start: ReplicaStart, journal: Journal, ongoing: int, caller: Caller, lag: LoopLag
) -> list[MetricFamily]:
    """The metrics of a replica, its user's included; any thread may ask."""
    full_name = DeploymentID(start.app, start.deployment).full_name
    tags = {"deployment": full_name, "replica": start.replica_id, "application": start.app}
    pairs = labelled(**tags)
    found = [
        family("serve_deployment_replica_starts", [(pairs, 1)]),
        family("serve_replica_processing_queries", [(pairs, ongoing)]),
        lag.family(component="replica", **tags),
        *replica_families(journal.series(), **tags),
        *caller.metrics(),
    ]
    # most replicas load neither of these modules
    multiplex = sys.modules.get("servd.app.model_pool")
    if multiplex is not None:
        found += multiplex.model_metrics(**tags)
    user = sys.modules.get("servd.metrics")
    if user is not None:
        found += user.families(**tags)
    return found
