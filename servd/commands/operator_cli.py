"""The commands that operators use: history, plans, scale, logs, stacks; `build` and `exec`; each imports what it needs."""

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from servd.commands.cli_options import (
    Address,
    AppDir,
    DashboardPort,
    Form,
    PlanOnly,
    StateDir,
    TableFormat,
    Timeout,
    Wait,
    fail,
    state_dir_of,
)
from servd.ground.package import VERSION
from servd.ground.settings import (
    DEFAULT_ADMIN_HOST,
    DEFAULT_ADMIN_PORT,
    DEFAULT_DASHBOARD_PORT,
    DEFAULT_HTTP_HOST,
    DEFAULT_HTTP_PORT,
)

app = typer.Typer()


class Order(StrEnum):
    """By what `top` sorts, as `figures.ORDERS`."""

    CPU = "cpu"
    MEMORY = "memory"
    RATE = "rate"
    LATENCY = "latency"
    ERRORS = "errors"


LOG_TARGETS = "controller, proxy, fork_server, daemon, APP, APP/DEPLOYMENT or a replica id."
DEFAULT_LINES = 50
STACK_TARGETS = "APP, APP/DEPLOYMENT, a replica id or a pid."


@app.command(help="List the revisions of the goal, newest first.")
def history(
    address: Address = None,
    state_dir: StateDir = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    form: TableFormat = Form.TABLE,
) -> None:
    """Each accepted document is a revision."""
    from servd.commands.operations import show_history
    from servd.daemon.admin_client import AdminClient, find_address

    show_history(AdminClient(find_address(address, state_dir)), limit, form)


@app.command(help="Remove stored code that no revision within reach needs.")
def prune(
    address: Address = None,
    state_dir: StateDir = None,
    keep: Annotated[int, typer.Option(min=0, help="Latest revisions whose code stays.")] = 10,
    plan: PlanOnly = False,
) -> None:
    """What runs keeps its code whatever its revision; older revisions cannot be rolled back to any more."""
    from servd.commands.operations import prune_code
    from servd.daemon.admin_client import AdminClient, find_address

    prune_code(AdminClient(find_address(address, state_dir)), keep, plan_only=plan)


@app.command(help="Go back to revision N [the last one that ran].")
def rollback(
    number: Annotated[int | None, typer.Argument(metavar="[N]", min=1, show_default=False)] = None,
    address: Address = None,
    state_dir: StateDir = None,
    plan: PlanOnly = False,
    wait: Wait = False,
    timeout: Timeout = None,
) -> None:
    """The code comes back as it was accepted then; the result is a new revision."""
    from servd.commands.operations import roll_back
    from servd.daemon.admin_client import AdminClient, find_address

    client = AdminClient(find_address(address, state_dir))
    roll_back(client, number, plan_only=plan, wait=wait or timeout is not None, timeout_s=timeout)


@app.command(help="Let the daemon become the servd that is installed now.")
def upgrade(
    address: Address = None,
    state_dir: StateDir = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until every process is replaced; exit 1 if it fails.")
    ] = False,
    timeout: Timeout = None,
) -> None:
    """Requests go on; each process makes room for one of the new version."""
    from servd.commands.upgrade import upgrade as upgrade_daemon
    from servd.daemon.admin_client import AdminClient, find_address

    client = AdminClient(find_address(address, state_dir))
    upgrade_daemon(client, wait=wait or timeout is not None, timeout_s=timeout)


@app.command(help="Pin a replica count until the next deploy.")
def scale(
    target: Annotated[str, typer.Argument(metavar="APP/DEPLOYMENT", show_default=False)],
    count: Annotated[int, typer.Argument(metavar="N", min=0, show_default=False)],
    address: Address = None,
    state_dir: StateDir = None,
) -> None:
    """Also where it autoscales."""
    from servd.commands.operations import scale as pin
    from servd.daemon.admin_client import AdminClient, find_address

    pin(AdminClient(find_address(address, state_dir)), target, count)


@app.command(help="Print log lines in order of time: all, or TARGET's.")
def logs(
    target: Annotated[str | None, typer.Argument(metavar="[TARGET]", help=LOG_TARGETS, show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[
        int | None,
        typer.Option("--lines", min=0, help="Last lines [50; all with --request or --since].", show_default=False),
    ] = None,
    request: Annotated[
        str | None, typer.Option(metavar="ID", help="Only of this request, proxies included.", show_default=False)
    ] = None,
    level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="Only of this level and above.", show_default=False)
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="SPAN", help="Only of the last 90s, 10m, 2h or 1d.", show_default=False)
    ] = None,
    address: Address = None,
    state_dir: StateDir = None,
) -> None:
    """Reads the files on this host; works without a daemon too."""
    from servd.commands.log_files import patterns, seconds_ahead, show_logs, wish_of
    from servd.daemon.admin_client import NO_CONTROLLER, AdminClient, RefusedError, UnreachableError, find_address

    # what is typed wrong is told before anybody is asked
    wish_of(request, level, since)
    status = None
    try:
        status = AdminClient(find_address(address, state_dir)).status()
    except (UnreachableError, RefusedError) as error:
        # the logs say why no controller can be started
        if address is not None or (isinstance(error, RefusedError) and error.status != NO_CONTROLLER):
            raise
    # without an explicit address the state directory says which logs are meant
    is_told = status is not None and (address is not None or state_dir is None)
    log_dir = status["log_dir"] if status and is_told else os.path.join(state_dir_of(state_dir), "logs")
    if not os.path.isdir(log_dir):
        fail(f"there is no log directory {log_dir} on this host; name the daemon with --state-dir or -a")
    ahead_s = seconds_ahead(status)
    wish = wish_of(request, level, since, ahead_s)
    wanted = patterns(status, target, with_proxies=bool(request))
    if lines is None and not (request or since):
        lines = DEFAULT_LINES
    # the files of proxies and fork servers are everybody's
    name = target if target and status and target in status["applications"] else ""

    def renew() -> tuple[str, ...]:
        try:
            return patterns(AdminClient(find_address(address, state_dir)).status(), target, with_proxies=bool(request))
        except (UnreachableError, RefusedError):
            # its files are still there
            return wanted

    try:
        renewed = renew if name else None
        show_logs(log_dir, wanted, wish, app=name, lines=lines, follow=follow, ahead_s=ahead_s, renew=renewed)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command(help="List what applications raised.")
def errors(
    target: Annotated[
        str | None, typer.Argument(metavar="[APP[/DEPLOYMENT]]", help="Or: show ID", show_default=False)
    ] = None,
    error_id: Annotated[str | None, typer.Argument(metavar="[ID]", show_default=False, hidden=True)] = None,
    form: TableFormat = Form.TABLE,
    address: Address = None,
    state_dir: StateDir = None,
) -> None:
    """Grouped by type and place, the latest first; `show ID` prints one with its traceback."""
    from servd.commands.errors import show_error, show_errors
    from servd.daemon.admin_client import AdminClient, find_address

    if error_id is not None and target != "show":
        raise typer.BadParameter("use `servd errors [APP[/DEPLOYMENT]]` or `servd errors show ID`", param_hint="ID")
    client = AdminClient(find_address(address, state_dir))
    if error_id is not None:
        show_error(client, error_id, form)
    else:
        show_errors(client, target or "", form)


@app.command(help="Watch requests, memory and CPU of replicas.")
def top(
    target: Annotated[
        str | None, typer.Argument(metavar="[APP[/DEPLOYMENT]]", help="Only these.", show_default=False)
    ] = None,
    order: Annotated[
        Order | None, typer.Option("--sort", help="The most of it first [as deployed].", show_default=False)
    ] = None,
    interval: Annotated[float, typer.Option(min=0.5, max=3600, metavar="SECONDS", help="Between two looks.")] = 2.0,
    form: TableFormat = Form.TABLE,
    address: Address = None,
    state_dir: StateDir = None,
) -> None:
    """Until Ctrl-C; once, where the output is no terminal."""
    from servd.commands.top import watch
    from servd.daemon.admin_client import AdminClient, find_address

    watch(AdminClient(find_address(address, state_dir)), target or "", form, order=order or "", interval_s=interval)


@app.command(name="open", help="Print the URL of the live page; on a desktop open it.")
def open_page(
    address: Address = None,
    state_dir: StateDir = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print it.")] = False,
) -> None:
    """With a token the page asks for it."""
    from servd.commands.page import open_page as open_url
    from servd.daemon.admin_client import AdminClient, find_address

    open_url(AdminClient(find_address(address, state_dir)), may_open=not no_browser)


@app.command(help="Print the Python stacks of live replicas.")
def stack(
    target: Annotated[str, typer.Argument(metavar="TARGET", help=STACK_TARGETS, show_default=False)],
    address: Address = None,
    state_dir: StateDir = None,
) -> None:
    """Threads and asynchronous tasks; needs no root."""
    from servd.commands.operations import show_stacks
    from servd.daemon.admin_client import AdminClient, find_address

    show_stacks(AdminClient(find_address(address, state_dir)), target)


@app.command(help="Write the config file of applications from their code.")
def build(
    import_paths: Annotated[list[str], typer.Argument(metavar="IMPORT_PATH...", show_default=False)],
    app_dir: AppDir = ".",
    kubernetes_format: Annotated[
        bool, typer.Option("--kubernetes_format", "-k", help="camelCase keys, as a Kubernetes resource has them.")
    ] = False,
    output_path: Annotated[
        str | None, typer.Option("--output-path", "-o", metavar="FILE", help="Write here [stdout].", show_default=False)
    ] = None,
    multi_app: Annotated[
        bool,
        typer.Option(
            "--multi-app",
            "-m",
            help="A multi-app config, as of several paths anyway; two of one route prefix are refused.",
        ),
    ] = False,
) -> None:
    """Asks no daemon."""
    from servd.commands.build import build as build_text

    folder = os.path.dirname(os.path.abspath(output_path)) if output_path else os.getcwd()
    text = build_text(import_paths, app_dir=app_dir, folder=folder, multi_app=multi_app, kubernetes=kubernetes_format)
    if multi_app or len(import_paths) > 1:
        what = "names, and prefixes of them where several would answer at /"
        typer.echo(f"Note: the applications got generated {what}; choose better ones in the file.", err=True)
    if output_path is None:
        sys.stdout.write(text)
        return
    with open(output_path, "w", encoding="utf-8") as file:
        file.write(text)


@app.command(
    name="exec",
    help="Run a command in which `import ray` gives servd.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def execute(command: Annotated[list[str], typer.Argument(metavar="COMMAND...", show_default=False)]) -> None:
    """Its exit code is the command's."""
    import servd.compat

    folder = os.path.join(os.path.dirname(os.path.abspath(servd.compat.__file__)), "on_path")
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        typer.echo(f"Error: cannot run {command[0]}: {error.strerror}", err=True)
        # as shells have it: not there, or there and no program
        raise typer.Exit(127 if isinstance(error, FileNotFoundError) else 126) from error


@app.command(help="Write a small application, with its config, test and image.")
def init(name: Annotated[str, typer.Argument(metavar="NAME", help="A new folder.", show_default=False)]) -> None:
    """Its test passes at once."""
    from servd.commands.new_project import write_project

    for file in write_project(name):
        typer.echo(os.path.join(name, file))
    typer.echo(f"Next: cd {name}; pip install httpx pytest; pytest; servd run serve.yaml")
    typer.echo("then: curl 'http://127.0.0.1:8000/score?text=a+great+day'")


@app.command(help="Look for what is wrong with the host or the set-up.")
def doctor(
    state_dir: StateDir = None,
    admin_host: Annotated[str, typer.Option(help="Host of the admin API.")] = DEFAULT_ADMIN_HOST,
    http_host: Annotated[str, typer.Option(help="Host of the data plane.")] = DEFAULT_HTTP_HOST,
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the data plane.")] = DEFAULT_HTTP_PORT,
    admin_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the admin API.")] = DEFAULT_ADMIN_PORT,
    dashboard_port: DashboardPort = DEFAULT_DASHBOARD_PORT,
) -> None:
    """Says of each fault what to do; exit 1 if there is one."""
    from servd.commands.doctor import Port, findings, show

    ports = [Port(http_host, http_port, "--http-port"), Port(admin_host, admin_port, "--admin-port")]
    if dashboard_port:
        ports.append(Port(admin_host, dashboard_port, "--dashboard-port"))
    if not show(findings(state_dir_of(state_dir), ports)):
        raise typer.Exit(1)


@app.command(help="Print the version.")
def version() -> None:
    """Of this program, not of a daemon."""
    typer.echo(f"servd {VERSION}")


@app.command(help="Print the JSON Schema of config files.")
def schema(
    single_app: Annotated[bool, typer.Option("--single-app", help="Of single-app configs (V1).")] = False,
) -> None:
    """For editors and checkers."""
    import json

    from servd.schema import ServeApplicationSchema, ServeDeploySchema

    model = ServeApplicationSchema if single_app else ServeDeploySchema
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    typer.echo(json.dumps(found, indent=2))


@app.command(help="Print a Grafana dashboard for the metrics.")
def grafana() -> None:
    """To be imported in Grafana, which asks for the Prometheus that scrapes `/metrics`."""
    import json

    from servd.commands.grafana import dashboard

    typer.echo(json.dumps(dashboard(), indent=2))


@app.command(
    name="systemd-unit",
    help="Print a systemd unit that runs the daemon.",
    context_settings={"ignore_unknown_options": True},
)
def systemd_unit(
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- START_OPTIONS...]", help="Options of `servd start`.", show_default=False),
    ] = None,
    state_dir: StateDir = None,
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Account of a system unit [unit of the user manager].")
    ] = None,
) -> None:
    """Type=notify: ready when the last goal is serving again."""
    from servd.commands.service_unit import state_dir_of_user, unit

    folder = state_dir_of(state_dir) if state_dir or user is None else state_dir_of_user(user)
    sys.stdout.write(unit(folder, options or (), user=user))
