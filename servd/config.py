"""Options of deployments and of the data plane as users write them, in the 2.5 names and the later ones."""

import json
import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from servd.documents import runtime_env
from servd.documents.autoscaling import (
    AggregationFunction,
    AutoscalingConfig,
    AutoscalingPolicy,
    expand_auto,
    warn_of_low_limit,
)
from servd.documents.autoscaling_context import AutoscalingContext
from servd.documents.bounds import (
    MAX_COUNT,
    MAX_THREADS,
    AbsolutePath,
    Count,
    LocalFile,
    NotNegative,
    Passphrase,
    Positive,
    Replicas,
    whole,
)
from servd.documents.checked import Document, Fault
from servd.documents.cross_checks import tls_faults
from servd.documents.request_router import RequestRouterConfig, take_out_default_router
from servd.ground.absent import stand_in
from servd.ground.ids import DeploymentID
from servd.ground.settings import DEFAULT_GRPC_PORT

__all__ = [
    "AggregationFunction",
    "AutoscalingConfig",
    "AutoscalingContext",
    "AutoscalingPolicy",
    "BackpressureConfig",
    "DeploymentID",
    "DeploymentMode",
    "HTTPOptions",
    "LoggingConfig",
    "ProxyLocation",
    "RequestRouterConfig",
    "gRPCOptions",
]

logger = logging.getLogger(__name__)


class DeploymentMode(StrEnum):
    """Where proxies run. On one host HeadOnly and EveryNode mean the same."""

    NoServer = "NoServer"
    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"
    FixedNumber = "FixedNumber"


class ProxyLocation(StrEnum):
    """Where proxies run, in the names of today's Ray Serve."""

    Disabled = "Disabled"
    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"


def check_route_prefix(prefix: str) -> str:
    """The prefix itself.

    Raises:
        ValueError: no leading slash, a trailing one, or a wildcard.
    """
    if not prefix.startswith("/"):
        raise ValueError(f"route_prefix must start with '/', got {prefix!r}")
    if len(prefix) > 1 and prefix.endswith("/"):
        raise ValueError(f"route_prefix must not end with '/', got {prefix!r}")
    if "{" in prefix or "}" in prefix:
        raise ValueError(f"route_prefix must not hold wildcards (braces), got {prefix!r}")
    return prefix


def _check_json(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"user_config must be JSON-serialisable: {error}") from error
    return value


def _check_queue_bound(value: int) -> int:
    if value > 0 or value == -1:
        return value
    raise ValueError("must be greater than 0, or -1 for no bound")


RoutePrefix = Annotated[str, AfterValidator(check_route_prefix)]


LOG_ATTRIBUTES = (
    "args",
    "created",
    "exc_info",
    "exc_text",
    "filename",
    "funcName",
    "levelname",
    "levelno",
    "lineno",
    "message",
    "module",
    "msecs",
    "msg",
    "name",
    "pathname",
    "process",
    "processName",
    "relativeCreated",
    "stack_info",
    "taskName",
    "thread",
    "threadName",
)
"""Attributes of `logging.LogRecord`."""


def _check_attribute(name: str) -> str:
    if name not in LOG_ATTRIBUTES:
        raise ValueError(f"unknown attribute of log records, one of {', '.join(LOG_ATTRIBUTES)}")
    return name


def _each_once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


class LoggingConfig(Document):
    """How an application or deployment logs."""

    encoding: Literal["TEXT", "JSON"] = "TEXT"
    log_level: str = "INFO"
    enable_access_log: bool = True
    additional_log_standard_attrs: Annotated[
        list[Annotated[str, AfterValidator(_check_attribute)]], AfterValidator(_each_once)
    ] = Field(default_factory=list)
    logs_dir: AbsolutePath | None = None

    also: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "logs_dir": {"enum": [""]},
        "log_level": {"type": "integer"},
        "additional_log_standard_attrs": {"type": "null"},
    }

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        # as if not said: clients of 2.5 do not know these
        for key, empty in (("logs_dir", ("", None)), ("additional_log_standard_attrs", ([], None))):
            if key in raw and raw[key] in empty:
                del raw[key]
        level = raw.get("log_level")
        if isinstance(level, int) and not isinstance(level, bool):
            raw["log_level"] = level = logging.getLevelName(level)
        if isinstance(level, str):
            raw["log_level"] = level = level.upper()
            if level not in logging.getLevelNamesMapping():
                known = ", ".join(("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))
                return [(("log_level",), f"unknown level, one of {known}")]
        return []


class BackpressureConfig(Document):
    """How HTTP requests are refused that find `max_queued_requests` waiting."""

    status_code: Literal[503, 429] = 503
    retry_after_s: NotNegative | None = None


class DeploymentOptions(Document):
    """What a decorator and a document's override have in common."""

    max_concurrent_queries: Count = 100
    graceful_shutdown_wait_loop_s: NotNegative = 2.0
    graceful_shutdown_timeout_s: NotNegative = 20.0
    health_check_period_s: Positive = 10.0
    health_check_timeout_s: Positive = 30.0
    is_driver_deployment: bool = False
    max_queued_requests: Annotated[int, Field(le=MAX_COUNT), AfterValidator(_check_queue_bound)] = 10_000
    request_timeout_s: Positive | None = None
    cancel_on_disconnect: bool = True
    max_sync_threads: Annotated[int, Field(gt=0, le=MAX_THREADS)] = 1
    memory_limit_bytes: Count | None = None
    start_method: Literal["fork", "spawn"] = "fork"
    preload: bool = False
    logging_config: LoggingConfig | None = None
    rolling_update_percentage: Annotated[float, Field(gt=0, le=1)] = 0.2
    max_surge_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    max_constructor_retry_count: Count = 100
    backpressure_config: BackpressureConfig | None = None
    request_router_config: RequestRouterConfig | None = None

    later_names: ClassVar[Mapping[str, str]] = {"max_ongoing_requests": "max_concurrent_queries"}
    also: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "num_replicas": {"const": "auto"},
    }
    hints: ClassVar[Mapping[str, str]] = {
        "placement_group_bundles": "num_gpus in ray_actor_options reserves devices of this host",
        "placement_group_strategy": "all replicas run on this host",
        "placement_group_bundle_label_selector": "all replicas run on this host",
        "placement_group_fallback_strategy": "all replicas run on this host",
        "max_replicas_per_node": "there is one host; num_replicas bounds it",
        "gang_scheduling_config": "replicas start one by one",
        "deployment_actors": "a deployment of its own that the others hold a handle to does the same",
    }

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        faults = expand_auto(raw)
        take_out_default_router(raw)
        replicas, scaling = raw.get("num_replicas"), raw.get("autoscaling_config")
        if replicas is not None and scaling is not None:
            faults.append(
                (
                    ("num_replicas",),
                    "num_replicas and autoscaling_config exclude each other: set one of them to null",
                )
            )
        driver = raw.get("is_driver_deployment") in (True, 1, "true", "True", "yes", "on")
        if driver and (scaling is not None or whole(1 if replicas is None else replicas) != 1):
            faults.append(
                (
                    ("is_driver_deployment",),
                    "a driver deployment has one replica: no other num_replicas, no autoscaling_config",
                )
            )
        warn_of_low_limit(raw)
        return faults


class DeploymentConfig(DeploymentOptions):
    """Options of `@deployment`, `.options` and `.set_options`; `given()` holds those that the user set."""

    num_replicas: Replicas | None = 1
    user_config: Annotated[Any, AfterValidator(_check_json)] = None
    autoscaling_config: AutoscalingConfig | None = None
    ray_actor_options: dict[str, Any] | None = None

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        if raw.get("num_replicas", 1) is None:
            raw.pop("num_replicas")
        return super().prepare(raw)

    @property
    def backpressure(self) -> tuple[int, float | None]:
        """As of `DeploymentTargets`."""
        config = self.backpressure_config or BackpressureConfig()
        return config.status_code, config.retry_after_s

    def given(self) -> dict[str, Any]:
        """Options that were set, by their 2.5 names, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


class RayActorOptions(Document):
    """Resources and environment of the replicas of one deployment."""

    runtime_env: dict[str, Any] = Field(default_factory=dict)
    num_cpus: NotNegative | None = None
    num_gpus: NotNegative | None = None
    memory: NotNegative | None = None
    object_store_memory: NotNegative | None = None
    resources: dict[str, NotNegative] = Field(default_factory=dict)
    accelerator_type: str | None = None

    hints: ClassVar[Mapping[str, str]] = {
        "label_selector": "there is one host",
        "fallback_strategy": "there is one host",
        "max_concurrency": "max_concurrent_queries of the deployment bounds the requests in flight",
        "max_restarts": "replicas that die are always replaced",
        "scheduling_strategy": "there is one host",
    }
    also: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "env_vars": {"type": "object", "additionalProperties": {"type": "string"}}
    }
    reserved: ClassVar[tuple[str, ...]] = ("CPU", "GPU", "memory", "object_store_memory")

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        """Moves the `env_vars` shorthand, turns absolute paths into `file:` URIs."""
        faults: list[Fault] = []
        env = raw.get("runtime_env", {})
        shorthand = raw.get("env_vars")
        if isinstance(shorthand, Mapping) and isinstance(env, Mapping):
            del raw["env_vars"]
            nested = env.get("env_vars") or {}
            env = {**env, "env_vars": {**shorthand, **nested} if isinstance(nested, Mapping) else nested}
        elif "env_vars" in raw:
            del raw["env_vars"]
            faults.append((("env_vars",), "must map names to strings"))
        if isinstance(env, Mapping):
            faults += [(("runtime_env", *loc), reason) for loc, reason in runtime_env.uri_faults(env)]
            if env or "runtime_env" in raw:
                raw["runtime_env"] = runtime_env.normalised(env)
        resources = raw.get("resources")
        for key in resources if isinstance(resources, Mapping) else ():
            if key in cls.reserved:
                faults.append((("resources", key), f"{key} has an option of its own, it is no custom resource"))
        return faults


class HTTPOptions(Document):
    """Options of the data plane in Python's `start`."""

    host: str | None = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    middlewares: list[Any] = Field(default_factory=list)
    location: DeploymentMode | None = DeploymentMode.EveryNode
    num_cpus: int = 0
    root_url: str = ""
    root_path: str = ""
    request_timeout_s: Positive | None = None
    keep_alive_timeout_s: Positive | None = None
    ssl_certfile: LocalFile | None = None
    ssl_keyfile: LocalFile | None = None
    ssl_keyfile_password: Passphrase | None = Field(default=None, repr=False)
    ssl_ca_certs: LocalFile | None = None
    fixed_number_replicas: int | None = None
    fixed_number_selection_seed: int = 0

    sent_as_they_are: ClassVar[tuple[str, ...]] = (
        "host",
        "port",
        "root_path",
        "request_timeout_s",
        "keep_alive_timeout_s",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_keyfile_password",
        "ssl_ca_certs",
    )
    """Those that the daemon is told by these names."""

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        """No host or no location means `NoServer`."""
        if raw.get("location") == "Disabled":
            raw["location"] = DeploymentMode.NoServer
        if raw.get("host", "") is None or raw.get("location", "") is None:
            raw["location"] = DeploymentMode.NoServer
        faults = tls_faults(raw)
        if raw.get("middlewares"):
            reason = "no user code runs in a proxy: wrap the application's own ASGI app in the middleware"
            faults.append((("middlewares",), reason))
        if raw.get("location") == "FixedNumber" and not raw.get("fixed_number_replicas"):
            faults.append((("fixed_number_replicas",), "is required with location FixedNumber"))
        return faults


class gRPCOptions(Document):
    """Options of gRPC in Python's `start`. Without servicer functions no port is opened.

    port: at the host of the data plane. grpc_servicer_functions: import paths of generated `add_...Servicer_to_server`.
    request_timeout_s: of every call. enable_reflection: tools may ask for the message types. Source: Ray Serve 2.60.
    """

    port: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_GRPC_PORT
    grpc_servicer_functions: list[str] = Field(default_factory=list)
    request_timeout_s: Positive | None = None
    enable_reflection: bool = True


def __getattr__(name: str) -> Any:
    value = globals()[name] = stand_in(__name__, name)
    return value
