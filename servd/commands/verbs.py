"""What `deploy`, `status`, `config` and `shutdown` do."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from servd.commands.console import (
    STATUS_HEAD,
    VERBOSE_HEAD,
    say,
    status_rows,
    table,
    warn,
    without_colours,
)
from servd.commands.figures import show_figures
from servd.commands.waiting import POLL_S, wait_until_running
from servd.daemon.admin_client import AdminClient, RefusedError
from servd.documents.files import DocumentFile, dump_yaml, load_document, resolve_paths
from servd.exceptions import ConfigError, DeployError, ServdError
from servd.ground.clock import SystemClock
from servd.schema import EMPTY_CONFIG, parse_v1, parse_v2

SEPARATOR = "\n\n---\n\n"
_DEFAULT_APP = "default"
_AS_ABOVE = "(as above)"
_WITHOUT_NAMES = {"SINGLE_APP": "the config in force is a single-app config"}
_NO_CONFIG = "no config is in force; what an import path or `run` deployed has none"


@dataclass(frozen=True, slots=True)
class CheckedDocument:
    """A document that may be sent. value: as written, with absolute paths. apps: names of its applications. path: absolute."""

    value: dict[str, Any]
    multi_app: bool
    apps: tuple[str, ...]
    path: str


def read_document(path: str) -> CheckedDocument:
    """The document in a file, checked here as the daemon will check it.

    Raises:
        ConfigError: every fault with line and column. Taken for V2 where it has the key `applications`, else for V1.
    """
    file = load_document(path)
    value = resolve_paths(file.value, os.path.dirname(os.path.abspath(path)))
    multi_app = _is_multi_app(file, value)
    goal = parse_v2(value, file.place) if multi_app else parse_v1(value, file.place)
    return CheckedDocument(value, multi_app, tuple(app.name for app in goal.applications), os.path.abspath(path))


def _is_multi_app(file: DocumentFile, value: Any) -> bool:
    if isinstance(value, dict) and "applications" in value:
        return True
    if not isinstance(value, dict):
        raise ConfigError(f"{file.place(())}: ServeApplicationSchema: a config file must hold an object")
    return False


def parse_arguments(arguments: Iterable[str]) -> dict[str, str]:
    """`key=val` arguments of an application builder.

    Raises:
        ConfigError: not exactly one `=`; names the argument.
    """
    found = {}
    for argument in arguments:
        parts = argument.split("=")
        if len(parts) != 2 or not parts[0]:
            raise ConfigError(f"argument {argument!r} must have the form key=val, with exactly one '='")
        found[parts[0]] = parts[1]
    return found


def deploy_file(client: AdminClient, path: str, *, wait: bool, timeout_s: float | None) -> None:
    """Send a document; with `wait` stay until its applications run.

    Raises:
        ConfigError: the document is wrong. RefusedError: the daemon does not take it. DeployError: see `wait_until_running`.
    """
    document = read_document(path)
    client.probe()
    revision = client.put(document.value, multi_app=document.multi_app, config_file=document.path)
    say("Sent deploy request successfully.", "SUCC")
    if wait:
        wait_until_running(client, revision, document.apps, timeout_s)
        return
    say(" * Use `servd status` to check the applications' status.")
    say(" * Use `servd config` to see the current config(s).")


def show_config(client: AdminClient, name: str | None) -> None:
    """Print stored configs as YAML.

    Raises:
        ConfigError: a name where a single-app config is in force.
    """
    client.probe()
    details = client.details()
    apps = details["applications"]
    mode = details["deploy_mode"]
    if mode != "MULTI_APP":
        if name is not None:
            raise ConfigError(f"--name is not allowed here: {_WITHOUT_NAMES.get(mode, _NO_CONFIG)}")
        print(dump_yaml(_config_of(apps, _DEFAULT_APP)))
    elif name is not None:
        print(dump_yaml(_config_of(apps, name)))
    else:
        stored = [app["deployed_app_config"] for app in apps.values() if app["deployed_app_config"] is not None]
        if stored:
            print(SEPARATOR.join(dump_yaml(config) for config in stored))


def _config_of(apps: dict[str, Any], name: str) -> dict[str, Any]:
    config: dict[str, Any] | None = apps.get(name, {}).get("deployed_app_config")
    return EMPTY_CONFIG if config is None else config


def show_status(client: AdminClient, name: str | None, form: str = "yaml", *, is_verbose: bool = False) -> None:
    """Print the applications' status: form "yaml" or "json" as the contract has it, or "table" for people.

    Args:
        is_verbose: the table also says whether replicas were forked or spawned; their figures follow in another one.

    Raises:
        ConfigError: there is no application of that name.
    """
    client.probe()
    details = client.details()
    apps = details["applications"]
    status = _own_status(client)
    for line in status["notice"].splitlines():
        warn(line)
    if name is not None and name not in apps:
        raise ConfigError(f"there is no application {name!r}")
    if not apps and form != "json":
        say("There are no applications running on this servd instance.")
        return
    names = [name] if name is not None else list(apps)
    if form == "table":
        there = [app for app in names if app in status["applications"]]
        head = VERBOSE_HEAD if is_verbose else STATUS_HEAD
        table(head, status_rows(status, there, SystemClock().wall_time(), is_verbose=is_verbose))
        if is_verbose:
            _show_figures(client, name)
        return
    bare = details["deploy_mode"] == "SINGLE_APP"
    crashes = _crashes(status)
    documents = [status_document(apps[app], crashes, bare_names=bare) for app in names]
    if form == "json":
        print(json.dumps(documents[0] if name is not None else documents, indent=2))
    else:
        print(SEPARATOR.join(dump_yaml(document) for document in documents))


def _show_figures(client: AdminClient, name: str | None) -> None:
    try:
        figures = client.figures(name or "")
    except RefusedError:
        # a daemon of an edition that has none, or another server that speaks this API
        return
    if figures["applications"]:
        print()
        show_figures(figures)


def _own_status(client: AdminClient) -> dict[str, Any]:
    try:
        return {"notice": "", **client.status()}
    except ServdError:
        # another server that speaks this API: it has no such thing
        return {"notice": "", "applications": {}}


def _crashes(status: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Recently dead replicas that did not leave on their own, by full name of their deployment."""
    return {
        name: [dead for dead in deployment["recent_dead_replicas"] if dead["exit_code"] != 0]
        for app in status["applications"].values()
        for name, deployment in app["deployments"].items()
    }


def status_document(
    app: dict[str, Any], crashes: dict[str, list[dict[str, Any]]] | None = None, *, bare_names: bool
) -> dict[str, Any]:
    """Status of one application of GET V2, as `servd status` prints it; with crashes of a deployment, if there were any."""
    prefix = f"{app['name']}_" if bare_names else ""
    return {
        "name": app["name"],
        "app_status": {
            "status": app["status"],
            "message": without_colours(app["message"]),
            "deployment_timestamp": app["last_deployed_time_s"],
        },
        "deployment_statuses": [
            {
                "name": deployment["name"].removeprefix(prefix),
                "status": deployment["status"],
                "message": without_colours(deployment["message"]),
                **_post_mortems((crashes or {}).get(deployment["name"], []), deployment["message"]),
            }
            for deployment in app["deployments"].values()
        ],
    }


def _post_mortems(crashes: list[dict[str, Any]], message: str) -> dict[str, Any]:
    """Key and value for the status of a deployment; none without crashes, as the contract has it.

    A reason that stands above already, in the message or in the entry before, is not told again.
    """
    shown = []
    above = without_colours(message)
    for dead in crashes:
        reason = without_colours(dead["reason"])
        lines = without_colours("\n".join(dead["log_lines"]))
        is_told = "\n" in reason and reason in above
        above += reason
        shown.append(
            {
                "replica_id": dead["replica_id"],
                **({"signal": dead["signal"]} if dead["signal"] is not None else {"exit_code": dead["exit_code"]}),
                "age_s": round(dead["age_s"], 1),
                "open_requests": dead["open_requests"],
                "reason": _AS_ABOVE if is_told else reason,
                "last_log_lines": lines.replace(reason, _AS_ABOVE) if "\n" in reason else lines,
            }
        )
    return {"recent_dead_replicas": shown} if shown else {}


def shut_down(client: AdminClient) -> None:
    """Empty the goal, wait until everything is gone."""
    client.probe()
    client.delete()
    say("Sent shutdown request successfully; everything that ran is gone.", "SUCC")


def delete(client: AdminClient, name: str) -> None:
    """Remove one application, wait until nothing of it is left; the others stay.

    Raises:
        ConfigError: there is no such application; names those that there are.
        DeployError: somebody deployed it again meanwhile.
    """
    client.probe()
    status = client.status()
    before = status["applications"].get(name)
    if before is None:
        there = ", ".join(status["applications"]) or "none"
        raise ConfigError(f"there is no application {name!r}; there are: {there}")
    client.delete_application(name)
    status = client.status()
    while (app := status["applications"].get(name)) is not None:
        if app["last_deployed_time_s"] != before["last_deployed_time_s"]:
            raise DeployError(f"application {name!r} was deployed again while it was deleted")
        status = client.status(seen=status["version"], timeout_s=POLL_S)
    say(f"Deleted application {name!r}; everything of it is gone.", "SUCC")


def application_order(
    import_path: str,
    arguments: Iterable[str],
    *,
    app_dir: str,
    runtime_env: dict[str, Any] | None = None,
    working_dir: str | None = None,
) -> dict[str, Any]:
    """Body of the PUT that adds one application by its import path; no user code is imported here.

    Raises:
        ConfigError: an argument is not `key=val`.
    """
    env = dict(runtime_env or {})
    folder = os.path.abspath(app_dir)
    python_path = os.environ.get("PYTHONPATH", "")
    if working_dir is not None:
        env["working_dir"] = working_dir
    if env.get("working_dir") is None:
        env["working_dir"] = folder
    else:
        python_path = os.pathsep.join(part for part in (folder, python_path) if part)
    return {
        "import_path": import_path,
        "args": parse_arguments(arguments),
        "runtime_env": env,
        "python_path": python_path,
    }


def deploy_import_path(
    client: AdminClient,
    order: dict[str, Any],
    name: str,
    *,
    wait: bool,
    timeout_s: float | None,
) -> None:
    """Add or replace one application; with `wait` stay until it runs."""
    client.probe()
    revision = client.put_application(name, order)
    say(f"Sent deploy request for application {name!r} successfully.", "SUCC")
    if wait:
        wait_until_running(client, revision, (name,), timeout_s)
