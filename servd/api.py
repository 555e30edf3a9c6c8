"""The verbs: make deployments, run and stop applications, get handles to them."""

import asyncio
import atexit
import importlib
import logging
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Unpack, overload

from servd.app import verbs
from servd.app.built import BuiltApplication, build_application
from servd.app.deployment import Application, Deployment, make_deployment
from servd.app.deployment_types import DeployedFunction, DeploymentDecorator
from servd.app.legacy import Legacy
from servd.app.live_deployment import live_deployment
from servd.app.options import UNSET, DeploymentArguments, Unset
from servd.calls.connection import NOT_RUNNING
from servd.calls.replica_context import refuse_in_template, replica_context
from servd.compat.companions import offer_companions
from servd.config import HTTPOptions, LoggingConfig, check_route_prefix, gRPCOptions
from servd.daemon.listeners import concrete_port
from servd.daemon.presence import stay
from servd.dag import HandleMaker
from servd.documents.program_environment import program_environment
from servd.exceptions import ServdError
from servd.ground.absent import refuse_options
from servd.ground.ids import DeploymentID, full_name_of
from servd.ground.names import check_name
from servd.ground.parametrized import Parameters, Served
from servd.handle import DeploymentHandle, RayServeSyncHandle

if TYPE_CHECKING:
    from servd.client import Client
    from servd.documents.statuses import ServeStatus

DEFAULT_APP = "default"
offer_companions()
logger = logging.getLogger(__name__)


@overload
def deployment(_func_or_class: DeployedFunction) -> Deployment[..., Any]: ...
@overload
def deployment(_func_or_class: Callable[Parameters, Served]) -> Deployment[Parameters, Served]: ...  # type: ignore[overload-cannot-match]
@overload
def deployment(_func_or_class: str | None = None, **options: Unpack[DeploymentArguments]) -> DeploymentDecorator: ...
def deployment(_func_or_class: Any = None, **options: Unpack[DeploymentArguments]) -> Any:
    """Make a class or a function a deployment; bare, with options, or with its name first.

    Raises:
        TypeError: no class or function, an unknown option, an option of a wrong type.
        ValueError: an option out of its bounds.
    """
    if isinstance(_func_or_class, str):
        if "name" in options:
            raise TypeError(f"the deployment's name is given twice: {_func_or_class!r} and {options['name']!r}")
        options["name"] = _func_or_class
    elif _func_or_class is not None:
        return make_deployment(_func_or_class, options)

    def decorate(target: Callable[..., Any]) -> Deployment:
        return make_deployment(target, options)

    return decorate


def run(
    target: Application[Served] | BuiltApplication,
    blocking: bool | None = None,
    name: str = DEFAULT_APP,
    route_prefix: str | Unset | None = UNSET,
    logging_config: Mapping[str, Any] | LoggingConfig | None = None,
    local: bool = False,
    *,
    host: str | None = None,
    port: int | None = None,
    external_scaler_enabled: bool = False,  # noqa: ARG001
    _blocking: bool = True,
    _local_testing_mode: bool = False,
    **further: Any,
) -> RayServeSyncHandle[Served]:
    """Deploy an application and wait until it is healthy; a daemon is started where none runs.

    Args:
        blocking: True = stay until Ctrl-C after that.
        name: of the application; one of this name is replaced. Without a name, "", it replaces all others too, and its
            deployments go by their bare names.
        route_prefix: instead of the ingress's; None = not over HTTP.
        logging_config: as in documents. local: run it in this process, without daemon and sockets.
        host, port: of the data plane; ignored with a warning where Serve runs with others.
        external_scaler_enabled: what it allows is always allowed. _blocking: False = do not wait.

    Returns:
        A handle to the ingress.

    Raises:
        TypeError: `target` is no application. ValueError: it cannot be built, or `route_prefix` is wrong.
        ServdError: the daemon refuses it, say because the prefix is taken; nothing is changed then.
        RuntimeError: a deployment is UNHEALTHY, with its message; the application stays and goes on trying.
    """
    refuse_options("run", further)
    root = _root_of(target)
    check_name(name)
    if local or _local_testing_mode:
        return _run_locally(root, name)
    built = build_application(root, name, HandleMaker())
    prefix = built.route_prefix if isinstance(route_prefix, Unset) else route_prefix
    prefix = prefix and check_route_prefix(prefix)
    client = _client_module().find_or_start(host=host, port=port)
    order = _order_for(client, host, port)
    # the code's own too: where it is taken shows before anything is changed
    order["route_prefix"] = prefix
    logging_config = client.logging_config if logging_config is None else logging_config
    if logging_config is not None:
        order["logging_config"] = _plain_logging(logging_config)
    if environment := program_environment():
        order["runtime_env"] = environment
    client.check_names(name, built.deployments)
    client.deploy(root, name, order)
    client.open_line()
    if _blocking:
        client.wait_until_healthy(name)
    if blocking:
        stay(client.admin)
    return RayServeSyncHandle(DeploymentID(built.ingress_name, name))


def start(
    detached: bool = False,
    http_options: Mapping[str, Any] | HTTPOptions | None = None,
    dedicated_cpu: bool = False,  # noqa: ARG001
    *,
    proxy_location: str | None = None,
    logging_config: Mapping[str, Any] | LoggingConfig | None = None,
    grpc_options: Mapping[str, Any] | gRPCOptions | None = None,
    **kwargs: Any,
) -> "Client":
    """Make Serve run; without a daemon one is started, which ends with this process unless `detached`.

    Args:
        detached: Serve stays when this process ends.
        http_options: host, port, ... of the data plane; ignored with a warning where Serve runs with others.
        dedicated_cpu: no effect.
        proxy_location: `location` of the http_options, as later releases spell it.
        logging_config: of the applications that this process runs, unless `run` gets another.
        grpc_options: port and servicer functions of gRPC; no effect where Serve runs already.

    Returns:
        The client of this process.

    Raises:
        ValueError: an option of old releases, or middlewares.
        ServdError: the port cannot be bound. TimeoutError: not ready in 60 s.
    """
    for key in ("http_host", "http_port", "http_middlewares"):
        if key in kwargs:
            raise ValueError(f"{key} is gone: use http_options={{{key.removeprefix('http_')!r}: ...}}")
    refuse_options("start", kwargs)
    options = http_options if isinstance(http_options, HTTPOptions) else HTTPOptions(**(http_options or {}))
    if proxy_location is not None:
        options = HTTPOptions(**{**options.model_dump(exclude_unset=True), "location": str(proxy_location)})
    grpc = gRPCOptions(**grpc_options) if isinstance(grpc_options, Mapping) else grpc_options
    given = {key: getattr(options, key) for key in options.model_fields_set}
    client = _client_module().find_or_start(host=given.get("host"), port=given.get("port"), detached=detached)
    if logging_config is not None:
        client.logging_config = _plain_logging(logging_config)
    if options.root_url:
        client.given_root_url = options.root_url
    if client.status()["running"]:
        _warn_of_other_options(client, given | ({} if grpc is None else {"grpc_port": grpc.port}))
        return client  # type: ignore[no-any-return]
    if given.get("port") == 0:
        given["port"] = concrete_port(given.get("host"), 0)
    wish = {key: given[key] for key in HTTPOptions.sent_as_they_are if given.get(key) is not None}
    if options.location is not None and {"location", "host"} & given.keys():
        wish["proxy_location"] = str(options.location)
    if grpc is not None:
        wish["grpc_options"] = grpc.model_dump(mode="json", exclude_unset=True)
    client.start_instance(wish)
    if not detached:
        atexit.register(_shut_down_quietly, client)
    return client  # type: ignore[no-any-return]


def shutdown() -> None:
    """Delete all applications. A daemon started by `servd start` stays; one that this process started ends.

    Raises:
        TimeoutError: deployments are left after 60 s.
    """
    _local_runs_closed()
    client = _client_module().find()
    if client is None or not client.status()["running"]:
        logger.info("shutdown nothing_runs")
        if client is not None:
            client.close()
        return
    client.shutdown()


async def shutdown_async() -> None:
    """As `shutdown`, and the event loop goes on meanwhile."""
    await asyncio.to_thread(shutdown)


def delete(name: str, _blocking: bool = True) -> None:
    """Delete an application and wait until it is gone; an unknown name changes nothing.

    Raises:
        ServdError: Serve is not running.
        TimeoutError: not gone in 60 s.
    """
    runs = sys.modules.get("servd.local.mode")
    if runs is not None and runs.RUNS.delete(name):
        return
    _running_client().delete_apps([name], blocking=_blocking)


def build(target: Application, name: str | None = None) -> BuiltApplication:
    """The flattened application: its deployments by name and its ingress.

    Raises:
        RuntimeError: in an interactive shell, where the code has no file.
        ValueError: names used twice.
    """
    if hasattr(sys, "ps1"):
        raise RuntimeError("`build` does not work in an interactive shell: put the application into a file")
    return build_application(_root_of(target), check_name(name or ""), HandleMaker())


def status() -> "ServeStatus":
    """Status of all applications; empty when Serve is not running."""
    # only those who ask load what it takes
    from servd.documents import statuses

    client = _client_module().find()
    return statuses.ServeStatus() if client is None else statuses.serve_status(client.status())


def get_app_handle(name: str) -> DeploymentHandle:
    """A handle to the ingress of an application.

    Raises:
        ServdError: there is no such application, or Serve is not running.
    """
    local = sys.modules.get("servd.local.mode")
    if local is not None and (ingress := local.RUNS.ingress_of(name)):
        return DeploymentHandle(DeploymentID(ingress, name))
    client = _running_client()
    app = client.status()["applications"].get(name)
    if app is None or not app["deployments"]:
        raise ServdError(f"there is no application {name!r}" if app is None else f"{name!r} is being built")
    client.open_line()
    # the ingress comes last
    *_, last = app["deployments"].values()
    return DeploymentHandle(DeploymentID(last["name"], name))


def get_deployment_handle(
    deployment_name: str,
    app_name: str | None = None,
    _check_exists: bool = False,
    _record_telemetry: bool = False,
) -> DeploymentHandle:
    """A handle to a deployment by its bare name; it connects at its first call.

    Args:
        app_name: inside a replica the own application by default.
        _check_exists, _record_telemetry: of Ray Serve, no effect.

    Raises:
        ServdError: no application named, outside of a replica.
    """
    if app_name is None:
        if (replica := replica_context()) is None:
            refuse_in_template("`get_deployment_handle` without an app_name")
            raise ServdError("outside of a replica `get_deployment_handle` needs an app_name")
        app_name = replica.app_name
    return DeploymentHandle(DeploymentID(check_name(deployment_name), check_name(app_name)))


def get_deployment(name: str) -> Deployment:
    """Deprecated: the live deployment of that full name, or of the name that `Deployment.deploy` gave it.

    What this program has deployed itself is that again, with its code; of all others only the options can be seen, and
    `num_replicas` changed.

    Raises:
        KeyError: there is none.
    """
    found = list_deployments()
    alone = full_name_of(name, name)
    if name not in found and alone in found:
        return _LEGACY.deployed.get(name, found[alone])
    if name not in found:
        raise KeyError(f"deployment {name!r} does not exist; there are: {', '.join(found) or 'none'}")
    return found[name]


def list_deployments() -> dict[str, Deployment]:
    """Deprecated: all live deployments by full name."""
    found: dict[str, Deployment] = {}
    for app, about in _running_client().status()["applications"].items():
        for full, deployment in about["deployments"].items():
            # the ingress comes last
            prefix = about["route_prefix"] if full == [*about["deployments"]][-1] else None
            identity = DeploymentID(deployment["name"], app)
            found[full] = live_deployment(identity, full, deployment["deployment_config"], prefix)
    return found


def _running_client() -> "Client":
    client: Client | None = _client_module().find()
    if client is None or not client.status()["running"]:
        raise ServdError(NOT_RUNNING)
    return client


_LEGACY = Legacy(run, delete, _running_client)
verbs.hand_in(_LEGACY)


def _order_for(client: "Client", host: str | None, port: int | None) -> dict[str, Any]:
    """What an order says of the data plane."""
    if client.status()["running"]:
        _warn_of_other_options(client, {"host": host, "port": port})
        return {}
    port = None if port is None else concrete_port(host, port)
    return {key: value for key, value in (("host", host), ("port", port)) if value is not None}


def _plain_logging(given: Mapping[str, Any] | LoggingConfig) -> dict[str, Any]:
    checked = given if isinstance(given, LoggingConfig) else LoggingConfig(**given)
    return checked.model_dump(mode="json", exclude_unset=True)


def _root_of(target: Any) -> Application:
    if isinstance(target, BuiltApplication) and target.root is not None:
        return target.root
    if not isinstance(target, Application):
        hint = "; call its `.bind(...)`" if isinstance(target, Deployment) else ""
        raise TypeError(f"expected an Application, got {type(target).__name__}{hint}")
    return target


def _run_locally(root: Application, name: str) -> RayServeSyncHandle:
    # the code of replicas, which other drivers never need
    from servd.local.mode import RUNS

    caller = RUNS.prepare(name)
    built = build_application(root, name, HandleMaker())
    RUNS.run(built, caller)
    return RayServeSyncHandle(DeploymentID(built.ingress_name, name))


def _local_runs_closed() -> None:
    local = sys.modules.get("servd.local.mode")
    if local is not None:
        local.RUNS.close()


def _client_module() -> ModuleType:
    # decorators are used in every replica, the client only where a verb is called
    from servd import client

    return client


def _warn_of_other_options(client: Any, given: Mapping[str, Any]) -> None:
    status = client.status()
    if not status["running"]:
        return
    for key, value in given.items():
        current = status["http"].get(key, value)
        if value is not None and str(value) != str(current):
            said = "%s=%r has no effect: Serve runs already, with %s=%r; shut it down first to change that"
            logger.warning(said, key, value, key, current)


def _shut_down_quietly(client: Any) -> None:
    # what a forked child leaves behind is its parent's
    if not client.is_closed and client.connection.is_of_this_process:
        try:
            client.shutdown()
        except (ServdError, TimeoutError) as error:
            logger.warning("Serve could not be shut down: %s", error)


def __getattr__(name: str) -> Any:
    # Ray Serve's module of this name has these too
    for home in ("servd", "servd.handle", "servd.context", "servd.config", "servd.exceptions"):
        module = importlib.import_module(home)
        if name in module.__all__ or (home == "servd.context" and name == "_get_global_client"):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
