"""Shapes of the figures of replicas and deployments, as in `shapes`."""

# pydantic takes this one on every version of Python
from typing_extensions import TypedDict

from servd.ground.states import ReplicaState
from servd.rest.shapes import Count


class RequestFigures(TypedDict):
    """Requests: ongoing and waiting now, the others of the last minute; null: nobody counts them, or none ended."""

    ongoing: Count
    waiting: Count
    requests: Count | None
    errors: Count | None
    requests_per_s: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class ReplicaFigures(RequestFigures):
    """One replica. memory_bytes: resident, shared parts included; cpu_share: 1 = one core; null: not told yet."""

    state: ReplicaState
    pid: int | None
    age_s: float
    memory_bytes: Count | None
    cpu_share: float | None
    descriptors: Count | None
    threads: Count | None


class Decision(TypedDict):
    """One of the autoscaler; at: wall time, seconds; before, after: replicas."""

    at: float
    before: Count
    after: Count
    reason: str


class DeploymentFigures(RequestFigures):
    """One deployment, name without the application's; replicas by id, memory and CPU their sums."""

    name: str
    wanted_replicas: Count
    running_replicas: Count
    restarts: Count
    memory_bytes: Count
    cpu_share: float
    decision: Decision | None
    replicas: dict[str, ReplicaFigures]


class ApplicationFigures(TypedDict):
    """One application; deployments by full name."""

    deployments: dict[str, DeploymentFigures]


class Figures(TypedDict):
    """Everything as it is now. at: wall time, seconds; window_s: what figures of the last minute are of."""

    at: float
    window_s: float
    applications: dict[str, ApplicationFigures]


class DeploymentHistory(TypedDict):
    """One deployment over time: columns of equal length, oldest first. Each value holds until the next one."""

    application: str
    name: str
    at: list[float]
    requests_per_s: list[float]
    errors_per_s: list[float]
    p50_ms: list[float | None]
    p95_ms: list[float | None]
    p99_ms: list[float | None]
    wanted_replicas: list[Count]
    running_replicas: list[Count]
    ongoing: list[Count]
    waiting: list[Count]
    memory_bytes: list[Count]
    cpu_share: list[float]


class FiguresHistory(TypedDict):
    """The last minutes. at: now, wall time, seconds; a sample is of step_s, and the history goes back span_s."""

    at: float
    step_s: float
    span_s: float
    deployments: dict[str, DeploymentHistory]
