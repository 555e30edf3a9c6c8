"""Figures of deployments and their replicas, as they are shown: now, and over the last minutes."""

from collections.abc import Sequence
from typing import Protocol

from servd.documents.controller_views import ScalingView
from servd.ground.quick_dataclass import dataclass
from servd.ground.states import ReplicaState

HISTORY_S = 900.0
"""So far back goes the history."""

Quantiles = tuple[float | None, float | None, float | None]
"""Latencies under which 50, 95 and 99 of 100 requests lie, milliseconds; None where none ended."""


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """Requests: ongoing and waiting now, the others of those that ended within the last minute.

    errors: ended with an exception. None: nobody counts them, or nobody has told yet.
    """

    ongoing: int = 0
    waiting: int = 0
    requests: int | None = None
    errors: int | None = None
    requests_per_s: float | None = None
    quantiles_ms: Quantiles = (None, None, None)


@dataclass(frozen=True, slots=True)
class ReplicaFigures:
    """One replica. cpu_share: lately, 1 = one core. memory_bytes: resident, shared parts included. None: not told yet."""

    state: ReplicaState
    pid: int | None
    age_s: float
    calls: RequestFigures
    memory_bytes: int | None = None
    cpu_share: float | None = None
    descriptors: int | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class DeploymentFigures:
    """One deployment; memory and CPU are the sums of its replicas, which are by id.

    name: bare. wanted, running: replicas that it shall have, and that take requests. restarts: replicas that failed while they
    served, so far. decision: the autoscaler's last one.
    """

    app: str
    name: str
    wanted: int
    running: int
    restarts: int
    calls: RequestFigures
    memory_bytes: int
    cpu_share: float
    decision: ScalingView | None
    replicas: dict[str, ReplicaFigures]


@dataclass(frozen=True, slots=True)
class Sample:
    """A deployment at one moment of its history, and the requests of some seconds before it. at: wall time, seconds."""

    at: float
    requests_per_s: float = 0.0
    errors_per_s: float = 0.0
    quantiles_ms: Quantiles = (None, None, None)
    wanted: int = 0
    running: int = 0
    ongoing: int = 0
    waiting: int = 0
    memory_bytes: int = 0
    cpu_share: float = 0.0


@dataclass(frozen=True, slots=True)
class DeploymentHistory:
    """One deployment over time, oldest first. Each sample holds until the next one."""

    app: str
    name: str
    samples: Sequence[Sample]


class Figures(Protocol):
    """What the admin server asks. Names are whole; the deployment's is the bare one."""

    def at(self) -> float:
        """Now: wall time, seconds, as samples have it."""
        ...

    def deployments(self, app: str | None = None, name: str | None = None) -> dict[str, DeploymentFigures]:
        """Full name -> its figures now, of all deployments or of those of that application or that name."""
        ...

    def history(
        self, app: str | None = None, name: str | None = None, since: float = 0.0
    ) -> dict[str, DeploymentHistory]:
        """Full name -> its samples later than `since` (wall time, seconds)."""
        ...
