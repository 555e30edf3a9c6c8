"""What the decorator makes: `Deployment`, and `Application`, a deployment bound to its arguments."""

import importlib
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypedDict, Unpack

from pydantic import ValidationError

from servd import runtime_env
from servd.config import AutoscalingConfig, DeploymentConfig, RayActorOptions, check_route_prefix
from servd.deployment_graph import GraphNode, UnboundMethod

ASGI_ATTRIBUTE = "__servd_asgi__"
"""`async def (self, scope, receive, send)` of instances that answer HTTP as an ASGI application."""

STARTUP_ATTRIBUTE = "__servd_startup__"
"""`async def (self)`, awaited after `__init__`: the ASGI application's lifespan start."""

SHUTDOWN_ATTRIBUTE = "__servd_shutdown__"
"""`async def (self)`, awaited before `__del__`: the ASGI application's lifespan end."""

BATCH_ATTRIBUTE = "__servd_batch__"
"""Attribute of functions decorated with `batch`: their `BatchOptions`."""

DOCS_PATH_ATTRIBUTE = "__servd_docs_path__"
"""Class attribute: path of the interactive documentation below the route prefix, or None."""


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
    logging_config: Any


logger = logging.getLogger(__name__)

_OWN = ("name", "version", "init_args", "init_kwargs", "route_prefix")
_CONFIG = {*DeploymentConfig.model_fields, *DeploymentConfig.later_names}


class Deployment:
    """A class or function with its options, made by `@deployment`."""

    def __init__(
        self,
        func_or_class: Callable[..., Any],
        name: str,
        config: DeploymentConfig,
        *,
        version: str | None = None,
        init_args: tuple[Any, ...] = (),
        init_kwargs: dict[str, Any] | None = None,
        route_prefix: str | Unset | None = UNSET,
        _internal: bool = False,
    ) -> None:
        if not _internal:
            raise RuntimeError("a Deployment is made by the `deployment` decorator, not by its constructor")
        self._func_or_class = func_or_class
        self._name = name
        self._config = config
        self._version = version
        self._init_args = init_args
        self._init_kwargs = dict(init_kwargs or {})
        self._route_prefix = route_prefix

    @property
    def name(self) -> str:
        """Bare name."""
        return self._name

    @property
    def version(self) -> str | None:
        """Version string, deprecated."""
        return self._version

    @property
    def func_or_class(self) -> Callable[..., Any]:
        """The decorated class or function itself."""
        return self._func_or_class

    @property
    def is_function(self) -> bool:
        """Whether a function is deployed."""
        return not inspect.isclass(self._func_or_class)

    @property
    def config(self) -> DeploymentConfig:
        """All further options; `config.given()` holds those that were set."""
        return self._config

    @property
    def num_replicas(self) -> int:
        """Fixed number of replicas."""
        return 1 if self._config.num_replicas is None else self._config.num_replicas

    @property
    def user_config(self) -> Any:
        """What `reconfigure` gets."""
        return self._config.user_config

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that one replica serves at a time."""
        return self._config.max_concurrent_queries

    max_concurrent_queries = max_ongoing_requests

    @property
    def ray_actor_options(self) -> dict[str, Any] | None:
        """Resources and environment of the replicas."""
        return self._config.ray_actor_options

    @property
    def init_args(self) -> tuple[Any, ...]:
        """Positional constructor arguments, used where `bind` gives none."""
        return self._init_args

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """Keyword constructor arguments, used where `bind` gives none."""
        return dict(self._init_kwargs)

    @property
    def route_prefix(self) -> str | None:
        """The prefix given, `/<name>` by default, None = not routed."""
        return f"/{self._name}" if self._route_prefix is UNSET else self._route_prefix

    @property
    def has_default_route_prefix(self) -> bool:
        """Whether no prefix, or None, was given: as an ingress it is served at `/`."""
        return self._route_prefix is UNSET or self._route_prefix is None

    @property
    def url(self) -> str | None:
        """Root URL and prefix; None when not routed, or for a driver deployment."""
        if self.route_prefix is None or self._config.is_driver_deployment:
            return None
        return str(_verbs().root_url()) + self.route_prefix

    def bind(self, *args: Any, **kwargs: Any) -> "Application":
        """This deployment with constructor arguments; bound deployments among them arrive as handles.

        Raises:
            ValueError: `ray_actor_options` or `user_config` are wrong; all faults are listed.
        """
        _check_for_bind(self._config)
        if not args and not kwargs:
            args, kwargs = self._init_args, dict(self._init_kwargs)
        return Application(self, args, kwargs, _internal=True)

    def options(
        self, func_or_class: Callable[..., Any] | None = None, **options: Unpack[DeploymentArguments]
    ) -> "Deployment":
        """A copy with these options changed; `num_replicas=None` means keep."""
        copy: Deployment = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        if func_or_class is not None:
            copy._func_or_class = _check_target(func_or_class)
        copy._apply(options)
        return copy

    def set_options(
        self, func_or_class: Callable[..., Any] | None = None, **options: Unpack[DeploymentArguments]
    ) -> None:
        """As `options`, in place."""
        self.__dict__.update(self.options(func_or_class, **options).__dict__)

    def _apply(self, options: Mapping[str, Any]) -> None:
        own, config = parse_options(options)
        self._config = _merge(self._config, config)
        self._name = own.get("name") or self._name
        self._version = own.get("version") or self._version
        self._init_args = tuple(own.get("init_args") or self._init_args)
        self._init_kwargs = dict(own.get("init_kwargs") or self._init_kwargs)
        self._route_prefix = own.get("route_prefix", self._route_prefix)
        _refuse_function_arguments(self)

    def deploy(self, *init_args: Any, _blocking: bool = True, **init_kwargs: Any) -> None:
        """Deprecated: deploy this alone, without application; `run` replaces it."""
        _verbs().deploy_alone(self, init_args, init_kwargs, blocking=_blocking)

    def delete(self) -> None:
        """Deprecated: delete what `deploy` made."""
        _verbs().delete_alone(self._name)

    def get_handle(self, sync: bool = True) -> Any:
        """Deprecated: a `RayServeSyncHandle`, or a `RayServeHandle` with `sync=False`."""
        return _verbs().legacy_handle(self._name, sync=sync)

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError(
            f"{self._name} is a deployment and cannot be called: "
            f"run it with `servd.run({self._name}.bind())`, or use `{self._name}.func_or_class`"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Deployment):
            return NotImplemented
        return self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._name)

    def _compared(self) -> tuple[Any, ...]:
        return (
            self._name,
            self._version,
            self._config,
            self._init_args,
            self._init_kwargs,
            self.route_prefix,
        )

    def __repr__(self) -> str:
        return f"Deployment(name={self._name},version={self._version},route_prefix={self.route_prefix})"


class Application(GraphNode):
    """A deployment with its constructor arguments; the root of an application, or a part of one."""

    def __init__(
        self,
        deployment: Deployment,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        _internal: bool = False,
    ) -> None:
        if not _internal:
            raise RuntimeError("an Application is made by `.bind(...)` of a deployment")
        self._deployment, self._args, self._kwargs = deployment, args, kwargs

    def __getattr__(self, name: str) -> UnboundMethod:
        # copy, pickle and inspect look for special names on everything
        if name.startswith("__") or name in ("bind", "_deployment"):
            raise AttributeError(f"an Application has no {name!r}: it is bound already")
        target = self._deployment.func_or_class
        if self._deployment.is_function or not callable(getattr(target, name, None)):
            raise AttributeError(f"{self._deployment.name} has no method {name!r}")
        return UnboundMethod(self, name)

    def __repr__(self) -> str:
        return f"Application({self._deployment.name})"


def parts_of(application: Application) -> tuple[Deployment, tuple[Any, ...], dict[str, Any]]:
    """What was bound: the deployment, positional and keyword arguments."""
    return application._deployment, application._args, application._kwargs


def make_deployment(target: Any, options: Mapping[str, Any]) -> Deployment:
    """The deployment of a class or function.

    Raises:
        TypeError: no class or function, an unknown option, a wrong type.
        ValueError: a wrong value; the model library's ValidationError is one.
    """
    _check_target(target)
    own, config = parse_options(options)
    made = Deployment(
        target,
        own.get("name") or target.__name__,
        config,
        version=own.get("version"),
        init_args=tuple(own.get("init_args") or ()),
        init_kwargs=own.get("init_kwargs"),
        route_prefix=own.get("route_prefix", UNSET),
        _internal=True,
    )
    _refuse_function_arguments(made)
    made._config = _with_room_for_batches(target, made._config)
    return made


def parse_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], DeploymentConfig]:
    """Checked options, split into the decorator's own (name, version, init args, prefix) and the config."""
    for key in options:
        if key not in _OWN and key not in _CONFIG:
            hint = DeploymentConfig.hints.get(key)
            raise TypeError(f"unknown option {key!r}" + (f": servd has no {key}: {hint}" if hint else ""))
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
    for key in ("version", "init_args", "init_kwargs"):
        if options.get(key):
            warnings.warn(f"the option {key} is deprecated", DeprecationWarning, stacklevel=5)


def _kind_name(kind: type | tuple[type, ...]) -> str:
    return kind.__name__ if isinstance(kind, type) else " or ".join(item.__name__ for item in kind)


def _check_target(target: Any) -> Callable[..., Any]:
    if not inspect.isclass(target) and not inspect.isfunction(target):
        raise TypeError(f"only a class or a function can be a deployment, got {type(target).__name__}")
    return target


def _refuse_function_arguments(made: Deployment) -> None:
    if made.is_function and (made.init_args or made.init_kwargs):
        raise ValueError(f"{made.name} is a function: it has no constructor for init_args or init_kwargs")


def _merge(old: DeploymentConfig, new: DeploymentConfig) -> DeploymentConfig:
    merged = old.model_copy(update={key: getattr(new, key) for key in new.model_fields_set})
    replicas = 1 if merged.num_replicas is None else merged.num_replicas
    if merged.is_driver_deployment and (merged.autoscaling_config is not None or replicas != 1):
        raise ValueError("a driver deployment has one replica: num_replicas and autoscaling_config are excluded")
    return merged


def _with_room_for_batches(target: Any, config: DeploymentConfig) -> DeploymentConfig:
    """The config with a cap that lets the largest batches of the target's batched methods form."""
    members = vars(target).values() if inspect.isclass(target) else (target,)
    options = [found for item in members if (found := getattr(item, BATCH_ATTRIBUTE, None)) is not None]
    needed = max((one.max_batch_size * one.max_concurrent_batches for one in options), default=0)
    cap = config.max_concurrent_queries
    if needed <= cap:
        return config
    if "max_concurrent_queries" in config.model_fields_set:
        logger.warning(
            "batches_never_full deployment=%s max_concurrent_queries=%d batch_size_times_batches=%d",
            target.__name__,
            cap,
            needed,
        )
        return config
    return config.model_copy(update={"max_concurrent_queries": needed})


def _check_for_bind(config: DeploymentConfig) -> None:
    options = config.ray_actor_options
    if options is not None:
        try:
            checked = RayActorOptions(**options)
        except ValidationError as error:
            raise ValueError(f"ray_actor_options: {error}") from error
        faults = runtime_env.faults(checked.runtime_env)
        if faults:
            listed = "; ".join(f"{'.'.join(map(str, where))}: {reason}" for where, reason in faults)
            raise ValueError(f"ray_actor_options.runtime_env: {listed}")
    if config.user_config is not None and not isinstance(config.user_config, dict):
        raise ValueError(f"user_config must be a dict, got {type(config.user_config).__name__}")


def _verbs() -> Any:
    # the deprecated calls of 1.x hang on the value; the verbs know the value, so it looks them up late
    return importlib.import_module("servd.api")
