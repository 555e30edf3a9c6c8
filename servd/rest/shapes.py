"""Shapes of the answers of servd's own endpoints, described once: bodies are made as these, and the OpenAPI shows them.

Every key that is named is always there; others may join it.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

# pydantic takes this one on every version of Python
from typing_extensions import TypedDict

from servd.ground.states import (
    ApplicationStanding,
    ApplicationStatus,
    DeploymentStanding,
    DeploymentStatus,
    DeployMode,
    ProxyLocation,
    ProxyStatus,
    ReplicaState,
    RevisionOutcome,
    UpgradeStage,
)

Count = Annotated[int, Field(ge=0)]


class Identity(TypedDict):
    """One process, by the names that clients of 2.5 know."""

    node_id: str
    node_ip: str
    actor_id: str | None
    actor_name: str
    worker_id: str | None
    log_file_path: str


class Controller(Identity):
    """The controller."""

    pid: int


class Replica(Identity):
    """A replica as 2.5 shows it."""

    replica_id: str
    state: ReplicaState
    pid: int | None
    start_time_s: float


class OwnReplica(Replica):
    """A replica with what is known beyond that."""

    ongoing: Count
    message: str
    start_method: Literal["fork", "spawn"]


class DeadReplica(TypedDict):
    """One that is gone."""

    replica_id: str
    pid: int | None
    exit_code: Count | None
    signal: Count | None
    age_s: float
    reason: str
    open_requests: Count
    log_lines: list[str]
    stack: str


class Deployment(TypedDict):
    """One deployment. standing: its status in the words of today's Ray Serve."""

    name: str
    status: DeploymentStatus
    standing: DeploymentStanding
    status_trigger: str
    message: str
    deployment_config: dict[str, Any]
    target_num_replicas: Count
    replicas: list[OwnReplica]
    recent_dead_replicas: list[DeadReplica]
    autoscaling: dict[str, Any] | None


class ApplicationHead(TypedDict):
    """One application without its deployments."""

    name: str
    route_prefix: str | None
    docs_path: str | None
    status: ApplicationStatus
    message: str
    last_deployed_time_s: float
    deployed_app_config: dict[str, Any] | None


class Application(ApplicationHead):
    """One application; deployments by full name. standing: how it is now, in the words of today's Ray Serve."""

    standing: ApplicationStanding
    standing_message: str
    deployments: dict[str, Deployment]


class Http(TypedDict):
    """Options of the data plane in force. grpc_port: 0 = none. ssl_certfile, ssl_keyfile, ssl_ca_certs: paths, "" = none."""

    host: str
    port: Count
    root_path: str
    location: ProxyLocation
    listening: bool
    tls: bool
    ssl_certfile: str
    ssl_keyfile: str
    ssl_ca_certs: str
    request_timeout_s: float | None
    grpc_port: Count


class Proxy(Identity):
    """One proxy process."""

    proxy_id: str
    slot: Count
    pid: int | None
    host: str
    port: Count
    status: ProxyStatus
    connections: Count


class Upgrade(TypedDict):
    """How the latest upgrade goes: editions, and how many processes of an edition before are left."""

    edition: str
    before: str
    stage: UpgradeStage
    message: str
    proxies: Count
    fork_servers: Count
    replicas: Count


class UpgradeBegun(TypedDict):
    """An upgrade that begins now, if it is needed."""

    edition: str
    before: str
    is_needed: bool


class Status(TypedDict):
    """GET /api/servd/v1/status."""

    revision: Count
    version: Count
    running: bool
    notice: str
    log_dir: str
    utc_offset_s: int
    page_url: str
    edition: str
    upgrade: Upgrade | None
    deploy_mode: DeployMode
    target_capacity: float | None
    controller_info: Controller
    http: Http
    proxies: list[Proxy]
    applications: dict[str, Application]


class Changed(TypedDict):
    """A change that was accepted."""

    revision: Count


class Scaled(TypedDict):
    """A count that was pinned."""

    application: str
    deployment: str
    target_num_replicas: Count


class Pruned(TypedDict):
    """Code that is gone, or in a dry run would be; names below the state directory's `code`."""

    names: list[str]
    freed_bytes: Count


class Shipped(TypedDict):
    """Code that is kept."""

    sha256: str


class Version(TypedDict):
    """GET /api/ray/version."""

    version: str
    ray_version: str
    ray_commit: str


class RevisionHead(TypedDict):
    """One accepted change; at: wall time, seconds."""

    revision: Count
    at: float
    origin: str
    running: bool
    deploy_mode: DeployMode
    outcome: RevisionOutcome


class ListedRevision(RevisionHead):
    """One accepted change with the names of its applications."""

    applications: list[str]


class Revisions(TypedDict):
    """Accepted changes, newest first. last_that_ran: before the current one; where a rollback without a number goes."""

    revision: Count
    last_that_ran: Count | None
    revisions: list[ListedRevision]


class Revision(RevisionHead):
    """One accepted change with its documents."""

    applications: dict[str, dict[str, Any] | None]
    document: dict[str, Any] | None


class ErrorEntry(TypedDict):
    """Errors of one type and place; first_at, last_at: wall time, seconds. request_ids: the last ten, newest first.

    trace_ids: by the ids of those requests that are part of a trace.
    """

    id: str
    application: str
    deployment: str
    type: str
    place: str
    message: str
    method: str
    route: str
    count: Count
    first_at: float
    last_at: float
    request_ids: list[str]
    trace_ids: dict[str, str]


class Errors(TypedDict):
    """What applications raised, the latest first."""

    errors: list[ErrorEntry]


class ErrorDetail(ErrorEntry):
    """With the traceback of the last time."""

    traceback: str


class LogLine(TypedDict):
    """One line. time: local; that of the line before, like level, where it has no head of its own. source: the file's name."""

    time: str
    level: str
    source: str
    text: str


class LogLines(TypedDict):
    """The last lines of some log files, oldest first. is_all: whether all were read to their begin, and none has rotated."""

    lines: list[LogLine]
    is_all: bool


class DeploymentChange(TypedDict):
    """What a change would do to a deployment."""

    name: str
    action: Literal["untouched", "reconfigured", "restarted", "removed", "added"]
    fields: list[str]
    replicas_before: Count
    replicas_after: Count | None


class ApplicationChange(TypedDict):
    """What a change would do to an application."""

    action: Literal["unchanged", "changed", "removed", "added"]
    fields: list[str]
    note: str
    deployments: dict[str, DeploymentChange]
    files: dict[str, Literal["changed", "added", "removed"]]


class Plan(TypedDict):
    """What a change would do; http: option -> [before, after]."""

    revision: Count
    http: dict[str, tuple[Any, Any]]
    applications: dict[str, ApplicationChange]


def schemas(shapes: Iterable[Any], ref_template: str) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """JSON Schemas of shapes and models, and of what they are made of.

    Args:
        ref_template: where definitions will lie, with `{model}` for the name.

    Returns:
        Shape -> its schema, and the definitions by name.
    """
    wanted: list[tuple[Any, Literal["validation"], TypeAdapter[Any]]] = [
        (shape, "validation", TypeAdapter(shape)) for shape in shapes
    ]
    found, about = TypeAdapter.json_schemas(wanted, ref_template=ref_template)
    return {shape: schema for (shape, _), schema in found.items()}, about.get("$defs", {})
