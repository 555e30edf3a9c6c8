"""Everything that crosses a process boundary on the control lines, one dataclass each.

Fields hold msgpack values, tuples of them, or other messages. All news are level-based: a report or a goal holds the
whole truth of its sender at that moment, so a lost, repeated or late one does no harm.
"""

from dataclasses import field
from typing import Any

from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import DEFAULT_FORWARDED_ALLOW_IPS
from servd.wire.build_messages import BuildResult
from servd.wire.grpc.messages import GrpcRoute

FORK_SERVER, REPLICA, PROXY, CALLER = "fork_server", "replica", "proxy", "caller"
"""Kinds of processes that the controller hears of; a caller only holds handles."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks. role: REPLICA, PROXY or CALLER.

    token is the one from the intent (empty for a caller); start_ticks is field 22 of /proc/<pid>/stat. edition: which servd
    it is, as `ground.edition` writes it. This message never changes its form, or nobody could be told what differs.
    """

    role: str
    id: str
    pid: int
    start_ticks: int
    token: str = ""
    edition: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """Controller -> any process: the answer to a `Hello` of another protocol, and the last word. Its form never changes."""

    reason: str


@dataclass(frozen=True, slots=True)
class ReplicaGoal:
    """Controller -> replica: how the replica shall be, whole. Sent after Hello and at each change.

    config_version names (user_config, graceful_shutdown_wait_loop_s): another one than the applied one asks for a
    `reconfigure`. user_config is JSON text, "" for none. drain: finish what runs, then exit. memory_limit_bytes: 0 = none.
    logging_config: only the keys that were given. report_period_s: how often to say a count that changed. rank: among the
    replicas of its version, 0 to world_size - 1; world_size: how many of them are wanted.
    """

    replica_id: str
    config_version: str
    user_config: str
    max_concurrent_queries: int
    health_check_period_s: float
    health_check_timeout_s: float
    graceful_shutdown_timeout_s: float
    cancel_on_disconnect: bool = True
    drain: bool = False
    memory_limit_bytes: int = 0
    logging_config: dict[str, Any] = field(default_factory=dict)
    report_period_s: float = 0.25
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """Replica -> controller: how the replica is. Sent after Hello, at each change, and every
    `report_period_s` of the goal when a count changed.

    phase: a `states.ReplicaPhase`. applied: config_version in effect ("" before the first). error: shortened traceback when
    the start or the last reconfigure failed. health_failures: consecutive failed checks, 0 = well. memory_bytes: resident, 0
    = not measured. lost_wait: why a thread of this forked process can never go on, "" if all may. docs_path: of the application
    that the instance made for itself, "" if it has none.
    """

    replica_id: str
    phase: str
    applied: str = ""
    error: str = ""
    ongoing: int = 0
    health_failures: int = 0
    health_message: str = ""
    model_ids: tuple[str, ...] = ()
    stack: str = ""
    memory_bytes: int = 0
    lost_wait: str = ""
    docs_path: str = ""


@dataclass(frozen=True, slots=True)
class StackWish:
    """Controller -> replica: say where your threads and tasks are."""

    request_id: int


@dataclass(frozen=True, slots=True)
class StackReport:
    """Replica -> controller: the answer to a `StackWish`; text for people."""

    request_id: int
    text: str


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Controller -> proxy: how to log. config: a `logging_config` with the keys that were given, {} for none."""

    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MetricsWish:
    """Controller -> any process with a control line: send your metrics."""

    request_id: int


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """All samples of one metric. kind: "counter", "gauge" or "histogram".

    samples: (((label, value), ...), number); of a histogram the number is (sum, (how many under each bound and above the one
    before, then the rest)). bounds: of a histogram's buckets.
    """

    name: str
    kind: str
    text: str
    samples: tuple[tuple[tuple[tuple[str, str], ...], Any], ...]
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricsReport:
    """The answer to a `MetricsWish`; with request_id 0 the last words of a process that ends."""

    request_id: int
    families: tuple[MetricFamily, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A routable replica. address: ZeroMQ address of its ROUTER, never used again by another replica."""

    replica_id: str
    address: str
    model_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeploymentTargets:
    """Where requests to one deployment go.

    deployment: full name. exists: False for a subscribed name that nothing serves. unavailable: why requests are refused at once;
    "" = they wait when there is no replica. request_timeout_s: None = no limit. may_grow: further replicas are on their way, or
    will be when requests wait. backpressure: status and seconds of `Retry-After` (None = not said) of requests that find the
    line full. router: `name` and options of the rule that chooses, {} = the less busy of two.
    """

    deployment: str
    app: str = ""
    exists: bool = True
    endpoints: tuple[Endpoint, ...] = ()
    max_queued_requests: int = 10_000
    request_timeout_s: float | None = None
    unavailable: str = ""
    may_grow: bool = False
    backpressure: tuple[int, float | None] = (503, None)
    router: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """prefix -> full name of the ingress deployment. is_starting: only the prefix is known yet; its target refuses."""

    prefix: str
    deployment: str
    app: str
    is_starting: bool = False


@dataclass(frozen=True, slots=True)
class Routing:
    """Controller -> proxy or caller: everything it may route to, whole.

    Proxies get all routes and the targets of all ingress deployments; callers the targets of what they subscribed to.
    The receiver answers with a CallerReport of the same generation once its table holds exactly this.

    building: applications whose build may bring deployments that nobody knows yet; inside the controller only. grpc: for proxies.
    """

    generation: int
    routes: tuple[Route, ...] = ()
    targets: tuple[DeploymentTargets, ...] = ()
    building: tuple[str, ...] = ()
    grpc: tuple[GrpcRoute, ...] = ()


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Caller (proxy, replica or driver) -> controller: full names it holds handles to, whole list."""

    deployments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CallerReport:
    """Proxy or caller -> controller: the routing generation in its table, and requests waiting per deployment."""

    generation: int
    queued: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProxyStart:
    """What a proxy process is started with, beside its listening socket. grpc_port: at that host, 0 = none. grpc_tls_ca,
    tls_client_ca: paths of what vouches for clients of gRPC and HTTP, "" = they need no certificate.
    """

    proxy_id: str
    slot: int
    token: str
    host: str
    port: int
    root_path: str
    state_dir: str
    socket_dir: str
    log_dir: str
    tls_cert: str = ""
    tls_key: str = ""
    forwarded_allow_ips: str = DEFAULT_FORWARDED_ALLOW_IPS
    believes_forwarded_host: bool = False
    grpc_port: int = 0
    grpc_tls_ca: str = ""
    keep_alive_timeout_s: float = 0.0
    tls_client_ca: str = ""


@dataclass(frozen=True, slots=True)
class ProxyGoal:
    """Controller -> proxy. drain: stop accepting, finish, exit within drain_timeout_s. slots: further ones whose connections it
    accepts, since nobody else does. is_replaced: other proxies serve its port of gRPC, to which clients move first.
    """

    proxy_id: str
    drain: bool = False
    drain_timeout_s: float = 20.0
    slots: tuple[int, ...] = ()
    is_replaced: bool = False


@dataclass(frozen=True, slots=True)
class ProxyReport:
    """Proxy -> controller, after Hello, at each change and every few seconds as a sign of life.

    trouble: why new clients wait, "" while they do not.
    """

    proxy_id: str
    listening: bool
    connections: int = 0
    ongoing: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaStart:
    """Everything a replica process needs to start.

    variables: environment set before any of its user code runs. default_variables: set where the environment of its process has
    none (thread counts); libraries that its fork server has loaded are told.
    """

    replica_id: str
    app: str
    deployment: str
    token: str
    address: str
    goal: ReplicaGoal
    max_sync_threads: int
    state_dir: str
    socket_dir: str
    log_dir: str
    variables: dict[str, str] = field(default_factory=dict)
    default_variables: dict[str, str] = field(default_factory=dict)
    actor_id: str = ""
    worker_id: str = ""


@dataclass(frozen=True, slots=True)
class ForkOrder:
    """Controller -> fork server: fork one replica."""

    start: ReplicaStart


@dataclass(frozen=True, slots=True)
class Forked:
    """Fork server -> controller: the order was carried out; error is "" or why not. is_host_limit: the host gives no more."""

    replica_id: str
    pid: int
    start_ticks: int
    error: str = ""
    is_host_limit: bool = False


@dataclass(frozen=True, slots=True)
class ChildExited:
    """Fork server -> controller: a replica is gone. exit_code as `subprocess` has it: negative = killed by that signal."""

    replica_id: str
    pid: int
    exit_code: int


@dataclass(frozen=True, slots=True)
class ForkServerHello:
    """Fork server -> controller, first record to each that connects: build (None while it runs) and living children."""

    fork_server_id: str
    pid: int
    result: BuildResult | None = None
    children: tuple[Forked, ...] = ()
    edition: str = ""


@dataclass(frozen=True, slots=True)
class ForkServerStop:
    """Controller -> fork server: exit; living replicas go on under the daemon."""
