"""Names of today's Ray Serve that servd does not have: importing them works, using them tells what to use instead."""

from collections.abc import Mapping
from typing import Any, NoReturn

_ACTORS = "a deployment of its own that the others hold a handle to does the same"
_GANGS = "replicas start one by one"
_HEALTH = "`GET /api/servd/v1/status`, or `?dialect=today` of the admin API, has it as JSON"
_POLICY = "ask what you need in a policy of your own; without one replicas follow `target_ongoing_requests`"
_ROUTER = "name a built-in router in `request_router_config`"
_TASKS = "let the consumer of your queue call a handle"
_TRACES = "tracing is of the whole daemon: `servd start --trace-endpoint URL --trace-ratio R`, or the variables of OpenTelemetry"

INSTEAD = {
    "APIType": _HEALTH,
    "AutoscalingMetricsHealth": _HEALTH,
    "AutoscalingStatus": _HEALTH,
    "CeleryAdapterConfig": _TASKS,
    "ControllerHealthMetrics": _HEALTH,
    "ControllerOptions": "the controller has options of `servd start` alone",
    "DeploymentActorConfig": _ACTORS,
    "DeploymentActorContext": _ACTORS,
    "DeploymentAutoscalingDetail": _HEALTH,
    "DeploymentNode": _HEALTH,
    "DeploymentTopology": _HEALTH,
    "DurationStats": _HEALTH,
    "FIFOMixin": _ROUTER,
    "GangContext": _GANGS,
    "GangPlacementStrategy": _GANGS,
    "GangRuntimeFailurePolicy": _GANGS,
    "GangSchedulingConfig": _GANGS,
    "LocalityMixin": _ROUTER,
    "MultiplexMixin": _ROUTER,
    "PendingRequest": _ROUTER,
    "PrometheusQueryMixin": _POLICY,
    "PrometheusSample": _POLICY,
    "PrometheusScalar": _POLICY,
    "PrometheusVector": _POLICY,
    "ProxyDetails": _HEALTH,
    "RequestRouter": _ROUTER,
    "RunningReplica": _ROUTER,
    "ScaleDeploymentRequest": '`servd scale`, or `POST .../scale` with `{"target_num_replicas": N}`',
    "ScalingDecision": _HEALTH,
    "Target": _HEALTH,
    "TargetGroup": _HEALTH,
    "TaskProcessorAdapter": _TASKS,
    "TaskProcessorConfig": _TASKS,
    "TaskResult": _TASKS,
    "TracingConfig": _TRACES,
    "default_autoscaling_policy": _POLICY,
    "get_deployment_actor": _ACTORS,
    "get_deployment_actor_context": _ACTORS,
    "instantiate_adapter_from_config": _TASKS,
    "replica_queue_length_autoscaling_policy": _POLICY,
    "task_consumer": _TASKS,
    "task_handler": _TASKS,
}
"""Name -> what to use instead."""

_CONFIG = "ControllerOptions DeploymentActorConfig GangPlacementStrategy GangRuntimeFailurePolicy GangSchedulingConfig"
NAMES = {
    "servd": "ControllerOptions TracingConfig get_deployment_actor get_deployment_actor_context",
    "servd.config": _CONFIG,
    "servd.context": "DeploymentActorContext GangContext",
    "servd.schema": (
        "APIType AutoscalingMetricsHealth AutoscalingStatus CeleryAdapterConfig "
        "ControllerHealthMetrics ControllerOptions DeploymentActorConfig DeploymentAutoscalingDetail DeploymentNode "
        "DeploymentTopology DurationStats GangSchedulingConfig ProxyDetails "
        "ScaleDeploymentRequest ScalingDecision Target TargetGroup TaskProcessorAdapter TaskProcessorConfig TaskResult "
        "TracingConfig"
    ),
    "ray.serve.autoscaling_policy": (
        "PrometheusQueryMixin PrometheusSample PrometheusScalar PrometheusVector "
        "default_autoscaling_policy replica_queue_length_autoscaling_policy"
    ),
    "ray.serve.request_router": "FIFOMixin LocalityMixin MultiplexMixin PendingRequest RequestRouter RunningReplica",
    "ray.serve.task_consumer": (
        "TaskProcessorAdapter TaskProcessorConfig instantiate_adapter_from_config task_consumer task_handler"
    ),
}
"""Module -> the names that it gives, separated by spaces."""

_SERIALIZATIONS = ("cloudpickle", "pickle", "msgpack", "orjson")
_CHOSEN = (
    "`options(session_id=...)` keeps calls on one replica where the deployment's router is `consistent_hash`, and "
    "`broadcast` calls every replica"
)
_OF_HANDLES = {
    "choose_replica": _CHOSEN,
    "dispatch": _CHOSEN,
    "_init": "leave it out, they are ready at once and all replicas are local",
}

_OPTIONS = {
    "controller_options": "ControllerOptions",
    "tracing_config": "TracingConfig",
}


def refuse_options(function: str, given: Mapping[str, Any]) -> None:
    """Refuse further options of a function; None in place of one that servd does not have is fine.

    Raises:
        ValueError: of today's Ray Serve; says what to use instead. TypeError: of nobody.
    """
    for name, value in given.items():
        if name not in _OPTIONS:
            raise TypeError(f"{function}() has no argument {name!r}")
        if value is not None:
            raise ValueError(f"servd has no {name}: {INSTEAD[_OPTIONS[name]]}")


def refuse_of_handles(name: str) -> None:
    """Refuse a function of Ray's handles; other names are the user's.

    Raises:
        NotImplementedError: says what to use instead.
    """
    if name in _OF_HANDLES:
        raise NotImplementedError(
            f"handles have no {name} here: {_OF_HANDLES[name]}; a method of that name is called with `.remote`"
        )


def check_serializations(*given: str | None) -> None:
    """Check what options of handles say of how values travel.

    Raises:
        ValueError: nobody has that one.
    """
    for name in given:
        if name is not None and name not in _SERIALIZATIONS:
            raise ValueError(f"a serialization is one of {', '.join(_SERIALIZATIONS)}, got {name!r}")


class _Absent(type):
    """Of types that can be named, in annotations and `isinstance`, and nothing else."""

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> "_Absent":
        for base in bases:
            if isinstance(base, mcs):
                _refuse(base)
        return super().__new__(mcs, name, bases, body)

    def __call__(cls, *_args: Any, **_options: Any) -> NoReturn:
        _refuse(cls)

    def __getattr__(cls, name: str) -> NoReturn:
        # those who look at everything ask for special names
        if name.startswith("_"):
            raise AttributeError(name)
        _refuse(cls)


def _refuse(kind: type) -> NoReturn:
    raise NotImplementedError(f"servd has no {kind.__name__}: {INSTEAD[kind.__name__]}")


def stand_in(module: str, name: str) -> Any:
    """What stands under that name in a module where servd has nothing of it.

    Raises:
        AttributeError: nothing does.
    """
    if name not in NAMES.get(module, "").split():
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    # what is named in an `except` must be an error
    bases = (Exception,) if name.endswith("Error") else ()
    return _Absent(name, bases, {"__module__": module, "__doc__": f"Not here: {INSTEAD[name]}."})
