"""What `servd run` does: deploy, stay, clean up."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from servd.commands.cli_options import look_at_traces, state_dir_of
from servd.commands.console import say, warn
from servd.commands.verbs import application_order, read_document
from servd.commands.waiting import wait_until_running
from servd.daemon.admin_client import AdminClient, NoServdError, UnreachableError, find_address, named_address
from servd.daemon.launch import free_admin_port, log_out_notice, start_detached, start_tied
from servd.daemon.presence import LOOK_EVERY_S, Presence
from servd.documents.files import load_document, parse_document, resolve_env, resolve_path
from servd.exceptions import ConfigError, ServdError
from servd.ground.clock import block_for
from servd.ground.settings import DEFAULT_ADMIN_PORT, Settings, admin_socket, socket_dir_for, url_of

RELOAD_POLL_S = 0.5
WATCHED = (".py", ".yaml", ".yml", ".json", ".toml")
_SKIPPED = {"__pycache__", "node_modules", "venv"}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of `servd run`. host, port: None = not given."""

    target: str
    is_document: bool
    arguments: tuple[str, ...] = ()
    runtime_env_file: str | None = None
    runtime_env_json: str | None = None
    working_dir: str | None = None
    app_dir: str = "."
    host: str | None = None
    port: int | None = None
    name: str = "default"
    route_prefix: str | None = None
    is_hidden: bool = False
    reload: bool = False
    log_to_stderr: bool = False
    records_traces: bool = False


@dataclass(slots=True)
class Deployed:
    """What a run put into the goal. replaced: those that had existed before."""

    apps: tuple[str, ...] = ()
    replaced: set[str] = field(default_factory=set)


def runtime_env_of(options: RunOptions) -> dict[str, Any]:
    """The runtime environment of an import path, its paths made absolute.

    Raises:
        ConfigError: both forms given, or one of them is wrong.
    """
    if options.runtime_env_file and options.runtime_env_json:
        raise ConfigError("give either --runtime-env or --runtime-env-json, not both")
    given: Any = {}
    folder = os.getcwd()
    if options.runtime_env_file:
        given = load_document(options.runtime_env_file).value
        folder = os.path.dirname(os.path.abspath(options.runtime_env_file))
    elif options.runtime_env_json:
        given = parse_document(options.runtime_env_json.encode(), "--runtime-env-json").value
    if not isinstance(given, dict):
        raise ConfigError("a runtime_env must be an object")
    env = resolve_env(given, folder)
    if options.working_dir and env.get("working_dir") is not None:
        warn("--working-dir overrides working_dir of the runtime_env")
    return env


def order_of(options: RunOptions) -> dict[str, Any]:
    """Body of the PUT that adds the application of an import path, in its runtime environment.

    Raises:
        ConfigError: the environment, or an argument, is wrong.
    """
    working_dir = resolve_path(options.working_dir, os.getcwd()) if options.working_dir else None
    env = runtime_env_of(options)
    return application_order(
        options.target, options.arguments, app_dir=options.app_dir, runtime_env=env, working_dir=working_dir
    )


def submit(client: AdminClient, options: RunOptions, deployed: Deployed) -> None:
    """Send the document or the application; `deployed` tells at any time what has to be taken back.

    Waits until every application of it runs.

    Raises:
        ConfigError, RefusedError: not accepted. DeployError: it does not come up.
    """
    before = set(client.details()["applications"])
    if options.is_document:
        document = read_document(options.target)
        if options.arguments:
            warn("arguments have no effect with a config file")
        value = _with_listener(document.value, options, multi_app=document.multi_app)
        revision = client.put(value, multi_app=document.multi_app, config_file=document.path)
        deployed.apps, deployed.replaced = document.apps, before & set(document.apps)
        _await(client, revision, deployed)
        return
    order = order_of(options)
    if options.is_hidden or options.route_prefix is not None:
        order["route_prefix"] = options.route_prefix
    given = {"host": options.host, "port": options.port}
    order.update({key: value for key, value in given.items() if value is not None})
    revision = client.put_application(options.name, order)
    deployed.apps, deployed.replaced = (options.name,), before & {options.name}
    _await(client, revision, deployed)


def _await(client: AdminClient, revision: int, deployed: Deployed) -> None:
    wait_until_running(client, revision, deployed.apps, None)
    _tell_where(client, deployed.apps)


def _tell_where(client: AdminClient, apps: tuple[str, ...]) -> None:
    """Say of each application where it can be asked. A URL ends its line: terminals take a full stop for a part of it."""
    status = client.status()
    http = status["http"]
    root = f"{url_of(http['host'], http['port'], is_tls=http['tls'])}{http['root_path']}"
    for name in apps:
        prefix = status["applications"].get(name, {}).get("route_prefix")
        where = f": {root}{prefix}" if prefix is not None and http["listening"] else "."
        say(f"Deployed application {name!r} successfully{where}", "SUCC")


def _with_listener(document: dict[str, Any], options: RunOptions, *, multi_app: bool) -> dict[str, Any]:
    given = {"host": options.host, "port": options.port}
    given = {key: value for key, value in given.items() if value is not None}
    if not given:
        return document
    if multi_app:
        return {**document, "http_options": {**(document.get("http_options") or {}), **given}}
    return {**document, **given}


def take_back(client: AdminClient, deployed: Deployed, *, keep_replaced: bool) -> None:
    """Remove the applications of this run; with keep_replaced not those that had existed before."""
    for name in deployed.apps:
        if keep_replaced and name in deployed.replaced:
            continue
        try:
            client.delete_application(name)
        except ServdError as error:
            warn(f"could not remove application {name!r}: {error}")


def announce(options: RunOptions) -> None:
    """The first line: what is run."""
    kind = "config file" if options.is_document else "import path"
    say(f'Running {kind}: "{options.target}".')


@contextmanager
def daemon_for(
    options: RunOptions, address: str | None, state_dir: str | None, *, is_blocking: bool
) -> Iterator[AdminClient]:
    """A client of the daemon that answers; without one, of a new one: tied to this command if it blocks, else detached.

    Args:
        state_dir: of the command line; None = not given.

    Raises:
        UnreachableError: an address was named, and nothing answers there. ServdError: no daemon could be started.
    """
    try:
        client = AdminClient(find_address(address, state_dir))
        client.probe()
    except (UnreachableError, NoServdError):
        # any program may have the default port, such as the agent of a Ray that runs too
        if named_address(address, state_dir) is not None:
            raise
    else:
        if options.log_to_stderr:
            warn("--log-to-stderr has no effect: a daemon runs already; `servd logs -f` shows its lines")
        if options.records_traces:
            warn("--trace-endpoint has no effect: a daemon runs already, as it was started")
        yield client
        return
    look_at_traces()
    folder = state_dir_of(state_dir)
    settings = Settings(
        state_dir=folder,
        socket_dir=socket_dir_for(folder),
        http_host=options.host,
        http_port=options.port,
        admin_port=free_admin_port(),
        open_http=False,
        start_dir=os.getcwd(),
        python_path=os.environ.get("PYTHONPATH", ""),
    )
    if settings.admin_port != DEFAULT_ADMIN_PORT:
        say(f"Another program has port {DEFAULT_ADMIN_PORT}: the live page will be at {settings.page_url}.")
    started = AdminClient(f"unix://{admin_socket(settings.socket_dir)}")
    if not is_blocking:
        daemon = start_detached(settings, log_to_stderr=options.log_to_stderr)
        say(f"No daemon ran: started one in the background, pid {daemon.pid}; its logs are in {settings.log_dir}.")
        if notice := log_out_notice(settings.socket_dir):
            warn(notice)
        yield started
        return
    with start_tied(settings, log_to_stderr=options.log_to_stderr):
        say(f"No daemon ran: started one for this command; its logs are in {settings.log_dir}.")
        yield started


def run(client: AdminClient, options: RunOptions, *, is_blocking: bool) -> None:
    """The whole command against a daemon that answers.

    Raises:
        ServdError: it was not deployed, and what this run had added is taken back; or the daemon has stopped.
    """
    client.probe()
    deployed = Deployed()
    with _interrupts() as interrupted:
        try:
            submit(client, options, deployed)
        except ServdError:
            take_back(client, deployed, keep_replaced=True)
            raise
        except (KeyboardInterrupt, OSError):
            # an OSError of what is shown, where the terminal is gone
            take_back(client, deployed, keep_replaced=False)
            if not interrupted:
                raise
            return
        if is_blocking:
            _stay(client, options, interrupted)
            # the terminal may be gone
            with suppress(OSError):
                say("Removing the applications of this run.")
            take_back(client, deployed, keep_replaced=False)


def _stay(client: AdminClient, options: RunOptions, interrupted: list[int]) -> None:
    """Return when somebody interrupts this. Raises StoppedError: the daemon has ended before."""
    try:
        presence = Presence(client)
        if not options.reload:
            while not interrupted:
                block_for(LOOK_EVERY_S)
                presence.look()
                reap_adopted()
            return
        folder = os.path.abspath(os.path.dirname(options.target) if options.is_document else options.app_dir)
        seen = sources(folder)
        while not interrupted:
            block_for(RELOAD_POLL_S)
            presence.look()
            reap_adopted()
            now = sources(folder)
            if now == seen:
                continue
            seen = now
            say("Sources changed, deploying again.")
            try:
                submit(client, options, Deployed())
            except ServdError as error:
                # also what the daemon refuses: the next edit may mend it
                warn(str(error))
    except KeyboardInterrupt:
        pass


def sources(folder: str) -> dict[str, tuple[int, int]]:
    """Path -> (change time, size) of every source file below `folder`, hidden folders left out."""
    found = {}
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED]
        for name in names:
            if name.endswith(WATCHED):
                try:
                    status = os.stat(os.path.join(path, name))
                except OSError:
                    continue
                found[os.path.join(path, name)] = (status.st_mtime_ns, status.st_size)
    return found


def reap_adopted() -> None:
    """In a container this may be process 1, to which whoever loses its parent is given: wait for those that have ended."""
    if os.getpid() == 1:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM and a terminal that is closed raise KeyboardInterrupt once; the list has the signal then."""
    # no event of `threading`: its lock may be held by what is interrupted
    happened: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if not happened:
            happened.append(number)
            raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield happened
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
