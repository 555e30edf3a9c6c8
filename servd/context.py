"""What running code can ask about itself: its request, its replica, its process's way to deployments.

Standard library only: every replica and every driver loads this.
"""

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from servd.exceptions import ServdError
from servd.ground.ids import DeploymentID, ReplicaID
from servd.ground.quick_dataclass import dataclass

if TYPE_CHECKING:
    from servd.client import Client

__all__ = ["ReplicaContext", "get_global_client", "get_multiplexed_model_id", "get_replica_context"]

MAX_DEPTH = 64
"""Handle calls nested deeper than this are refused (python-api.md section 8.3)."""


class RequestContext:
    """The request that the current task serves; travels with every handle call made on its behalf.

    deadline: monotonic seconds of this process, None = no limit. depth: handle calls between the entry
    and here. ancestors: replica ids that hold a slot for this request, outermost first.
    """

    __slots__ = ("ancestors", "app_name", "deadline", "depth", "multiplexed_model_id", "request_id", "route")

    def __init__(
        self,
        request_id: str = "",
        route: str = "",
        app_name: str = "",
        multiplexed_model_id: str = "",
        deadline: float | None = None,
        depth: int = 0,
        ancestors: tuple[str, ...] = (),
    ) -> None:
        self.request_id = request_id
        self.route = route
        self.app_name = app_name
        self.multiplexed_model_id = multiplexed_model_id
        self.deadline = deadline
        self.depth = depth
        self.ancestors = ancestors

    def __repr__(self) -> str:
        return (
            f"RequestContext(request_id={self.request_id!r}, route={self.route!r}, "
            f"app_name={self.app_name!r}, multiplexed_model_id={self.multiplexed_model_id!r}, "
            f"deadline={self.deadline}, depth={self.depth}, ancestors={self.ancestors})"
        )


NO_REQUEST = RequestContext()
"""Stands for "no request": never changed."""

current_request: ContextVar[RequestContext] = ContextVar("servd_request", default=NO_REQUEST)
"""Set by the replica for each request; `NO_REQUEST` elsewhere."""


def get_multiplexed_model_id() -> str:
    """Model id of the current request, "" when there is none."""
    return current_request.get().multiplexed_model_id


@dataclass(slots=True)
class ReplicaContext:
    """Who this replica is.

    deployment: full name. servable_object: the user's instance or function, None while constructing.
    """

    deployment: str
    replica_tag: str
    servable_object: Any = None
    app_name: str = ""
    _internal_controller_name: str = "SERVE_CONTROLLER"

    @property
    def replica_id(self) -> ReplicaID:
        """The tag's parts, as later releases have them: `unique_id`, `deployment_id`."""
        full_name, _, suffix = self.replica_tag.partition("#")
        name = full_name.removeprefix(f"{self.app_name}_") if self.app_name else full_name
        return ReplicaID(DeploymentID(self.app_name, name), suffix)


_replica: ReplicaContext | None = None
local_replica: ContextVar[ReplicaContext | None] = ContextVar("servd_local_replica", default=None)
"""The replica of the current task, where one process plays several (local mode)."""


def set_replica_context(context: ReplicaContext | None) -> None:
    """Make this process a replica (once, at its start); None takes it back (tests, local mode)."""
    global _replica
    _replica = context


def replica_context() -> ReplicaContext | None:
    """The replica this code runs in, None outside of replicas."""
    return _replica or local_replica.get()


def get_replica_context() -> ReplicaContext:
    """The replica this code runs in.

    Raises:
        ServdError: not inside a replica.
    """
    found = replica_context()
    if found is None:
        raise ServdError("`get_replica_context()` works only inside a replica: call it in the code of a deployment")
    return found


class Ticket(Protocol):
    """One call on its way: awaitable for the parts of the answer, or async iterable of parts for a stream."""

    def __await__(self) -> Any: ...

    def __aiter__(self) -> AsyncIterator[Any]: ...

    def cancel(self) -> Any:
        """Take the call back, best effort."""
        ...

    def when_sent(self, told: Callable[[], None]) -> None:
        """Call `told` once a replica is chosen; at once if one is."""
        ...


class Calls(Protocol):
    """What handles need of the process's `caller.Caller`; all of it on the loop's thread."""

    def submit_call(
        self,
        deployment: str,
        method: str,
        parts: list[Any],
        context: RequestContext,
        *,
        stream: bool = False,
        model_id: str = "",
        deadline: float | None = None,
    ) -> Ticket:
        """Send a call to a replica of the deployment."""
        ...


@dataclass(frozen=True, slots=True)
class Process:
    """How handles of this process reach deployments. loop: where `caller` lives; thread_id: of that loop."""

    caller: Calls
    loop: asyncio.AbstractEventLoop
    thread_id: int
    socket_dir: str = ""


_process: Process | None = None
_local: dict[str, Process] = {}


def install_process(
    caller: Calls, loop: asyncio.AbstractEventLoop, *, socket_dir: str = "", thread_id: int | None = None
) -> Process:
    """Give this process its caller; replaces an earlier one.

    thread_id: of the thread that runs `loop`, by default the current one.
    """
    global _process
    _process = Process(caller, loop, threading.get_ident() if thread_id is None else thread_id, socket_dir)
    return _process


def remove_process() -> None:
    """Forget the process's caller: the next handle call asks for a new one."""
    global _process
    _process = None


def set_local_process(app: str, runner: Process | None) -> None:
    """Let handles to an application stay in this process (local mode); None takes it back."""
    if runner is None:
        _local.pop(app, None)
    else:
        _local[app] = runner


def local_process(app: str) -> Process | None:
    """What runs an application in this process, None for all others."""
    return _local.get(app)


def installed_process() -> Process | None:
    """The process's caller, if it has one."""
    return _process


def process() -> Process:
    """The process's caller; a process without one becomes a driver: it connects to the running daemon.

    Raises:
        ServdError: Serve is not running.
    """
    if _process is None:
        # replicas never need the driver's client, so it is loaded only where nobody installed a caller
        importlib.import_module("servd.client").connect()
    if _process is None:
        raise ServdError("this process has no connection to servd")
    return _process


def get_global_client() -> "Client":
    """The client of this process, connected on the first call.

    Raises:
        ServdError: Serve is not running.
    """
    # as above: only those who ask for a client load it
    client: Client = importlib.import_module("servd.client").connect()
    return client
