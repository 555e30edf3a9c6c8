"""News from the world, past tense. `Observed.apply(event, now)` turns them into facts."""

from servd.ground.quick_dataclass import dataclass
from servd.wire.messages import BuildResult, ProxyReport, ReplicaReport


@dataclass(frozen=True, slots=True)
class ForkServerStarted:
    """The process exists."""

    fork_server_id: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class ForkServerFailed:
    """It could not be started (no process), or its environment could not be made."""

    fork_server_id: str
    error: str


@dataclass(frozen=True, slots=True)
class ForkServerStartLost:
    """A controller ordered it and died, and whether it was started is unknown; nobody's fault."""

    fork_server_id: str


@dataclass(frozen=True, slots=True)
class BuildFinished:
    """The fork server reported its build; comes again after each reconnect."""

    fork_server_id: str
    result: BuildResult


@dataclass(frozen=True, slots=True)
class ForkServerExited:
    """The process is gone. exit_code None = unknown."""

    fork_server_id: str
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class ReplicaForked:
    """The process exists. fork_unsafe: why it was spawned instead of forked, "" if it was forked."""

    replica_id: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class ReplicaStartFailed:
    """No process could be made."""

    replica_id: str
    error: str


@dataclass(frozen=True, slots=True)
class ReplicaStartLost:
    """The order came to nothing, and nobody is to blame.

    Its fork server was gone before it got it; or a controller gave it that died, and whether it was carried out is unknown.
    """

    replica_id: str


@dataclass(frozen=True, slots=True)
class ReplicaReported:
    """The replica's latest report."""

    report: ReplicaReport


@dataclass(frozen=True, slots=True)
class ReplicaExited:
    """The process is gone. exit_code None = unknown; negative = killed by that signal. log_lines: its last ones."""

    replica_id: str
    exit_code: int | None
    log_lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProxyStarted:
    """The process exists."""

    proxy_id: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class ProxyStartFailed:
    """No process could be made."""

    proxy_id: str
    error: str


@dataclass(frozen=True, slots=True)
class ProxyReported:
    """The proxy's latest report."""

    report: ProxyReport


@dataclass(frozen=True, slots=True)
class ProxyExited:
    """The process is gone."""

    proxy_id: str
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class QueueReported:
    """Requests waiting at one caller for one deployment (full name)."""

    caller_id: str
    deployment: str
    queued: int


Event = (
    ForkServerStarted
    | ForkServerFailed
    | ForkServerStartLost
    | BuildFinished
    | ForkServerExited
    | ReplicaForked
    | ReplicaStartFailed
    | ReplicaStartLost
    | ReplicaReported
    | ReplicaExited
    | ProxyStarted
    | ProxyStartFailed
    | ProxyReported
    | ProxyExited
    | QueueReported
)
