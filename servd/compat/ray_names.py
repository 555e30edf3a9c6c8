"""`import ray` and `from ray import serve` for applications written for Ray Serve, where Ray is not installed.

How this works: a finder for the names `ray` and `ray.*` gives servd's own modules under these names, when they are imported.
"""

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from servd.compat.absent_modules import instead_of, refuse, why_absent
from servd.compat.companions import finder_of, offer_companions
from servd.exceptions import ReplicaDiedError, RequestCancelledError, ServdError, UserCodeError
from servd.ground.absent import NAMES, stand_in

SWITCH = "SERVD_RAY_COMPAT"

_SERVE_MODULES = (
    "api",
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
_OTHER_MODULES = {
    "ray.serve": "servd",
    "ray.dag.input_node": "servd.dag",
    "ray.serve.batching": "servd.batching",
    "ray.serve.multiplex": "servd.multiplex",
    "ray.util.metrics": "servd.compat.util_metrics",
    "ray.dashboard.modules.serve.sdk": "servd.compat.submission",
    # applications take it from there; it is what servd pickles with too
    "ray.cloudpickle": "cloudpickle",
}
_ALIASES = {**_OTHER_MODULES, **{f"ray.serve.{name}": f"servd.{name}" for name in _SERVE_MODULES}}
_ROUTERS = {
    "ray.serve._private.request_router": "PowerOfTwoChoicesRequestRouter",
    "ray.serve.experimental.capacity_queue_router": "CapacityQueueRouter",
    "ray.serve.experimental.consistent_hash_router": "ConsistentHashRouter",
    "ray.serve.experimental.round_robin_router": "RoundRobinRouter",
    "ray.serve.llm.request_router": "PrefixCacheAffinityRouter",
}
"""Modules that have one class here: `request_router_config` takes it for the built-in router that does the same."""
_PACKAGES = (
    "ray",
    "ray.dag",
    "ray.dashboard",
    "ray.dashboard.modules",
    "ray.dashboard.modules.serve",
    "ray.util",
    "ray.serve",
    "ray.serve._private",
    "ray.serve.experimental",
    "ray.serve.generated",
    "ray.serve.llm",
)
_OTHER_ERRORS = (
    "ActorAlreadyExistsError ActorHandleNotFoundError ActorPlacementGroupRemoved ActorUnschedulableError AsyncioActorExit "
    "AuthenticationError CrossLanguageError LocalRayletDiedError NodeDiedError ObjectFetchTimedOutError ObjectFreedError "
    "ObjectLostError ObjectReconstructionFailedError ObjectRefStreamEndOfStreamError ObjectStoreFullError OutOfDiskError "
    "OutOfMemoryError OwnerDiedError PendingCallsLimitExceeded PlasmaObjectNotAvailable RayCgraphCapacityExceeded "
    "RayChannelError RayChannelTimeoutError RayDirectTransportError RaySystemError ReferenceCountingAssertionError RpcError "
    "RuntimeEnvSetupError TaskPlacementGroupRemoved TaskUnschedulableError UnserializableException UserCodeException "
    "WorkerCrashedError"
)
_OF_HOST = ("available_resources", "cluster_resources", "nodes")
_INSTEAD = {
    "remote": "make a deployment and call it through a handle",
    "kill": "use `servd.delete`",
    "get_actor": "use `servd.get_deployment_handle`",
    "method": "make a deployment",
}


def install() -> bool:
    """Make `import ray` work; False when real Ray is there, or the switch `SERVD_RAY_COMPAT=0` forbids it."""
    if os.environ.get(SWITCH, "1") == "0":
        return False
    if any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        return True
    if "ray" in sys.modules or _is_installed():
        return False
    # first: `ray.serve` is a package with servd's path, where others would find its modules a second time
    sys.meta_path.insert(0, AliasFinder())
    # a module named as the decorator: were it found like the others, the import system would put it in the decorator's place
    sys.modules["ray.serve.deployment"] = _Later("ray.serve.deployment", "servd.app.deployment")
    # what is set on the logger of Ray Serve takes effect on servd's
    logging.Logger.manager.loggerDict["ray.serve"] = logging.getLogger("servd")
    return True


def _is_installed() -> bool:
    # any folder of that name would do for a package without a file
    found = importlib.util.find_spec("ray")
    return found is not None and found.origin is not None


class _Later(ModuleType):
    """A module that gives the names of another, which is imported when the first of them is asked for."""

    def __init__(self, name: str, home: str) -> None:
        super().__init__(name)
        self._home = home

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self._home), name)


class AliasFinder(MetaPathFinder):
    """Finds `ray`, `ray.exceptions` and the modules of Ray Serve that servd has."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """The spec of an alias; None for names that are not Ray's."""
        if fullname.partition(".")[0] != "ray":
            return None
        if fullname in _MAKERS:
            return ModuleSpec(fullname, _MadeLoader(_MAKERS[fullname]), is_package=fullname in _PACKAGES)
        if fullname in _ALIASES:
            return ModuleSpec(fullname, _AliasLoader(_ALIASES[fullname]), is_package=fullname in _PACKAGES)
        raise ModuleNotFoundError(why_absent(fullname, sorted(_ALIASES)), name=fullname)


class _AliasLoader(Loader):
    """Gives a module of servd as it is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: Any = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        offer_companions()
        return module

    def exec_module(self, module: ModuleType) -> None:
        # importing under the alias has put the alias's spec there
        module.__spec__ = self._spec


class _MadeLoader(Loader):
    """Fills a new module."""

    def __init__(self, fill: Callable[[ModuleType], None]) -> None:
        self._fill = fill

    def create_module(self, spec: ModuleSpec) -> None:  # noqa: ARG002
        return None

    def exec_module(self, module: ModuleType) -> None:
        self._fill(module)
        package = module.__name__
        below = tuple(
            name.removeprefix(f"{package}.") for name in (*_ALIASES, *_MAKERS) if name.startswith(f"{package}.")
        )
        module.__dict__.setdefault("__getattr__", finder_of(package, below))


def _fill_ray(module: ModuleType) -> None:
    # only applications that import ray pay for it
    response = importlib.import_module("servd.calls.response")
    refs = importlib.import_module("servd.compat.object_refs")
    session = importlib.import_module("servd.compat.ray_session")

    def get_runtime_context() -> Any:
        """Who this process is: a `runtime_context.RuntimeContext`."""
        return importlib.import_module("servd.compat.runtime_context").RuntimeContext()

    def missing(name: str) -> Any:
        if name in _OF_HOST:
            return getattr(importlib.import_module("servd.compat.host"), name)
        if name in _INSTEAD:
            raise ServdError(f"servd has no ray.{name}: {_INSTEAD[name]}")
        if instead := instead_of(f"ray.{name}"):
            refuse(f"servd has no ray.{name}: {instead}")
        try:
            return importlib.import_module(f"ray.{name}")
        except ModuleNotFoundError:
            raise AttributeError(f"servd's stand-in for ray has no {name!r}") from None

    module.__dict__.update(
        __version__=session.RAY_VERSION,
        __doc__="servd's stand-in for Ray.",
        __getattr__=missing,
        cancel=refs.cancel,
        get=refs.get,
        get_gpu_ids=session.get_gpu_ids,
        get_runtime_context=get_runtime_context,
        init=session.init,
        is_initialized=session.is_initialized,
        put=refs.put,
        shutdown=session.shutdown,
        wait=refs.wait,
        ObjectRef=response.DeploymentResponse,
    )


def _fill_exceptions(module: ModuleType) -> None:
    module.__dict__.update({name: _never_raised(name) for name in _OTHER_ERRORS.split()})
    module.__dict__.update(
        RayError=ServdError,
        RayTaskError=UserCodeError,
        RayActorError=ReplicaDiedError,
        ActorDiedError=ReplicaDiedError,
        ActorUnavailableError=ReplicaDiedError,
        GetTimeoutError=TimeoutError,
        TaskCancelledError=RequestCancelledError,
    )


def _never_raised(name: str) -> type[ServdError]:
    """An error of tasks, actors and objects: code that catches it finds it."""
    return type(name, (ServdError,), {"__module__": "ray.exceptions", "__doc__": "Raised by nothing here."})


def _fill_runtime_env(module: ModuleType) -> None:
    module.__dict__.update(RuntimeEnv=dict, RuntimeEnvConfig=dict)


def _fill_util(module: ModuleType) -> None:
    session = importlib.import_module("servd.compat.ray_session")
    module.__dict__.update(get_node_ip_address=session.get_node_ip_address, __getattr__=_finder_of_util())


def _finder_of_util() -> Callable[[str], Any]:
    find = finder_of("ray.util", ("metrics",))

    def found(name: str) -> Any:
        if instead := instead_of(f"ray.util.{name}"):
            refuse(f"servd has no ray.util.{name}: {instead}")
        return find(name)

    return found


def _fill_dag(module: ModuleType) -> None:
    module.__dict__.update(InputNode=importlib.import_module("servd.dag").InputNode)


def _fill_nothing(_module: ModuleType) -> None:
    """A package that only holds others."""


def _fill_constants(module: ModuleType) -> None:
    # private in Ray too, but applications take names from there, of their logger and of what `run` calls an application
    settings = importlib.import_module("servd.ground.settings")
    module.__dict__.update(
        DEFAULT_GRPC_PORT=settings.DEFAULT_GRPC_PORT,
        DEFAULT_HTTP_HOST=settings.DEFAULT_HTTP_HOST,
        DEFAULT_HTTP_PORT=settings.DEFAULT_HTTP_PORT,
        SERVE_CONTROLLER_NAME="SERVE_CONTROLLER_ACTOR",
        SERVE_DEFAULT_APP_NAME="default",
        SERVE_LOGGER_NAME="ray.serve",
        SERVE_MULTIPLEXED_MODEL_ID="serve_multiplexed_model_id",
        SERVE_NAMESPACE="serve",
    )


def _fill_messages(module: ModuleType) -> None:
    importlib.import_module("servd.compat.ray_generated").fill_messages(module)


def _fill_stubs(module: ModuleType) -> None:
    importlib.import_module("servd.compat.ray_generated").fill_stubs(module)


def _fill_absent(module: ModuleType) -> None:
    module.__dict__.update({name: stand_in(module.__name__, name) for name in NAMES[module.__name__].split()})


def _fill_routers(module: ModuleType) -> None:
    _fill_absent(module)
    module.__dict__.update(ReplicaID=importlib.import_module("servd.ground.ids").ReplicaID)


def _fill_ids(module: ModuleType) -> None:
    # private in Ray too, but policies of applications name the types of their arguments from there, and programs what statuses
    # are compared with
    ids = importlib.import_module("servd.ground.ids")
    states = importlib.import_module("servd.ground.states")
    module.__dict__.update(
        ApplicationStatus=states.ApplicationStanding,
        DeploymentID=ids.DeploymentID,
        DeploymentStatus=states.DeploymentStanding,
        DeploymentStatusTrigger=states.StatusTrigger,
        ReplicaID=ids.ReplicaID,
        ReplicaState=states.ReplicaState,
    )


def _fill_router(module: ModuleType) -> None:
    name = _ROUTERS[module.__name__]
    module.__dict__[name] = type(name, (), {"__module__": module.__name__, "__doc__": "Stands for a built-in router."})


def _fill_llm(module: ModuleType) -> None:
    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name != "request_router":
            refuse(why_absent(module.__name__, ()))
        return importlib.import_module(f"{module.__name__}.{name}")

    module.__dict__["__getattr__"] = missing


def _fill_policies(module: ModuleType) -> None:
    _fill_absent(module)
    module.__dict__.update(AutoscalingContext=importlib.import_module("servd.config").AutoscalingContext)


_MAKERS: dict[str, Callable[[ModuleType], None]] = {
    **{name: _fill_absent for name in NAMES if name.startswith("ray.")},
    **dict.fromkeys(_ROUTERS, _fill_router),
    "ray.serve.autoscaling_policy": _fill_policies,
    "ray.serve.request_router": _fill_routers,
    "ray": _fill_ray,
    "ray.dag": _fill_dag,
    "ray.exceptions": _fill_exceptions,
    "ray.runtime_env": _fill_runtime_env,
    "ray.util": _fill_util,
    "ray.dashboard": _fill_nothing,
    "ray.dashboard.modules": _fill_nothing,
    "ray.dashboard.modules.serve": _fill_nothing,
    "ray.serve._private": _fill_nothing,
    "ray.serve.experimental": _fill_nothing,
    "ray.serve.llm": _fill_llm,
    "ray.serve._private.common": _fill_ids,
    "ray.serve._private.constants": _fill_constants,
    "ray.serve.generated": _fill_nothing,
    "ray.serve.generated.serve_pb2": _fill_messages,
    "ray.serve.generated.serve_pb2_grpc": _fill_stubs,
}
