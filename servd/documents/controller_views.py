"""What the controller itself does, for those who ask: its health, its decisions on counts, an upgrade."""

from dataclasses import field

from servd.ground.quick_dataclass import dataclass
from servd.ground.states import UpgradeStage


@dataclass(frozen=True, slots=True)
class ScalingView:
    """One decision of the autoscaler. at: wall time, seconds; before, after: replicas."""

    at: float
    before: int
    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, standard deviation, least and most of some durations, seconds; all 0 where there are none."""

    mean: float = 0.0
    std: float = 0.0
    min: float = 0.0
    max: float = 0.0


@dataclass(frozen=True, slots=True)
class ControllerHealth:
    """How the controller does. at, started_at, last_turn_at: wall time, seconds. turns: so many since it started.

    turn: of the last 100. tasks: of its event loop. memory_bytes: that it has in use, shared parts included.
    """

    at: float = 0.0
    started_at: float = 0.0
    last_turn_at: float = 0.0
    turns: int = 0
    turn: Spread = field(default_factory=Spread)
    tasks: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class UpgradeView:
    """How the latest upgrade goes. edition, before: what the daemon became, or should have, and what it was, for people.

    message: why it failed, or what holds it up. proxies, fork_servers, replicas: how many of an edition before are left.
    """

    edition: str
    before: str
    stage: UpgradeStage
    message: str
    proxies: int
    fork_servers: int
    replicas: int


@dataclass(frozen=True, slots=True)
class UpgradeOffer:
    """What an upgrade would do: editions, for people."""

    edition: str
    before: str
    is_needed: bool
