"""What running code can ask about itself: its replica, its request, its process's connection to Serve."""

from typing import TYPE_CHECKING, Any

from servd.calls.replica_context import ReplicaContext, get_replica_context
from servd.calls.replica_context import replica_context as _replica_context
from servd.calls.request_context import RequestContext as _RequestContext
from servd.calls.request_context import current_request as _serve_request_context
from servd.calls.request_context import get_multiplexed_model_id
from servd.exceptions import ServdError
from servd.ground.absent import stand_in
from servd.ground.ids import ReplicaRank
from servd.grpc_util import RayServegRPCContext
from servd.observability.spans import current_context

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from servd.client import Client

__all__ = [
    "RayServegRPCContext",
    "ReplicaContext",
    "ReplicaRank",
    "get_global_client",
    "get_multiplexed_model_id",
    "get_replica_context",
    "get_trace_context",
]


def get_global_client() -> "Client":
    """The client of this process, connected on the first call.

    Raises:
        ServdError: Serve is not running.
    """
    # replicas never need the driver's client, so it is loaded only where somebody asks for it
    from servd.client import connect

    return connect()


def get_trace_context() -> "Context | None":
    """OpenTelemetry's current context: the request's place in its trace, or that of the span around it.

    For `context=` of a span that begins elsewhere: in the task or thread of a request spans are put there by themselves.

    Returns:
        None where the request is part of no trace, or OpenTelemetry is not installed.
    """
    found: Context | None = current_context()
    return found


def _get_global_client(raise_if_no_controller_running: bool = True) -> "Client | None":
    """As `get_global_client`, under the name that today's Ray Serve has for it: None where Serve is not running, if one likes."""
    try:
        return get_global_client()
    except ServdError:
        if raise_if_no_controller_running:
            raise
        return None


def _get_serve_request_context() -> _RequestContext:
    """The request that is served, as Ray Serve's function of this name gives it: there is no public one for its id.

    Its `request_id`, `route`, `app_name` and `multiplexed_model_id` are "" where there is none. Not to be changed.
    """
    return _serve_request_context.get()


def _get_internal_replica_context() -> ReplicaContext | None:
    """The replica that this code runs in, as Ray Serve's function of this name gives it: None outside of replicas."""
    return _replica_context()


def __getattr__(name: str) -> Any:
    if name == "_global_client":
        # as it is now: programs ask whether Serve runs
        return _get_global_client(raise_if_no_controller_running=False)
    value = globals()[name] = stand_in(__name__, name)
    return value
