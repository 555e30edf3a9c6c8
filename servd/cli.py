"""The commands. Each one imports what it needs when it runs, so that `servd --help` stays fast."""

import os
import sys
from typing import Annotated

import typer

from servd.commands import operator_cli as cli_operations
from servd.commands.cli_options import (
    Address,
    AllowedHosts,
    AppDir,
    AppName,
    Arguments,
    ClientCaFile,
    DashboardPort,
    Form,
    Format,
    ForwardedAllowIps,
    GrpcPort,
    GrpcReflection,
    GrpcServicers,
    HttpLocation,
    LogToStderr,
    MetricsPort,
    Name,
    NoAddress,
    PlanOnly,
    RoutePrefix,
    RuntimeEnvFile,
    RuntimeEnvText,
    ShowTracebacks,
    StateDir,
    Timeout,
    TlsFile,
    TraceEndpoint,
    TraceRatio,
    Wait,
    WorkingDir,
    absolute,
    believed,
    fail,
    form_of,
    grpc_settings,
    let_clients_see_tracebacks,
    location_of,
    look_at,
    must_exist,
    state_dir_of,
)
from servd.engines import cli as engine_cli
from servd.engines.cli import Engine, Force, NoBuild, WithEngine, check_engine, cluster_at, ray_commands
from servd.exceptions import ServdError
from servd.ground.host_limits import told
from servd.ground.settings import (
    DEFAULT_ADMIN_HOST,
    DEFAULT_ADMIN_PORT,
    DEFAULT_DASHBOARD_PORT,
    Settings,
    socket_dir_for,
)

app = typer.Typer(
    name="servd",
    help="Serve Python applications from many processes on one host.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command(help="Start the daemon; stays until Ctrl-C unless detached.")
def start(
    address: NoAddress = None,
    http_host: Annotated[str | None, typer.Option(help="Host of the data plane [127.0.0.1].")] = None,
    http_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the data plane [8000].")] = None,
    http_location: HttpLocation = None,
    grpc_port: GrpcPort = None,
    grpc_servicer_functions: GrpcServicers = None,
    grpc_enable_reflection: GrpcReflection = None,
    grpc_tls_ca: ClientCaFile = None,
    no_http: Annotated[bool, typer.Option("--no-http", help="Open the data plane with the first config.")] = False,
    proxies: Annotated[int, typer.Option(min=1, max=256, help="Proxies that share the data-plane port.")] = 1,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the daemon answers.")] = False,
    admin_host: Annotated[str, typer.Option(help="Host of the admin API.")] = DEFAULT_ADMIN_HOST,
    admin_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the admin API.")] = DEFAULT_ADMIN_PORT,
    dashboard_port: DashboardPort = DEFAULT_DASHBOARD_PORT,
    admin_allowed_host: AllowedHosts = None,
    admin_token_file: Annotated[str | None, typer.Option(metavar="FILE", help="Bearer token of the admin API.")] = None,
    admin_tls_cert: TlsFile = None,
    admin_tls_key: TlsFile = None,
    http_tls_cert: TlsFile = None,
    http_tls_key: TlsFile = None,
    forwarded_allow_ips: ForwardedAllowIps = None,
    state_dir: StateDir = None,
    num_cpus: Annotated[float | None, typer.Option(min=0, help="Limit of all num_cpus together.")] = None,
    num_gpus: Annotated[float | None, typer.Option(min=0, help="Devices that num_gpus may reserve.")] = None,
    metrics_port: MetricsPort = None,
    _: ShowTracebacks = False,
    _endpoint: TraceEndpoint = None,
    _ratio: TraceRatio = None,
    log_to_stderr: LogToStderr = False,
) -> None:
    """Become the daemon, or start it in the background."""
    look_at(address, http_location)
    folder = state_dir_of(state_dir)
    settings = Settings(
        state_dir=folder,
        socket_dir=socket_dir_for(folder),
        http_host=http_host,
        http_port=http_port,
        http_location=location_of(http_location),
        open_http=not no_http,
        proxies=proxies,
        admin_host=admin_host,
        admin_port=admin_port,
        admin_allowed_hosts=tuple(admin_allowed_host or ()),
        admin_token_file=absolute(admin_token_file),
        admin_tls_cert=absolute(admin_tls_cert),
        admin_tls_key=absolute(admin_tls_key),
        http_tls_cert=absolute(http_tls_cert),
        http_tls_key=absolute(http_tls_key),
        **believed(forwarded_allow_ips),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        metrics_port=metrics_port,
        start_dir=os.getcwd(),
        python_path=os.environ.get("PYTHONPATH", ""),
        dashboard_port=dashboard_port or None,
        **grpc_settings(grpc_port, grpc_servicer_functions, grpc_tls_ca, http_tls_cert, grpc_enable_reflection),
    )
    _begin(settings, detach=detach, log_to_stderr=log_to_stderr)


def _begin(settings: Settings, *, detach: bool, log_to_stderr: bool) -> None:
    from servd.commands.daemon_start import begin
    from servd.proxy.forwarded_for import TrustedProxies
    from servd.rest.access import rules_for

    rules_for(settings)
    try:
        TrustedProxies(settings.forwarded_allow_ips)
    except ValueError as error:
        fail(f"--forwarded-allow-ips: {error}")
    begin(settings, detach=detach, log_to_stderr=log_to_stderr)


@app.command(help="Stop the daemon; the goal is kept.")
def stop(state_dir: StateDir = None) -> None:
    """Exit 0, also when none runs."""
    from servd.commands.console import say
    from servd.daemon.launch import stop as stop_daemon

    folder = state_dir_of(state_dir)
    say(f"Stopped the daemon on {folder}." if stop_daemon(folder) else f"No daemon runs on {folder}.")


@app.command(help="Deploy a config file, or one application.")
def deploy(
    target: Annotated[str, typer.Argument(metavar="CONFIG_FILE|IMPORT_PATH", show_default=False)],
    arguments: Arguments = None,
    address: Address = None,
    state_dir: StateDir = None,
    name: AppName = "default",
    route_prefix: RoutePrefix = None,
    app_dir: AppDir = ".",
    runtime_env: RuntimeEnvFile = None,
    runtime_env_json: RuntimeEnvText = None,
    working_dir: WorkingDir = None,
    wait: Wait = False,
    timeout: Timeout = None,
    plan: PlanOnly = False,
    engine: WithEngine = Engine.SERVD,
    no_build: NoBuild = False,
    force: Force = False,
) -> None:
    """A document goes to the endpoint of its version; an import path joins the other applications."""
    if engine == Engine.RAY:
        if plan or not target.endswith((".yaml", ".yml", ".json")):
            fail("--engine ray takes a config file, and has no --plan: `servd diff --engine ray` compares")
        must_exist(target)
        cluster = cluster_at(address, state_dir)
        must_wait = wait or timeout is not None
        ray_commands().deploy(cluster, target, wait=must_wait, timeout_s=timeout, builds=not no_build, force=force)
        return
    from servd.commands.run import RunOptions, order_of
    from servd.commands.verbs import deploy_file, deploy_import_path
    from servd.daemon.admin_client import AdminClient, find_address
    from servd.documents.files import is_document_path

    if is_document := is_document_path(target):
        must_exist(target)
    client = AdminClient(find_address(address, state_dir))
    if plan:
        if not is_document:
            raise typer.BadParameter("it needs a config file", param_hint="--plan")
        from servd.commands.operations import show_deploy_plan

        show_deploy_plan(client, target, "table")
        return
    must_wait = wait or timeout is not None
    if is_document:
        if arguments:
            typer.echo("Warning: arguments have no effect with a config file", err=True)
        if runtime_env or runtime_env_json or working_dir:
            typer.echo("Warning: a runtime_env has no effect with a config file, which has its own", err=True)
        deploy_file(client, target, wait=must_wait, timeout_s=timeout)
        return
    options = RunOptions(
        target, is_document, tuple(arguments or ()), runtime_env, runtime_env_json, working_dir, app_dir
    )
    order = order_of(options)
    if route_prefix is not None:
        order["route_prefix"] = route_prefix
    deploy_import_path(client, order, name, wait=must_wait, timeout_s=timeout)


@app.command(help="Deploy and stay until Ctrl-C; starts a daemon if needed.")
def run(
    target: Annotated[str, typer.Argument(metavar="CONFIG_FILE|IMPORT_PATH", show_default=False)],
    arguments: Arguments = None,
    runtime_env: RuntimeEnvFile = None,
    runtime_env_json: RuntimeEnvText = None,
    working_dir: WorkingDir = None,
    app_dir: AppDir = ".",
    address: Address = None,
    state_dir: StateDir = None,
    host: Annotated[str | None, typer.Option("--host", "-h", help="Host of the data plane.")] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", min=0, max=65535, help="Its port.")] = None,
    blocking: Annotated[bool, typer.Option("--blocking/--non-blocking", help="Stay until Ctrl-C.")] = True,
    name: AppName = "default",
    route_prefix: RoutePrefix = None,
    reload: Annotated[bool, typer.Option("--reload", "-r", help="Deploy again when sources change.")] = False,
    log_to_stderr: LogToStderr = False,
    trace_endpoint: TraceEndpoint = None,
    _ratio: TraceRatio = None,
    gradio: Annotated[bool, typer.Option("--gradio", hidden=True)] = False,
) -> None:
    """Without a daemon one is started: for this command if it blocks, else detached."""
    if gradio:
        raise typer.BadParameter("servd has no Gradio helper", param_hint="--gradio")
    if reload and not blocking:
        raise typer.BadParameter("it needs --blocking", param_hint="--reload")
    from servd.commands.run import RunOptions, announce, daemon_for
    from servd.commands.run import run as run_target
    from servd.documents.files import is_document_path

    if is_document := is_document_path(target):
        must_exist(target)
    options = RunOptions(
        target=target,
        is_document=is_document,
        arguments=tuple(arguments or ()),
        runtime_env_file=runtime_env,
        runtime_env_json=runtime_env_json,
        working_dir=working_dir,
        app_dir=app_dir,
        host=host,
        port=port,
        name=name,
        route_prefix=route_prefix,
        reload=reload,
        log_to_stderr=log_to_stderr,
        records_traces=trace_endpoint is not None,
    )
    # whoever runs an application this way develops it
    let_clients_see_tracebacks()
    announce(options)
    with daemon_for(options, address, state_dir, is_blocking=blocking) as client:
        run_target(client, options, is_blocking=blocking)


@app.command(help="Print the stored config(s).")
def config(
    address: Address = None, state_dir: StateDir = None, name: Name = None, engine: WithEngine = Engine.SERVD
) -> None:
    """YAML on stdout only."""
    if engine == Engine.RAY:
        ray_commands().show_config(cluster_at(address, state_dir), name)
        return
    from servd.commands.verbs import show_config
    from servd.daemon.admin_client import AdminClient, find_address

    show_config(AdminClient(find_address(address, state_dir)), name)


@app.command(help="Print the status of the applications.")
def status(
    address: Address = None,
    state_dir: StateDir = None,
    name: Name = None,
    form: Format = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="A table, with requests, memory and CPU of each replica.")
    ] = False,
    engine: WithEngine = Engine.SERVD,
) -> None:
    """A table on a terminal; YAML on stdout otherwise."""
    if engine == Engine.RAY:
        ray_commands().show_status(cluster_at(address, state_dir), name, form_of(form))
        return
    from servd.commands.verbs import show_status
    from servd.daemon.admin_client import AdminClient, find_address

    form = form or (Form.TABLE if verbose else None)
    show_status(AdminClient(find_address(address, state_dir)), name, form_of(form), is_verbose=verbose)


@app.command(help="Remove all applications; the daemon keeps running.")
def shutdown(
    address: Address = None,
    state_dir: StateDir = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    engine: WithEngine = Engine.SERVD,
) -> None:
    """Asks first."""
    from servd.commands.verbs import shut_down
    from servd.daemon.admin_client import AdminClient, find_address

    cluster = cluster_at(address, state_dir) if engine == Engine.RAY else None
    where = cluster.address if cluster else find_address(address, state_dir)
    if not yes:
        typer.confirm(f"This will shut down Serve at {where}. Continue?", default=False, abort=True)
    if cluster:
        ray_commands().shut_down(cluster)
        return
    shut_down(AdminClient(where))


@app.command(help="Remove one application; the others stay.")
def delete(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    address: Address = None,
    state_dir: StateDir = None,
    engine: WithEngine = Engine.SERVD,
) -> None:
    """Returns when everything of it is gone."""
    if engine == Engine.RAY:
        ray_commands().delete(cluster_at(address, state_dir), name)
        return
    from servd.commands import verbs
    from servd.daemon.admin_client import AdminClient, find_address

    verbs.delete(AdminClient(find_address(address, state_dir)), name)


def _show_version(wanted: bool) -> None:
    if wanted:
        cli_operations.version()
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    check_engine(context.invoked_subcommand)
    if debug:
        os.environ["SERVD_DEBUG"] = "1"


app.registered_commands += cli_operations.app.registered_commands
app.registered_commands += engine_cli.app.registered_commands


def _wants_tracebacks() -> bool:
    return os.environ.get("SERVD_DEBUG", "0") not in ("", "0")


def main() -> None:
    """Entry of the `servd` script: errors on stderr, tracebacks only with --debug or SERVD_DEBUG=1."""
    try:
        app(prog_name="servd")
    except BrokenPipeError:
        # whoever read our output has gone; the interpreter would complain again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        # typer answers to most of them; this one came while it was still reading the commands
        sys.exit(130)
    except Exception as error:
        if _wants_tracebacks():
            raise
        text = str(error) if isinstance(error, ServdError) else f"{type(error).__name__}: {told(error, at_fork=True)}"
        print(f"Error: {text}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
