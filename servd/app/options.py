"""Options of the decorator: which there are, how they are checked, how a later set lies over an earlier one."""

import difflib
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypedDict

from pydantic import ValidationError

from servd.config import (
    AutoscalingConfig,
    BackpressureConfig,
    DeploymentConfig,
    RayActorOptions,
    RequestRouterConfig,
    check_route_prefix,
)
from servd.documents import runtime_env
from servd.ground.names import check_name

BATCH_ATTRIBUTE = "__servd_batch__"
"""Attribute of functions decorated with `batch`: their `BatchOptions`."""


class Unset(Enum):
    """Type of `UNSET`."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "<unset>"


UNSET = Unset.UNSET
"""Stands for "not given" where None means something."""


class DeploymentArguments(TypedDict, total=False):
    """Keywords of `deployment`, `Deployment.options` and `Deployment.set_options`."""

    name: str | None
    version: str | None
    num_replicas: int | str | None
    init_args: tuple[Any, ...] | list[Any] | None
    init_kwargs: dict[str, Any] | None
    route_prefix: str | None
    ray_actor_options: dict[str, Any] | None
    user_config: Any
    max_ongoing_requests: int
    max_concurrent_queries: int
    autoscaling_config: dict[str, Any] | AutoscalingConfig | None
    graceful_shutdown_wait_loop_s: float
    graceful_shutdown_timeout_s: float
    health_check_period_s: float
    health_check_timeout_s: float
    is_driver_deployment: bool
    max_queued_requests: int
    request_timeout_s: float | None
    cancel_on_disconnect: bool
    max_sync_threads: int
    memory_limit_bytes: int | None
    start_method: str
    preload: bool
    logging_config: Any
    rolling_update_percentage: float
    max_surge_percent: int | None
    max_constructor_retry_count: int
    backpressure_config: dict[str, Any] | BackpressureConfig | None
    request_router_config: dict[str, Any] | RequestRouterConfig | None


logger = logging.getLogger(__name__)

_OWN = ("name", "version", "init_args", "init_kwargs", "route_prefix")
_CONFIG = {*DeploymentConfig.model_fields, *DeploymentConfig.later_names}


def parse_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], DeploymentConfig]:
    """Checked options, split into the decorator's own (name, version, init args, prefix) and the config."""
    for key, value in options.items():
        # None in the place of what servd does not have asks for nothing
        if key not in _OWN and key not in _CONFIG and not (value is None and key in DeploymentConfig.hints):
            hint = DeploymentConfig.hints.get(key)
            near = difflib.get_close_matches(key.lower(), [*_OWN, *_CONFIG], n=1)
            reason = f": servd has no {key}: {hint}" if hint else f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"unknown option {key!r}{reason}")
    _check_types(options)
    config = {key: value for key, value in options.items() if key in _CONFIG}
    replicas = config.get("num_replicas")
    if replicas == 0 and not isinstance(replicas, str):
        raise ValueError("num_replicas must be at least 1, got 0")
    if replicas is not None and replicas != "auto" and config.get("autoscaling_config") is not None:
        raise ValueError("num_replicas and autoscaling_config exclude each other: give one of them")
    prefix = options.get("route_prefix")
    if prefix is not None:
        check_route_prefix(prefix)
    return {key: options[key] for key in _OWN if key in options}, DeploymentConfig(**config)


def _check_types(options: Mapping[str, Any]) -> None:
    wanted: dict[str, type | tuple[type, ...]] = {
        "name": str,
        "version": str,
        "init_args": (tuple, list),
        "init_kwargs": dict,
        "route_prefix": str,
        "ray_actor_options": dict,
    }
    for key, kind in wanted.items():
        value = options.get(key)
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{key} must be a {_kind_name(kind)}, got {type(value).__name__}")
    if options.get("name") == "":
        raise ValueError("name must not be empty: leave it out for the name of the class or function")
    check_name(options.get("name") or "")
    for key in ("version", "init_args", "init_kwargs"):
        if options.get(key):
            warnings.warn(f"the option {key} is deprecated", DeprecationWarning, stacklevel=5)


def _kind_name(kind: type | tuple[type, ...]) -> str:
    return kind.__name__ if isinstance(kind, type) else " or ".join(item.__name__ for item in kind)


def check_target(target: Any) -> Callable[..., Any]:
    """`target` itself.

    Raises:
        TypeError: it is neither a class nor a function.
    """
    if not inspect.isclass(target) and not inspect.isfunction(target):
        raise TypeError(f"only a class or a function can be a deployment, got {type(target).__name__}")
    return target


def merge_configs(old: DeploymentConfig, new: DeploymentConfig) -> DeploymentConfig:
    """`old` with what was given in `new`.

    Raises:
        ValueError: a driver deployment would get several replicas.
    """
    merged = old.model_copy(update={key: getattr(new, key) for key in new.model_fields_set})
    replicas = 1 if merged.num_replicas is None else merged.num_replicas
    if merged.is_driver_deployment and (merged.autoscaling_config is not None or replicas != 1):
        raise ValueError("a driver deployment has one replica: num_replicas and autoscaling_config are excluded")
    return merged


def with_room_for_batches(target: Any, config: DeploymentConfig) -> DeploymentConfig:
    """The config with a cap that lets the largest batches of the target's batched methods form."""
    members = vars(target).values() if inspect.isclass(target) else (target,)
    options = [found for item in members if (found := getattr(item, BATCH_ATTRIBUTE, None)) is not None]
    needed = max((one.max_batch_size * one.max_concurrent_batches for one in options), default=0)
    cap = config.max_concurrent_queries
    if needed <= cap:
        return config
    if "max_concurrent_queries" in config.model_fields_set:
        logger.warning(
            "%s: max_concurrent_queries=%d is below the %d requests that fill its batches: they will never be full",
            target.__name__,
            cap,
            needed,
        )
        return config
    return config.model_copy(update={"max_concurrent_queries": needed})


def checked_for_bind(config: DeploymentConfig) -> DeploymentConfig:
    """The config with `ray_actor_options` in the form in which documents are stored: the decorator leaves them as written.

    Raises:
        ValueError: `ray_actor_options` are wrong; all faults are listed.
    """
    if config.ray_actor_options is None:
        return config
    known = {*RayActorOptions.model_fields, *RayActorOptions.hints}
    options = {key: value for key, value in config.ray_actor_options.items() if value is not None or key not in known}
    try:
        checked = RayActorOptions(**options)
    except ValidationError as error:
        raise ValueError(f"ray_actor_options: {error}") from error
    faults = runtime_env.faults(checked.runtime_env)
    if faults:
        listed = "; ".join(f"{'.'.join(map(str, where))}: {reason}" for where, reason in faults)
        raise ValueError(f"ray_actor_options.runtime_env: {listed}")
    return config.model_copy(update={"ray_actor_options": checked.model_dump(mode="json", exclude_unset=True)})
