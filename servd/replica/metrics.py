"""Everything that a replica has counted, as families of samples."""

import contextlib
import sys

from servd.calls.caller import Caller
from servd.ground.ids import full_name_of
from servd.ground.process import own_usage
from servd.observability.journal import Journal
from servd.observability.measures import LoopLag, family, labelled, replica_families
from servd.replica.health import HealthChecks
from servd.wire.messages import MetricFamily, ReplicaStart


def replica_metrics(
    start: ReplicaStart, journal: Journal, ongoing: int, caller: Caller, lag: LoopLag, health: HealthChecks | None
) -> list[MetricFamily]:
    """The metrics of a replica, its user's included; any thread may ask."""
    full_name = full_name_of(start.app, start.deployment)
    tags = {"deployment": full_name, "replica": start.replica_id, "application": start.app}
    pairs = labelled(**tags)
    found = [
        family("serve_deployment_replica_starts", [(pairs, 1)]),
        family("serve_replica_processing_queries", [(pairs, ongoing)]),
        lag.family(component="replica", **tags),
        *replica_families(journal.series(), **tags),
        *caller.metrics(),
    ]
    # without a descriptor nobody can look
    with contextlib.suppress(OSError):
        usage = own_usage()
        found += [
            family("serve_replica_memory_bytes", [(pairs, usage.memory_bytes)]),
            family("serve_replica_cpu_seconds_total", [(pairs, usage.cpu_s)]),
            family("serve_replica_open_descriptors", [(pairs, usage.descriptors)]),
            family("serve_replica_threads", [(pairs, usage.threads)]),
        ]
    if health is not None and health.took_ms.count:
        found.append(family("serve_health_check_latency_ms", [(pairs, health.took_ms.sample())]))
        found.append(family("serve_health_check_failures", [(pairs, health.failed)] if health.failed else []))
    # most replicas load none of these modules
    batches = sys.modules.get("servd.app.batch_measures")
    if batches is not None:
        found += batches.batch_metrics(**tags)
    multiplex = sys.modules.get("servd.app.model_pool")
    if multiplex is not None:
        found += multiplex.model_metrics(**tags)
    user = sys.modules.get("servd.metrics")
    if user is not None:
        found += user.families(**tags)
    return found
