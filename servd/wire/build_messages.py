"""What the control lines say of builds, beside `messages`."""

from dataclasses import field
from typing import Any

from servd.ground.quick_dataclass import dataclass
from servd.wire.grpc.messages import GrpcMethod


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """What a fork server imports. It is started with this.

    import_path: `module:attr` or `module.attr`, "" for an application by value. application_file: path of the cloudpickle
    file of an application by value, "" otherwise. args: arguments of an application builder. runtime_env: the effective one
    of this fork server, local directories already replaced by their snapshots (plain paths). start_dir and python_path: of
    the daemon (runtime.md section 12, "no working_dir"). driver_path: sys.path of the shipping driver, by-value only.
    default_variables: set before the interpreter starts where neither the environment nor runtime_env has them (thread
    counts). origins: directory of a snapshot -> the user's directory that it shows; for texts only. preload: bare name of the
    deployment whose instance is constructed before replicas are forked, "" for none. grpc_servicers: import paths.
    """

    fork_server_id: str
    build_id: str
    app: str
    import_path: str
    args: dict[str, Any]
    runtime_env: dict[str, Any]
    application_file: str = ""
    start_dir: str = ""
    python_path: str = ""
    driver_path: tuple[str, ...] = ()
    token: str = ""
    socket_path: str = ""
    state_dir: str = ""
    socket_dir: str = ""
    log_dir: str = ""
    default_variables: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    preload: str = ""
    grpc_servicers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuiltDeployment:
    """One deployment of a built application.

    name: bare name. options: only those that the user set in code, by their 2.5 names, JSON values
    (`ray_actor_options`, `autoscaling_config`, ... as in the DeploymentSchema). is_function: no class. docs_path: FastAPI's.
    outbound: bare names of the deployments that it holds handles to.
    """

    name: str
    options: dict[str, Any]
    is_function: bool = False
    is_driver_deployment: bool = False
    docs_path: str | None = None
    outbound: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Fork server -> controller: how the build ended.

    error: "" or the text for the application's message (shortened traceback). code_version: hex digest over the import path,
    args, application runtime_env and the content of the modules imported from outside site-packages. deployments:
    dependencies first, ingress last. route_prefix: of the ingress, from code; None = not exposed. fork_unsafe: "" or why
    replicas must be spawned (of a `preload`: must construct their own instance). is_pinned: none of the modules can change under
    the same snapshots and archives. grpc_methods: those that the servicers of the order have.
    """

    build_id: str
    error: str = ""
    code_version: str = ""
    deployments: tuple[BuiltDeployment, ...] = ()
    ingress: str = ""
    route_prefix: str | None = "/"
    fork_unsafe: str = ""
    is_pinned: bool = False
    grpc_methods: tuple[GrpcMethod, ...] = ()
