"""What a plan asks for, imperative. Ids are minted by the plan; the executor records the intent, then does it."""

from servd.controller.plan.facts import ForkServerFact, ProxyFact, ReplicaFact
from servd.ground.quick_dataclass import dataclass
from servd.wire.build_messages import BuildOrder
from servd.wire.messages import ProxyGoal, ReplicaGoal, ReplicaStart, Routing
from servd.wire.policy_messages import PolicyAsk


@dataclass(frozen=True, slots=True)
class StartForkServer:
    """Start a process that builds `order`. Results: Started or StartFailed, then BuildFinished."""

    fact: ForkServerFact
    reason: str

    @property
    def order(self) -> BuildOrder:
        """What it builds."""
        return self.fact.order


@dataclass(frozen=True, slots=True)
class StopForkServer:
    """End it (also in the middle of a build: kill). Result: Exited."""

    fork_server_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StartReplica:
    """Fork it from that fork server, or spawn it with the fork server's BuildOrder.

    Result: Started or StartFailed.
    """

    fact: ReplicaFact
    spawn: bool
    reason: str

    @property
    def fork_server_id(self) -> str:
        """Where to fork it."""
        return self.fact.fork_server_id

    @property
    def start(self) -> ReplicaStart:
        """What the process gets."""
        return self.fact.start


@dataclass(frozen=True, slots=True)
class SetReplicaGoal:
    """Tell the replica its new goal (also again when its line comes back)."""

    goal: ReplicaGoal
    reason: str


@dataclass(frozen=True, slots=True)
class DrainReplica:
    """After every caller has acknowledged a routing without it, or `wait_s` passed: send `goal` (drain=True)."""

    goal: ReplicaGoal
    wait_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class KillReplica:
    """SIGKILL now. Result: Exited."""

    replica_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StartProxy:
    """Start a proxy on that slot's listening socket of host:port. Result: Started or StartFailed."""

    fact: ProxyFact
    reason: str


@dataclass(frozen=True, slots=True)
class SetProxyGoal:
    """Tell the proxy its new goal (drain)."""

    goal: ProxyGoal
    reason: str


@dataclass(frozen=True, slots=True)
class KillProxy:
    """SIGKILL now. Result: Exited."""

    proxy_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Publish:
    """New routing for proxies and callers. `routing.targets` holds every deployment; the executor gives it the next generation
    and sends each receiver its part."""

    routing: Routing


@dataclass(frozen=True, slots=True)
class AskPolicy:
    """Ask an autoscaling policy of user code about these deployments (application, bare name). Result: a PolicyAnswer."""

    fork_server_id: str
    ask: PolicyAsk
    deployments: tuple[tuple[str, str], ...]
    reason: str = "autoscaling"


@dataclass(frozen=True, slots=True)
class ReleaseListeners:
    """No proxy uses host:port any more and none is wanted there: the daemon closes its sockets."""

    host: str
    port: int
    reason: str


Action = (
    StartForkServer
    | StopForkServer
    | StartReplica
    | SetReplicaGoal
    | DrainReplica
    | KillReplica
    | StartProxy
    | SetProxyGoal
    | KillProxy
    | Publish
    | AskPolicy
    | ReleaseListeners
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in order, and when to look again at the latest (monotonic seconds; inf = only on news)."""

    actions: tuple[Action, ...]
    wake_at: float

    def summary(self) -> str:
        """`StartReplica=2 (goal 3, running 1) ...` for the log."""
        counts: dict[tuple[str, str], int] = {}
        for action in self.actions:
            key = (type(action).__name__, getattr(action, "reason", ""))
            counts[key] = counts.get(key, 0) + 1
        return " ".join(f"{verb}={n}{f' ({why})' if why else ''}" for (verb, why), n in counts.items())
