"""Every error that servd raises: whose fault it is, its HTTP status, whether another try can help."""

from typing import Any

from servd.ground.absent import stand_in

__all__ = [
    "BackPressureError",
    "ConfigError",
    "DeployError",
    "DeploymentUnavailableError",
    "RayServeException",
    "ReplicaDiedError",
    "RequestCancelledError",
    "ServdError",
    "UnknownDeploymentError",
    "UserCodeError",
    "gRPCStatusError",
]


class ServdError(Exception):
    """Base of all errors of servd. Public name in the API: `RayServeException`."""

    status_code = 500
    retryable = False


RayServeException = ServdError


class ConfigError(ServdError):
    """A document or request is wrong. The text lists every fault with its place."""

    status_code = 400


class UnknownNameError(ConfigError):
    """The request names something that does not exist: a revision, an application, a replica."""

    status_code = 404


class NoAnswerError(ServdError):
    """A process of this daemon was asked and did not answer in time."""

    status_code = 504
    retryable = True


class RevisionConflictError(ConfigError):
    """`If-Match` names another revision than the current one."""

    status_code = 412

    def __init__(self, wanted: str, current: int) -> None:
        super().__init__(wanted, current)
        self.wanted, self.current = wanted, current

    def __str__(self) -> str:
        return f'the goal is at revision "{self.current}", If-Match asks for {self.wanted}: nothing was changed'


class GoalNotSavedError(ServdError):
    """The goal could not be written to disk; the accepted goal goes on."""

    status_code = 507


class HostLimitError(ServdError):
    """The host gives no more descriptors, processes or memory; the text says which limit it is, and what to do."""

    status_code = 507
    retryable = True


class StateError(ServdError):
    """The state directory or a store in it cannot be used: damaged, emptied, owned by somebody else."""


class UpgradeError(ServdError):
    """The daemon cannot become another edition of servd; the one that runs goes on."""

    status_code = 409


class ListenError(ServdError):
    """A listening socket could not be bound."""

    def __init__(self, host: str, port: int, reason: str, option: str = "") -> None:
        super().__init__(host, port, reason, option)
        self.host, self.port, self.reason, self.option = host, port, reason, option

    def __str__(self) -> str:
        hint = f"; choose another with {self.option}" if self.option else ""
        return f"cannot listen on {self.host}:{self.port}: {self.reason}{hint}"


class AlreadyRunningError(ServdError):
    """A daemon runs on this state directory."""

    def __init__(self, state_dir: str, pid: int) -> None:
        super().__init__(state_dir, pid)
        self.state_dir, self.pid = state_dir, pid

    def __str__(self) -> str:
        stop = f"servd stop --state-dir {self.state_dir}"
        return f"a daemon already runs on {self.state_dir}: pid {self.pid} (stop it with `{stop}`)"


class DeployError(ServdError):
    """Environment, import, build or start of an application failed."""


class RequestError(ServdError):
    """A request could not be served."""


class NoRouteError(RequestError):
    """No application serves the path."""

    status_code = 404


class UnknownDeploymentError(NoRouteError, KeyError):
    """A handle's deployment does not exist."""

    def __str__(self) -> str:
        # a KeyError shows its text quoted
        return str(self.args[0])


class BackPressureError(RequestError):
    """The deployment's waiting line is full."""

    status_code = 503
    retryable = True
    retry_after_s: float | None = None
    """When another try may help, seconds; None: it is not known."""

    def __init__(
        self, deployment: str, queued: int, limit: int, status_code: int = 503, retry_after_s: float | None = None
    ) -> None:
        # what nobody configured is left out: an edition before this one reads no more
        is_usual = (status_code, retry_after_s) == (503, None)
        super().__init__(deployment, queued, limit, *(() if is_usual else (status_code, retry_after_s)))
        self.deployment, self.queued, self.limit = deployment, queued, limit
        self.status_code, self.retry_after_s = status_code, retry_after_s

    def __str__(self) -> str:
        return f"{self.deployment}: {self.queued} requests waiting, {self.limit} allowed"

    @property
    def message(self) -> str:
        """The error's text."""
        return str(self)


class DeploymentUnavailableError(RequestError):
    """The deployment is UNHEALTHY and has no running replica."""

    status_code = 503
    retryable = True

    def __init__(self, deployment: str, message: str) -> None:
        super().__init__(deployment, message)
        self.deployment, self.message = deployment, message

    def __str__(self) -> str:
        return f"{self.deployment} is unavailable: {self.message}"


class ReplicaDiedError(RequestError):
    """The replica died, or left, with a request that it had accepted."""

    status_code = 502
    retryable = True

    def __init__(self, replica_id: str, reason: str = "") -> None:
        super().__init__(replica_id, reason)
        self.replica_id, self.reason = replica_id, reason

    def __str__(self) -> str:
        return f"replica {self.replica_id} died during the request{': ' + self.reason if self.reason else ''}"


class RequestCancelledError(RequestError):
    """The call was cancelled by its caller."""

    status_code = 499


class UserCodeError(ServdError):
    """User code raised something that cannot be rebuilt here; carries the remote traceback as text."""

    def __init__(self, summary: str, remote_traceback: str = "") -> None:
        super().__init__(summary, remote_traceback)
        self.summary, self.remote_traceback = summary, remote_traceback

    def __str__(self) -> str:
        return f"{self.summary}\n{self.remote_traceback}" if self.remote_traceback else self.summary


class gRPCStatusError(ServdError):
    """Raised by a method that serves gRPC: the call ends with this status.

    original_exception: what went wrong. grpc_code: a `grpc.StatusCode` or its number, None = INTERNAL. grpc_details: text for the
    client, None = that of the original.
    """

    def __init__(self, original_exception: BaseException, code: Any = None, details: str | None = None) -> None:
        super().__init__(original_exception, code, details)
        self.original_exception, self.grpc_code, self.grpc_details = original_exception, code, details

    def __str__(self) -> str:
        return self.grpc_details or str(self.original_exception)


class RemoteFailure(ServdError):
    """The called user code raised; `parts` hold the exception (`pickling.load_exception`). Data path only."""

    def __init__(self, parts: list[Any]) -> None:
        super().__init__(parts)
        self.parts = parts

    def __str__(self) -> str:
        return "the called code raised"


class ProtocolError(ServdError):
    """A peer sent something that is no valid record: drop the peer."""


class TransportError(ServdError):
    """A socket failed."""


class InvariantError(AssertionError):
    """A bug of servd: fail this process loudly, its supervisor restarts it."""


ReplicaUnavailableError = ReplicaDiedError
"""Its name in today's Ray Serve."""


def __getattr__(name: str) -> Any:
    value = globals()[name] = stand_in(__name__, name)
    return value
