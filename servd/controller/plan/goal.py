"""The goal: what users asked for, as one immutable value. The goal store keeps every revision of it."""

from dataclasses import field
from typing import Any

from servd.documents.control_plane import ApplicationDocument
from servd.documents.sent import HttpWish
from servd.ground.quick_dataclass import dataclass
from servd.ground.states import DeployMode
from servd.wire.codec import register_message


@dataclass(frozen=True, slots=True)
class HttpGoal:
    """Stored options of the data plane. request_timeout_s, grpc_request_timeout_s: of every request, 0 = no limit. grpc_port: 0 =
    no gRPC. grpc_servicers: import paths of the functions that say which methods there are. keep_alive_timeout_s: how long a
    connection may be without a request, 0 = as the daemon's environment says. ssl_certfile, ssl_keyfile, ssl_ca_certs: paths that
    documents gave, "" = none.
    """

    host: str
    port: int
    root_path: str = ""
    location: str = "EveryNode"
    request_timeout_s: float = 0.0
    grpc_port: int = 0
    grpc_servicers: tuple[str, ...] = ()
    grpc_request_timeout_s: float = 0.0
    grpc_reflection: bool = True
    keep_alive_timeout_s: float = 0.0
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    ssl_ca_certs: str = ""

    @property
    def tls_files(self) -> tuple[str, ...]:
        """Certificate, key and what vouches for clients, each "" = as the flags say; () if documents gave none."""
        files = (self.ssl_certfile, self.ssl_keyfile, self.ssl_ca_certs)
        return files if any(files) else ()


@dataclass(frozen=True, slots=True)
class ApplicationGoal:
    """One wanted application.

    deploy_id grows with every accepted change that names the application; each one builds anew. snapshots: local directory as
    written -> directory of its snapshot. deployed_at: wall time, seconds. scale: bare name -> pinned replica count.
    target_capacity: percent of every count that is wanted, 0 to 100; None = all.
    grpc_servicers: those that its build imports.
    """

    document: ApplicationDocument
    deploy_id: int
    deployed_at: float
    snapshots: dict[str, str] = field(default_factory=dict)
    scale: dict[str, int] = field(default_factory=dict)
    target_capacity: float | None = None
    grpc_servicers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The application's name."""
        return self.document.name

    @property
    def counts(self) -> tuple[tuple[tuple[str, int], ...], float | None]:
        """What says how many replicas there shall be, beside the code and the document; no change of it needs a build."""
        return tuple(sorted(self.scale.items())), self.target_capacity


@dataclass(frozen=True, slots=True)
class Goal:
    """Everything that is wanted. http: None until Serve first ran with options of its own.

    asked: the HTTP options that its documents sent; a rollback compares these and no others. logging_config: of the top level,
    for the proxies and the controller; applications have their own. target_capacity: as its applications have it.
    """

    revision: int = 0
    running: bool = False
    mode: DeployMode = DeployMode.UNSET
    http: HttpGoal | None = None
    applications: tuple[ApplicationGoal, ...] = ()
    asked: HttpWish = field(default_factory=HttpWish)
    logging_config: dict[str, Any] = field(default_factory=dict)
    target_capacity: float | None = None

    def application(self, name: str) -> ApplicationGoal | None:
        """The wanted application of that name, if any."""
        return next((app for app in self.applications if app.name == name), None)


register_message(ApplicationDocument, ApplicationGoal, Goal, HttpGoal, HttpWish)
