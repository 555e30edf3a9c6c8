"""An application of servd's as one of Ray's: the same deployments under the same names, with servd's defaults written out."""

from collections.abc import Mapping
from typing import Any

import ray
from ray import serve

from servd.app.deployment import Deployment
from servd.engines.on_ray.built import built_from
from servd.engines.on_ray.shells import IngressShell, Shell
from servd.engines.ray import removed
from servd.engines.ray.translated import DEFAULT_TARGET, NEW_FIRST

_ERA_TARGET, _TARGET = "target_num_ongoing_requests_per_replica", "target_ongoing_requests"
_AS_THEY_ARE = (
    "graceful_shutdown_wait_loop_s",
    "graceful_shutdown_timeout_s",
    "health_check_period_s",
    "health_check_timeout_s",
)
_IF_GIVEN = ("logging_config", "rolling_update_percentage", "max_constructor_retry_count")


def ray_application(order: Mapping[str, Any]) -> Any:
    """The application of an order, bound as Ray binds."""
    built = built_from(order)
    others = [
        serve.deployment(**ray_options(one))(Shell).bind(dict(order), name)
        for name, one in built.deployments.items()
        if name != built.ingress_name
    ]
    ingress = serve.deployment(**ray_options(built.ingress))(IngressShell)
    # the others are part of the application because it is bound to them; it calls them by name
    return ingress.bind(dict(order), built.ingress_name, others)


def ray_options(deployment: Deployment) -> dict[str, Any]:
    """Options of Ray's decorator for a deployment."""
    config, given = deployment.config, deployment.config.given()
    found: dict[str, Any] = {
        "name": deployment.name,
        "max_ongoing_requests": config.max_concurrent_queries,
        "max_queued_requests": config.max_queued_requests,
        "max_surge_percent": NEW_FIRST if config.max_surge_percent is None else config.max_surge_percent,
        **{key: getattr(config, key) for key in _AS_THEY_ARE},
        **{key: given[key] for key in _IF_GIVEN if key in given},
        "ray_actor_options": _actor_options(given.get("ray_actor_options") or {}),
    }
    if given.get("request_router_config"):
        found["request_router_config"] = removed.translated_router(given["request_router_config"])
    if config.user_config is not None:
        found["user_config"] = config.user_config
    scaling = given.get("autoscaling_config")
    if scaling:
        scaling = {_TARGET if key == _ERA_TARGET else key: value for key, value in scaling.items()}
        found["autoscaling_config"] = {_TARGET: DEFAULT_TARGET, **scaling}
    else:
        found["num_replicas"] = deployment.num_replicas
    return found


def _actor_options(options: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in options.items() if key != "object_store_memory" and value is not None}
    own = found.get("runtime_env")
    if own:
        # a deployment that the document does not list would lose the application's: its code, and this package
        whole = dict(ray.get_runtime_context().runtime_env)
        variables = {**(whole.get("env_vars") or {}), **(own.get("env_vars") or {})}
        found["runtime_env"] = {**whole, **own, "env_vars": variables}
    return found
