"""servd serves Python applications with many processes on one host. Here are its public names, loaded when asked for."""

import importlib
from typing import TYPE_CHECKING, Any

from servd.ground.package import VERSION

if TYPE_CHECKING:
    from servd.api import (
        build,
        delete,
        deployment,
        get_app_handle,
        get_deployment,
        get_deployment_handle,
        list_deployments,
        run,
        shutdown,
        shutdown_async,
        start,
        status,
    )
    from servd.app.batch_types import batch
    from servd.app.built import BuiltApplication
    from servd.app.deployment import Application, Deployment
    from servd.app.ingress import ingress
    from servd.calls.response import get
    from servd.config import HTTPOptions
    from servd.context import get_multiplexed_model_id, get_replica_context, get_trace_context
    from servd.multiplex import multiplexed
    from servd.run_targets import RunTarget, run_many

__version__ = VERSION

__all__ = [
    "Application",
    "BuiltApplication",
    "Deployment",
    "HTTPOptions",
    "RunTarget",
    "batch",
    "build",
    "delete",
    "deployment",
    "get",
    "get_app_handle",
    "get_deployment",
    "get_deployment_handle",
    "get_multiplexed_model_id",
    "get_replica_context",
    "get_trace_context",
    "ingress",
    "list_deployments",
    "multiplexed",
    "run",
    "run_many",
    "shutdown",
    "shutdown_async",
    "start",
    "status",
]

# proxies and the daemon import this package too: a name costs nothing until somebody uses it
_HOMES = {
    "servd.app.deployment": ("Application", "Deployment"),
    "servd.app.ingress": ("ingress",),
    "servd.batching": ("batch",),
    "servd.app.built": ("BuiltApplication",),
    "servd.config": ("HTTPOptions",),
    "servd.context": ("get_multiplexed_model_id", "get_replica_context", "get_trace_context"),
    "servd.multiplex": ("multiplexed",),
    "servd.calls.response": ("get",),
    "servd.run_targets": ("RunTarget", "run_many"),
    "servd.api": (
        "build",
        "delete",
        "deployment",
        "get_app_handle",
        "get_deployment",
        "get_deployment_handle",
        "list_deployments",
        "run",
        "shutdown",
        "shutdown_async",
        "start",
        "status",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = (
    "config",
    "context",
    "dag",
    "deployment_graph",
    "drivers",
    "exceptions",
    "grpc_util",
    "handle",
    "http_adapters",
    "metrics",
    "schema",
)
# what they have is public under this package's name; as in Ray Serve they are there as attributes too
_HOMES_OF_NAMES = ("api", "batching", "multiplex")


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    elif name in _MODULES or name in _HOMES_OF_NAMES:
        value = importlib.import_module(f"servd.{name}")
    else:
        value = importlib.import_module("servd.ground.absent").stand_in("servd", name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
