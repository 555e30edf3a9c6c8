"""What the admin server, the CLI and `servd.run` ask of the control plane, and the values that travel between them."""

from dataclasses import field
from typing import Any, Literal, Protocol

from servd.documents.controller_views import ControllerHealth, ScalingView, UpgradeOffer, UpgradeView
from servd.documents.sent import HttpWish
from servd.exceptions import RevisionConflictError
from servd.ground.quick_dataclass import dataclass
from servd.ground.states import (
    ApplicationStanding,
    ApplicationStatus,
    DeploymentStanding,
    DeploymentStatus,
    DeployMode,
    ProxyStatus,
    ReplicaState,
    RevisionOutcome,
    StatusTrigger,
)


@dataclass(frozen=True, slots=True)
class ApplicationDocument:
    """One validated application.

    stored: the config that GET shows (only keys the client sent, 2.5 spelling); None for an application without one
    (Python `run`, `servd run` with an import path). deployments: the override objects, 2.5 spelling, only sent keys.
    external_scaler_enabled: none of its deployments may scale by itself. autoscaling_policy: of all its deployments that scale.
    route_prefix counts only if route_prefix_given. application_hash: of the shipped pickle, "" with an import path.
    """

    name: str
    import_path: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)
    deployments: tuple[dict[str, Any], ...] = ()
    route_prefix: str | None = None
    route_prefix_given: bool = False
    stored: dict[str, Any] | None = None
    application_hash: str = ""
    driver_path: tuple[str, ...] = ()
    python_path: str = ""
    logging_config: dict[str, Any] | None = None
    external_scaler_enabled: bool = False
    autoscaling_policy: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class GoalDocument:
    """A whole validated PUT: V1 (mode SINGLE_APP, one application "default") or V2 (MULTI_APP).
    config_file: absolute path of the file that it was read from, which is no code; "" = unknown. keeps_others: applications that
    came without a document (`run`) stay, unless it names them. target_capacity: percent of every count, 0 to 100; None = all.
    """

    mode: DeployMode
    http: HttpWish
    applications: tuple[ApplicationDocument, ...]
    stored: dict[str, Any] = field(default_factory=dict)
    logging_config: dict[str, Any] = field(default_factory=dict)
    config_file: str = ""
    keeps_others: bool = False
    target_capacity: float | None = None


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica as it is now. pid None until the process exists; start_time_s wall time; start_method: "fork" or "spawn"."""

    replica_id: str
    state: ReplicaState
    pid: int | None
    start_time_s: float
    actor_id: str
    worker_id: str
    ongoing: int = 0
    message: str = ""
    start_method: Literal["fork", "spawn"] = "fork"


@dataclass(frozen=True, slots=True)
class DeadReplicaView:
    """A replica that is gone. exit_code negative = killed by that signal; None = unknown. start_time_s: wall time.
    ongoing: its open requests by its last report. log_lines: its last ones. stack: of its main thread, if that was stuck.
    """

    replica_id: str
    pid: int | None
    exit_code: int | None
    age_s: float
    reason: str
    ongoing: int = 0
    log_lines: tuple[str, ...] = ()
    stack: str = ""
    actor_id: str = ""
    worker_id: str = ""
    start_time_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One deployment: name is the full one. config: `deployment_config` of GET V2, keys in order.

    standing: how it is in the words of today's Ray Serve. outbound: bare names of those that it holds handles to. decisions: the
    autoscaler's last ones, oldest first.
    """

    name: str
    bare_name: str
    status: DeploymentStatus
    status_trigger: StatusTrigger
    message: str
    config: dict[str, Any]
    target_num_replicas: int
    replicas: tuple[ReplicaView, ...]
    recent_dead: tuple[DeadReplicaView, ...] = ()
    autoscaling: dict[str, Any] | None = None
    standing: DeploymentStanding = DeploymentStanding.HEALTHY
    max_queued_requests: int = -1
    outbound: tuple[str, ...] = ()
    decisions: tuple[ScalingView, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplicationView:
    """One application, in order of first deployment.

    standing: how it is in the words of today's Ray Serve, and standing_message why. is_declarative: from a document. ingress:
    bare name of the deployment that its route leads to, "" while it is not built.
    """

    name: str
    route_prefix: str | None
    docs_path: str | None
    status: ApplicationStatus
    message: str
    last_deployed_time_s: float
    config: dict[str, Any] | None
    deployments: tuple[DeploymentView, ...]
    standing: ApplicationStanding = ApplicationStanding.RUNNING
    standing_message: str = ""
    is_declarative: bool = True
    ingress: str = ""
    external_scaler_enabled: bool = False


@dataclass(frozen=True, slots=True)
class ProxyView:
    """One proxy process."""

    proxy_id: str
    slot: int
    status: ProxyStatus
    pid: int | None
    actor_id: str
    worker_id: str
    connections: int = 0


@dataclass(frozen=True, slots=True)
class HttpView:
    """Options of the data plane in force; listening: a proxy accepts; request_timeout_s: 0 = none; grpc: its options.
    ssl_certfile, ssl_keyfile, ssl_ca_certs: paths, "" = none.
    """

    host: str
    port: int
    root_path: str
    location: str
    listening: bool
    request_timeout_s: float = 0.0
    grpc: dict[str, Any] = field(default_factory=dict)
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    ssl_ca_certs: str = ""

    @property
    def is_tls(self) -> bool:
        """Whether the port speaks TLS."""
        return bool(self.ssl_certfile)


@dataclass(frozen=True, slots=True)
class InstanceView:
    """Everything that statuses show, computed from the goal and the facts of one moment.

    version grows with every visible change; see `changed`. notice: what people should know of the daemon itself, "" for nothing.
    edition: which servd the controller is. upgrade: the latest one, if any. page_url: of the live page, on this host.
    """

    revision: int
    version: int
    running: bool
    mode: DeployMode
    http: HttpView
    proxies: tuple[ProxyView, ...]
    applications: tuple[ApplicationView, ...]
    controller_pid: int
    controller_actor_id: str
    controller_worker_id: str
    node_id: str
    node_ip: str
    log_dir: str = ""
    notice: str = ""
    edition: str = ""
    upgrade: UpgradeView | None = None
    health: ControllerHealth = field(default_factory=ControllerHealth)
    target_capacity: float | None = None
    page_url: str = ""

    def application(self, name: str) -> ApplicationView | None:
        """The application of that name, if there is one."""
        return next((app for app in self.applications if app.name == name), None)


@dataclass(frozen=True, slots=True)
class RevisionView:
    """One accepted change of the goal. at: wall time, seconds. origin: who asked for it, how and from where.
    applications: name -> stored config, None without one (`run`). http: options its document sent. outcome: what became of it.
    logging_config, target_capacity: of the document's top level.
    """

    revision: int
    at: float
    origin: str
    running: bool
    mode: DeployMode
    http: HttpWish
    applications: dict[str, dict[str, Any] | None]
    outcome: RevisionOutcome = RevisionOutcome.UNDECIDED
    logging_config: dict[str, Any] = field(default_factory=dict)
    target_capacity: float | None = None


@dataclass(frozen=True, slots=True)
class DeploymentChange:
    """What a change would do to one deployment.

    action: "untouched", "reconfigured" (in place), "restarted", "removed" or "added". fields: what differs, dotted.
    replicas_after: None where only the build can tell.
    """

    name: str
    action: str
    fields: tuple[str, ...]
    replicas_before: int
    replicas_after: int | None


@dataclass(frozen=True, slots=True)
class ApplicationChange:
    """What a change would do to one application.

    action: "unchanged", "changed", "removed" or "added". note: what only the build can tell, or why it would fail; "" = nothing.
    deployments: full name -> its change. files: path of each source file that differs -> "changed", "added" or "removed".
    """

    action: str
    fields: tuple[str, ...]
    note: str
    deployments: dict[str, DeploymentChange]
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """What a change would do now. revision: of the goal it was compared with. http: option -> [before, after], if it differs."""

    revision: int
    http: dict[str, tuple[Any, Any]]
    applications: dict[str, ApplicationChange]


@dataclass(frozen=True, slots=True)
class Pruned:
    """Code that was removed: names below the state directory's `code`, and the bytes that this freed."""

    names: tuple[str, ...]
    freed_bytes: int


def check_match(if_match: str | None, revision: int) -> None:
    """Refuse a change that is meant for another revision.

    Args:
        if_match: an `If-Match` header: quoted revisions separated by commas, or `*`; None = no condition.
        revision: the current one.

    Raises:
        RevisionConflictError: names both.
    """
    if if_match is None:
        return
    tags = [tag.strip() for tag in if_match.split(",")]
    if "*" not in tags and f'"{revision}"' not in tags:
        raise RevisionConflictError(if_match, revision)


class ControlPlane(Protocol):
    """The verbs on the goal. Implemented by the controller's `ControlLoop`, spoken to by `rest/`.

    Raises of all changing verbs: ConfigError (400), RevisionConflictError (412), GoalNotSavedError (507), ListenError
    (500); nothing was changed then. They return once the goal is on disk.
    """

    def view(self) -> InstanceView:
        """The instance as it is now."""
        ...

    async def changed(self, seen: int, timeout_s: float) -> int:
        """Wait until the version of the view differs from `seen` or the time is over; gives the current version."""
        ...

    async def put(self, document: GoalDocument, *, if_match: str | None = None, origin: str = "") -> int:
        """Replace the goal's applications; gives the new revision."""
        ...

    async def plan(self, document: GoalDocument, *, if_match: str | None = None) -> ChangePlan:
        """What `put` would do; the same checks, nothing is changed."""
        ...

    async def put_application(
        self,
        application: ApplicationDocument,
        *,
        http: HttpWish | None = None,
        if_match: str | None = None,
        origin: str = "",
    ) -> int:
        """Add or replace one application, others stay (`run`); gives the new revision."""
        ...

    async def delete_application(self, name: str, *, if_match: str | None = None, origin: str = "") -> int:
        """Take one application out of the goal; unknown name changes nothing. Does not wait. Gives the revision."""
        ...

    async def scale(self, app: str, deployment: str, count: int, *, origin: str = "") -> None:
        """Pin the replica count of a deployment (bare name) until the next change that names the application.

        Raises:
            UnknownNameError: there is no such application, or it has no such deployment.
        """
        ...

    def revisions(self, limit: int) -> tuple[RevisionView, ...]:
        """The latest revisions, newest first."""
        ...

    def revision(self, number: int) -> RevisionView:
        """One revision; UnknownNameError: there is none of that number."""
        ...

    def last_that_ran(self) -> int | None:
        """The latest revision before the current one that ran, wants something else and has its code; None without one."""
        ...

    async def rollback(self, number: int, *, if_match: str | None = None, origin: str = "") -> int:
        """Make the goal what it was at that revision, its code included; gives the new revision.

        Raises:
            UnknownNameError: there is none of that number.
        """
        ...

    async def plan_rollback(self, number: int, *, if_match: str | None = None) -> ChangePlan:
        """What `rollback` would do; the same checks, nothing is changed."""
        ...

    async def prune(self, keep: int, *, dry_run: bool = False) -> Pruned:
        """Remove code that neither the goal, the latest `keep` revisions, nor anything that lives needs."""
        ...

    async def stack(self, replica_id: str) -> str:
        """Python stacks of a living replica: its threads and its asynchronous tasks.

        Raises:
            UnknownNameError: there is no such replica. NoAnswerError: it does not answer.
        """
        ...

    async def prepare_upgrade(self, *, origin: str = "") -> UpgradeOffer:
        """Look whether the daemon can become the edition that lies in its place; UpgradeError: it cannot, and why."""
        ...

    async def begin_upgrade(self) -> None:
        """Become what was offered last; this process is ended on the way."""
        ...

    async def start_instance(self, http: HttpWish, *, origin: str = "") -> int:
        """Make Serve run with an empty goal if it does not run; gives the revision."""
        ...

    async def delete(self, *, if_match: str | None = None, origin: str = "") -> None:
        """Empty the goal and wait up to 60 s until everything is gone.

        Raises:
            DeployError: not finished in time; names the deployments still alive.
        """
        ...
