"""What the decorator makes: `Deployment`, and `Application`, a deployment bound to its arguments."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, Unpack

from servd.app.graph_nodes import GraphNode, UnboundMethod
from servd.app.options import (
    UNSET,
    DeploymentArguments,
    Unset,
    check_target,
    checked_for_bind,
    merge_configs,
    parse_options,
    with_room_for_batches,
)
from servd.app.verbs import verbs
from servd.config import BackpressureConfig, DeploymentConfig, LoggingConfig
from servd.ground.names import check_name
from servd.ground.parametrized import Parameters, Parametrized, Served

if TYPE_CHECKING:
    from servd.handle import RayServeDeploymentHandle, RayServeSyncHandle

    # in the constructor that it is bound to it is a handle, of the style that the parameter's annotation names
    class BoundAsHandle(RayServeSyncHandle[Served], RayServeDeploymentHandle):  # type: ignore[misc]
        """What an application is to the constructor that gets it."""
else:
    BoundAsHandle = Parametrized

ASGI_ATTRIBUTE = "__servd_asgi__"
"""`async def (self, scope, receive, send)` of instances that answer HTTP as an ASGI application."""

STARTUP_ATTRIBUTE = "__servd_startup__"
"""`async def (self, *, alone)`, awaited after `__init__`: the ASGI application's lifespan start. alone: no other instance uses
the application in this process."""

SHUTDOWN_ATTRIBUTE = "__servd_shutdown__"
"""`async def (self)`, awaited before `__del__`: the ASGI application's lifespan end."""

DOCS_PATH_ATTRIBUTE = "__servd_docs_path__"
"""Class attribute: path of the interactive documentation below the route prefix, or None. Instances have their own once their
application is made."""

ROUTES_ATTRIBUTE = "__servd_routes__"
"""Attribute of instances: the `RoutePatterns` of their ASGI application, once it has started."""

DRIVER_ATTRIBUTE = "__servd_driver__"
"""Class attribute of ingresses that call the deployments they are bound to with what a request holds."""


class Deployment(Parametrized[Parameters, Served]):
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
    def max_queued_requests(self) -> int:
        """Requests that may wait at one caller; -1 = no bound."""
        return self._config.max_queued_requests

    @property
    def backpressure_config(self) -> BackpressureConfig | None:
        """How HTTP requests beyond that are refused."""
        return self._config.backpressure_config

    @property
    def logging_config(self) -> LoggingConfig | None:
        """How it logs."""
        return self._config.logging_config

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
        return str(verbs().root_url()) + self.route_prefix

    def bind(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> "Application[Served]":
        """This deployment with constructor arguments; bound deployments among them arrive as handles.

        Raises:
            ValueError: `ray_actor_options` are wrong; all faults are listed.
        """
        checked_for_bind(self._config)
        given: tuple[tuple[Any, ...], dict[str, Any]] = (args, kwargs)
        if not args and not kwargs:
            given = (self._init_args, dict(self._init_kwargs))
        return Application(self, *given, _internal=True)

    def options(self, func_or_class: Callable[..., Any] | None = None, **options: Unpack[DeploymentArguments]) -> Self:
        """A copy with these options changed; `num_replicas=None` means keep."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        if func_or_class is not None:
            copy._func_or_class = check_target(func_or_class)
        copy._apply(options)
        return copy

    def set_options(
        self, func_or_class: Callable[..., Any] | None = None, **options: Unpack[DeploymentArguments]
    ) -> None:
        """As `options`, in place."""
        self.__dict__.update(self.options(func_or_class, **options).__dict__)

    def _apply(self, options: Mapping[str, Any]) -> None:
        own, config = parse_options(options)
        self._config = merge_configs(self._config, config)
        self._name = own.get("name") or self._name
        self._version = own.get("version") or self._version
        self._init_args = tuple(own.get("init_args") or self._init_args)
        self._init_kwargs = dict(own.get("init_kwargs") or self._init_kwargs)
        self._route_prefix = own.get("route_prefix", self._route_prefix)
        _refuse_function_arguments(self)

    def deploy(self, *init_args: Any, _blocking: bool = True, **init_kwargs: Any) -> None:
        """Deprecated: deploy this alone, without application; `run` replaces it."""
        verbs().deploy_alone(self, init_args, init_kwargs, blocking=_blocking)

    def delete(self) -> None:
        """Deprecated: delete what `deploy` made."""
        verbs().delete_alone(self._name)

    def get_handle(self, sync: bool = True) -> Any:
        """Deprecated: a `RayServeSyncHandle`, or a `RayServeHandle` with `sync=False`."""
        return verbs().legacy_handle(self._name, sync=sync)

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


class Application(GraphNode, BoundAsHandle[Served]):  # type: ignore[misc]
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

    def __getattr__(self, name: str) -> UnboundMethod:  # type: ignore[override]
        # copy, pickle and inspect look for special names on everything
        if (name.startswith("__") and name != "__call__") or name in ("bind", "_deployment"):
            raise AttributeError(f"an Application has no {name!r}: it is bound already")
        if self._deployment.is_function or not callable(own_member(self._deployment.func_or_class, name)):
            raise AttributeError(f"{self._deployment.name} has no method {name!r}")
        return UnboundMethod(self, name)

    def __repr__(self) -> str:
        return f"Application({self._deployment.name})"


def own_member(target: Any, name: str) -> Any:
    """What a class, or one that it inherits from, defines under a name; None if none does: every class can be called, by its
    metaclass."""
    return getattr(target, name) if any(name in vars(kind) for kind in inspect.getmro(target)) else None


def parts_of(application: Application) -> tuple[Deployment, tuple[Any, ...], dict[str, Any]]:
    """What was bound: the deployment, positional and keyword arguments."""
    return application._deployment, application._args, application._kwargs


def make_deployment(target: Any, options: Mapping[str, Any]) -> Deployment:
    """The deployment of a class or function.

    Raises:
        TypeError: no class or function, an unknown option, a wrong type.
        ValueError: a wrong value; the model library's ValidationError is one.
    """
    check_target(target)
    own, config = parse_options(options)
    made = Deployment(
        target,
        own.get("name") or check_name(target.__name__),
        config,
        version=own.get("version"),
        init_args=tuple(own.get("init_args") or ()),
        init_kwargs=own.get("init_kwargs"),
        route_prefix=own.get("route_prefix", UNSET),
        _internal=True,
    )
    _refuse_function_arguments(made)
    made._config = with_room_for_batches(target, made._config)
    return made


def _refuse_function_arguments(made: Deployment) -> None:
    if made.is_function and (made.init_args or made.init_kwargs):
        raise ValueError(f"{made.name} is a function: it has no constructor for init_args or init_kwargs")


# where users find them: pickles name this module, so it can stay when the classes move, and brings the verbs along
Deployment.__module__ = Application.__module__ = "servd.api"
