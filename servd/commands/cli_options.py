"""Options that several commands share, and how a command fails."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from servd.ground.extras import GRPC_MISSING, is_there
from servd.ground.settings import DEFAULT_FORWARDED_ALLOW_IPS, DEFAULT_GRPC_PORT, SHOW_TRACEBACKS, default_state_dir
from servd.observability.spans import (
    LIBRARY,
    MISSING,
    RATIO,
    propagators_left_out,
    trace_settings,
    traces_endpoint,
    variables_for,
)


class Form(StrEnum):
    """How a command prints what it knows."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


class HttpPlace(StrEnum):
    """Where proxies run, as documents say it, and as today's Ray Serve does."""

    NO_SERVER = "NoServer"
    DISABLED = "Disabled"
    HEAD_ONLY = "HeadOnly"
    EVERY_NODE = "EveryNode"
    FIXED_NUMBER = "FixedNumber"


HttpLocation = Annotated[
    HttpPlace | None, typer.Option("--http-location", "--proxy-location", help="Where proxies run [EveryNode].")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", "-a", help="Admin address: http(s)://HOST:PORT, unix://PATH or auto.", show_default=False
    ),
]
NoAddress = Annotated[str | None, typer.Option("--address", "-a", help="Accepted and ignored.", show_default=False)]
StateDir = Annotated[
    str | None,
    typer.Option("--state-dir", metavar="DIR", help="State directory of the daemon.", show_default=False),
]
Name = Annotated[str | None, typer.Option("--name", "-n", help="Only this application.", show_default=False)]
AppName = Annotated[str, typer.Option("--name", help="Application name; with an import path only.")]
RoutePrefix = Annotated[
    str | None,
    typer.Option("--route-prefix", help="Route prefix; with an import path only.", show_default=False),
]
RuntimeEnvFile = Annotated[
    str | None,
    typer.Option(
        "--runtime-env", metavar="FILE", help="YAML runtime_env; with an import path only.", show_default=False
    ),
]
RuntimeEnvText = Annotated[
    str | None,
    typer.Option(
        "--runtime-env-json", metavar="TEXT", help="JSON runtime_env; with an import path only.", show_default=False
    ),
]
WorkingDir = Annotated[
    str | None,
    typer.Option("--working-dir", help="Overrides working_dir of the runtime_env.", show_default=False),
]
AppDir = Annotated[str, typer.Option("--app-dir", "-d", help="Put first on the import path.")]
Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[key=val]...", help="Arguments of an application builder.")
]
Format = Annotated[
    Form | None, typer.Option("--format", help="Output [table on a terminal, else yaml].", show_default=False)
]
TableFormat = Annotated[Form, typer.Option("--format", help="Output.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until everything runs; exit 1 if it fails.")]
Timeout = Annotated[
    float | None, typer.Option(min=0, metavar="SECONDS", help="Give up waiting after this time.", show_default=False)
]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Only say what would happen to each deployment.")]
AllowedHosts = Annotated[list[str] | None, typer.Option(help="Further Host value that is let in; may be repeated.")]
GrpcPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Port of gRPC, at the same host.")]
GrpcServicers = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="Import path of a generated add_...Servicer_to_server; may be repeated."),
]
GrpcReflection = Annotated[
    bool | None,
    typer.Option(
        "--grpc-enable-reflection/--grpc-disable-reflection",
        help="Let tools ask for services and message types of gRPC [enabled].",
        show_default=False,
    ),
]
TlsFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="PEM file; the port then speaks TLS.", show_default=False)
]
ClientCaFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="PEM file of what vouches for clients of gRPC: each needs a certificate then; with --http-tls-cert.",
        show_default=False,
    ),
]
DashboardPort = Annotated[
    int,
    typer.Option(
        min=0,
        max=65535,
        envvar="SERVD_DASHBOARD_PORT",
        show_envvar=False,
        help="Port of the admin API in the shape of today's Ray Serve; 0: none.",
    ),
]
ForwardedAllowIps = Annotated[
    str | None,
    typer.Option(
        metavar="HOSTS",
        help="Proxies whose X-Forwarded-* and Forwarded headers count: addresses, networks, or * "
        "[127.0.0.1,::1, whose word on the host does not count unless they are given].",
        show_default=False,
    ),
]
MetricsPort = Annotated[int | None, typer.Option(min=0, max=65535, help="Loopback port that serves /metrics alone.")]
LogToStderr = Annotated[
    bool,
    typer.Option("--log-to-stderr", help="All log lines on stderr too, those of requests and applications included."),
]
ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG_FILE", show_default=False)]


def let_clients_see_tracebacks(wanted: bool = True) -> None:
    """Daemons that this process starts, or becomes, and all their processes send tracebacks to clients of the data port."""
    if wanted:
        os.environ[f"SERVD_{SHOW_TRACEBACKS}"] = "1"


ShowTracebacks = Annotated[
    bool,
    typer.Option(
        "--show-tracebacks",
        callback=let_clients_see_tracebacks,
        help="Send tracebacks of applications to HTTP clients.",
    ),
]


def record_traces(endpoint: str | None) -> None:
    """Daemons that this process starts, or becomes, and all their processes send spans there."""
    if endpoint is not None:
        try:
            endpoint = traces_endpoint(endpoint, "--trace-endpoint")
        except ValueError as error:
            fail(str(error))
        if not is_there(LIBRARY):
            fail(f"--trace-endpoint: {MISSING}")
        os.environ.update(variables_for(endpoint))


def record_share_of_traces(ratio: float | None) -> None:
    """As `record_traces`: so many of those that begin there."""
    if ratio is not None:
        os.environ[f"SERVD_{RATIO}"] = f"{ratio:g}"


TraceEndpoint = Annotated[
    str | None,
    typer.Option(
        "--trace-endpoint",
        metavar="URL",
        callback=record_traces,
        help="Record spans of requests, and send them there by OTLP over HTTP; of a bare address to /v1/traces.",
        show_default=False,
    ),
]
TraceRatio = Annotated[
    float | None,
    typer.Option(
        "--trace-ratio",
        min=0,
        max=1,
        callback=record_share_of_traces,
        help="Share of the requests without a trace of their own that begin one [1].",
        show_default=False,
    ),
]


def look_at_traces() -> None:
    """Warn of what the environment asks of traces and does not get."""
    why = ""
    try:
        settings = trace_settings()
        if settings is not None and not is_there(LIBRARY):
            why = MISSING
    except ValueError as error:
        settings, why = None, str(error)
    if why:
        typer.echo(f"Warning: no traces are exported: {why}", err=True)
    elif settings is None and f"SERVD_{RATIO}" in os.environ:
        typer.echo("Warning: --trace-ratio has no effect without --trace-endpoint", err=True)
    elif settings is not None and (left_out := propagators_left_out()):
        typer.echo(f"Warning: {left_out}", err=True)


def believed(forwarded_allow_ips: str | None) -> dict[str, Any]:
    """Settings of what proxies in front say: of the host only where somebody has named the proxies."""
    given = forwarded_allow_ips is not None
    hosts = forwarded_allow_ips if given else DEFAULT_FORWARDED_ALLOW_IPS
    return {"forwarded_allow_ips": hosts, "believes_forwarded_host": given}


def form_of(given: Form | None) -> str:
    """What was asked for; without a wish a table for people, YAML for programs."""
    return given or (Form.TABLE if sys.stdout.isatty() else Form.YAML)


def state_dir_of(given: str | None) -> str:
    """The state directory that a command means, absolute."""
    return str(Path(given).absolute()) if given else default_state_dir()


def absolute(path: str | None) -> str | None:
    """A path of the command line made absolute: the daemon may have another current directory."""
    return os.path.abspath(path) if path else None


def must_exist(path: str) -> None:
    """End the command with exit 1 if there is no such config file."""
    if not os.path.isfile(path):
        fail(f"config file {path} does not exist")


def fail(message: str) -> NoReturn:
    """End the command: one line on stderr, exit 1."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)


def location_of(given: HttpPlace | None) -> str | None:
    """In the words of documents; None as it is."""
    return "NoServer" if given == HttpPlace.DISABLED else given and str(given)


def look_at(address: str | None, http_location: HttpPlace | None) -> None:
    """Warn of what has no effect in `servd start`, and refuse what cannot be meant."""
    look_at_traces()
    if address is not None:
        typer.echo("Warning: --address has no effect: servd start is the daemon itself", err=True)
    if http_location == HttpPlace.FIXED_NUMBER:
        fail("--http-location FixedNumber needs a number, which no option gives; use NoServer, HeadOnly or EveryNode")


def grpc_settings(
    port: int | None,
    functions: list[str] | None,
    client_ca: str | None,
    certificate: str | None,
    reflection: bool | None,
) -> dict[str, Any]:
    """Settings of gRPC behind the options of `servd start`. certificate: the data port's."""
    if client_ca is not None and (not certificate or not os.path.isfile(client_ca)):
        fail("--grpc-tls-ca needs a file that is there, and --http-tls-cert and --http-tls-key beside it")
    if (port or functions) and not is_there("grpc"):
        fail(f"--grpc-port: {GRPC_MISSING}")
    return {
        "grpc_port": DEFAULT_GRPC_PORT if functions and port is None else port,
        "grpc_servicers": tuple(functions or ()),
        "grpc_tls_ca": absolute(client_ca),
        "grpc_reflection": reflection,
    }
