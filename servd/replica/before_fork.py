"""What the start of a replica needs, made before the fork: replicas share it, and start sooner.

How this works: a forked child shares each page of memory until one of the two writes to it. What a child makes is its own, and
so is each page with an object that it has looked at, since Python counts references in the objects themselves. So whatever all
children would make is made here, once.
"""

import asyncio
from types import FunctionType, MethodType
from typing import Any

from servd.app.built import BuiltApplication
from servd.app.deployment import Deployment
from servd.calls.process import Process
from servd.calls.replica_context import ProcessIds, ReplicaContext
from servd.ground.ids import DeploymentID, ReplicaID, ReplicaRank
from servd.ground.process import Usage
from servd.ground.quick_dataclass import compile_now
from servd.observability import logs
from servd.observability.access_log import short_latencies
from servd.observability.figures import FiguresReport
from servd.replica.methods import Method, are_handlers_sync, method_of
from servd.wire.messages import Hello, MetricFamily, MetricsReport, ReplicaGoal, ReplicaReport, Subscribe

_CLASSES = (
    DeploymentID,
    FiguresReport,
    Hello,
    Method,
    MetricFamily,
    MetricsReport,
    Process,
    ProcessIds,
    ReplicaContext,
    ReplicaGoal,
    ReplicaID,
    ReplicaRank,
    ReplicaReport,
    logs.Style,
    Subscribe,
    Usage,
)
"""Those that each replica makes instances of at its start."""


def make_ready(built: BuiltApplication) -> None:
    """Make what replicas of this build would make at their start, each for itself."""
    compile_now(*_CLASSES)
    short_latencies(is_json=False)
    # makes the policy
    asyncio.set_event_loop(None)
    logs.revive(for_children=True)
    for deployment in built.deployments.values():
        _know_handlers(deployment)


def _know_handlers(deployment: Deployment) -> None:
    target: Any = deployment.func_or_class
    if deployment.is_function:
        method_of("__call__", target)
        return
    are_handlers_sync(target)
    if isinstance(entry := getattr(target, "__call__", None), FunctionType):  # noqa: B004 - the method itself is wanted
        method_of("__call__", MethodType(entry, target))
