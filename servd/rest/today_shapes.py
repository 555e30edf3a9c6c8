"""Shapes of the answers in today's dialect, written from recorded answers of Ray Serve 2.60, whose clients refuse other keys.

Keys that are not required are absent where nothing is known, or where servd has nothing of that kind.
"""

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config

# pydantic takes this one on every version of Python
from typing_extensions import TypedDict

from servd.ground.states import (
    ApplicationStanding,
    DeploymentStanding,
    ProxyLocation,
    ProxyStatus,
    StatusTrigger,
)
from servd.rest.shapes import Count

_EXACT = ConfigDict(extra="forbid")


@with_config(_EXACT)
class TodayActor(TypedDict):
    """Identity of one process; a replica that starts has only a name in Ray's own answers."""

    node_id: NotRequired[str]
    node_ip: NotRequired[str]
    node_instance_id: NotRequired[str]
    actor_id: NotRequired[str | None]
    actor_name: NotRequired[str]
    worker_id: NotRequired[str | None]
    log_file_path: NotRequired[str]


class TodayReplica(TodayActor):
    """One replica; one that is gone is STOPPED. start_time_s: wall time."""

    replica_id: str
    state: Literal["STARTING", "UPDATING", "RECOVERING", "RUNNING", "STOPPING", "STOPPED"]
    pid: NotRequired[int | None]
    start_time_s: float


class TodayProxy(TodayActor):
    """The proxies of one host."""

    status: ProxyStatus


@with_config(_EXACT)
class TodayHttp(TypedDict):
    """Options of the data plane in force."""

    host: str
    port: Count
    root_path: str
    request_timeout_s: float | None
    keep_alive_timeout_s: NotRequired[float]
    ssl_keyfile: NotRequired[str | None]
    ssl_certfile: NotRequired[str | None]
    ssl_keyfile_password: NotRequired[str | None]
    ssl_ca_certs: NotRequired[str | None]


class TodayDecision(TypedDict):
    """One decision of the autoscaler. timestamp_s: wall time."""

    timestamp_s: float
    reason: str
    prev_num_replicas: Count
    curr_num_replicas: Count
    policy: NotRequired[str | None]


class TodayAutoscaling(TypedDict):
    """What the autoscaler does with one deployment; decisions: the last ones, oldest first."""

    scaling_status: Literal["UPSCALING", "DOWNSCALING", "STABLE"]
    decisions: list[TodayDecision]


@with_config(_EXACT)
class TodayDeployment(TypedDict):
    """One deployment. deployment_config: in today's names. required_resources: of each replica, e.g. `{"CPU": 1.0}`."""

    name: str
    status: DeploymentStanding
    status_trigger: StatusTrigger
    message: str
    deployment_config: dict[str, Any]
    target_num_replicas: Count
    required_resources: dict[str, float]
    replicas: list[TodayReplica]
    recent_dead_replicas: list[TodayReplica]
    autoscaling_detail: NotRequired[TodayAutoscaling | None]


class TodayCall(TypedDict):
    """A deployment that another one holds a handle to."""

    name: str
    app_name: str


class TodayNode(TypedDict):
    """One deployment in the graph of its application."""

    name: str
    app_name: str
    outbound_deployments: list[TodayCall]
    is_ingress: bool


class TodayTopology(TypedDict):
    """Which deployments of an application call which; nodes by bare name."""

    app_name: str
    nodes: dict[str, TodayNode]
    ingress_deployment: str


@with_config(_EXACT)
class TodayApplication(TypedDict):
    """One application; deployments by bare name."""

    name: str
    route_prefix: str | None
    docs_path: str | None
    status: ApplicationStanding
    message: str
    last_deployed_time_s: float
    deployed_app_config: dict[str, Any] | None
    source: Literal["declarative", "imperative"]
    deployments: dict[str, TodayDeployment]
    external_scaler_enabled: bool
    deployment_topology: TodayTopology | None


class TodayTarget(TypedDict):
    """One address of the data plane."""

    ip: str
    port: Count
    instance_id: str
    name: str


class TodayTargetGroup(TypedDict):
    """Addresses that a load balancer sends a prefix to."""

    targets: list[TodayTarget]
    route_prefix: str
    protocol: Literal["HTTP", "gRPC"]
    app_name: str
    ingress_request_router_targets: list[TodayTarget]
    ingress_deployment_name: str


@with_config(_EXACT)
class TodaySpread(TypedDict, total=False):
    """Durations; no keys where there are none."""

    mean: float
    std: float
    min: float
    max: float


@with_config(ConfigDict(extra="allow"))
class TodayHealth(TypedDict):
    """How the controller does: what servd's has in common with Ray's, which has more keys. Times are wall time, seconds."""

    timestamp: float
    controller_start_time: float
    uptime_s: float
    last_control_loop_time: float
    num_control_loops: Count
    loop_duration_s: TodaySpread
    loops_per_second: float
    num_asyncio_tasks: Count
    process_memory_mb: float


@with_config(_EXACT)
class TodayInstance(TypedDict):
    """GET /api/serve/applications/ in today's dialect. Required keys alone where Serve does not run."""

    controller_info: TodayActor
    proxy_location: NotRequired[ProxyLocation]
    http_options: NotRequired[TodayHttp]
    grpc_options: NotRequired[dict[str, Any] | None]
    proxies: dict[str, TodayProxy]
    applications: dict[str, TodayApplication]
    target_capacity: float | None
    target_groups: NotRequired[list[TodayTargetGroup]]
    controller_health_metrics: NotRequired[TodayHealth]
    restores_unset_config_options: NotRequired[bool]


class TodayVersion(TypedDict):
    """GET /api/ray/version in today's dialect. session_name: of the daemon, the same for as long as its state directory."""

    version: str
    ray_version: str
    ray_commit: str
    session_name: str


class TodayScaled(TypedDict):
    """A count that was pinned."""

    message: str
