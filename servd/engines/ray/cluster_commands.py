"""What `deploy`, `status`, `config`, `diff`, `delete` and `shutdown` do with a Ray cluster."""

import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from servd.commands.console import STATUS_HEAD, ProgressRow, say, status_rows, table, warn, without_colours
from servd.commands.operations import TABLE, show
from servd.commands.verbs import SEPARATOR
from servd.commands.waiting import Look, until_running
from servd.documents.files import dump_yaml
from servd.engines.ray.check import ReadFile, check_document, read
from servd.engines.ray.cluster import Cluster, ClusterRefusedError, SlowClusterError
from servd.engines.ray.cluster_document import ClusterDocument, cluster_document, differing_http
from servd.engines.ray.findings import EXIT_FAILS, Severity, exit_code
from servd.exceptions import ConfigError, DeployError
from servd.ground.clock import SystemClock, block_for

POLL_S = 1.0


def deploy(
    cluster: Cluster, path: str, *, wait: bool, timeout_s: float | None, builds: bool = True, force: bool = False
) -> None:
    """Send a config file with its code; with `wait` stay until its applications run and every proxy answers.

    Args:
        builds: whether deployments are listed that only the code knows. force: also what the check finds failing.

    Raises:
        ConfigError: it would fail there, or change options of the data port that cannot change. ClusterRefusedError: the
            cluster does not take it. DeployError: see `wait_until_running`.
    """
    document = _checked(path, force=force)
    sent = cluster_document(document, builds=builds)
    before = cluster.details()
    _check_http(cluster, sent, before)
    for name in _removed(before, document):
        say(f"{path} does not name application {name!r}, which runs there: it will be removed.")
    for name, package in sent.packages.items():
        if not cluster.has_package(name):
            cluster.upload(name, package.data)
            say(f"Uploaded {name}, {len(package.data) / 2**20:.1f} MiB.")
    try:
        cluster.put(sent.value)
    except ClusterRefusedError as error:
        if error.status == 400:
            hint = "what it had of the document before that stays DEPLOYING until a good one comes"
            raise DeployError(f"{error}\n({hint})") from error
        raise
    say(f"Sent deploy request to {cluster.address}.", "SUCC")
    if wait:
        wait_until_running(cluster, document.checked.apps, timeout_s)


def _checked(path: str, *, force: bool) -> ReadFile:
    document = read(path)
    found = check_document(document)
    for one in found:
        if one.severity != Severity.TRANSLATED:
            print(one, file=sys.stderr)
    if exit_code(found) == EXIT_FAILS and not force:
        raise ConfigError(f"{path} would fail on a Ray cluster; nothing was sent (--force sends it all the same)")
    return document


def _check_http(cluster: Cluster, sent: ClusterDocument, details: Mapping[str, Any]) -> None:
    running = details.get("http_options") or {}
    differing = differing_http(sent.given_http, running)
    if differing:
        raise ConfigError(
            f"the data port at {cluster.address} was opened with other options, and a cluster never changes them: "
            f"{', '.join(differing)}; write those into the file, or remove all applications first: "
            "`servd shutdown --engine ray`"
        )


def _removed(details: Mapping[str, Any], document: ReadFile) -> list[str]:
    return [
        name
        for name, app in details.get("applications", {}).items()
        if app.get("source") == "declarative" and name not in document.checked.apps and app["status"] != "DELETING"
    ]


def wait_until_running(cluster: Cluster, apps: Iterable[str], timeout_s: float | None) -> None:
    """Show progress until each of `apps` is RUNNING or has failed, and every proxy answers.

    Raises:
        DeployError: see `until_running`.
    """
    names = tuple(apps)
    rows: list[ProgressRow] = []

    def look(wait_s: float) -> Look:
        nonlocal rows
        block_for(min(wait_s, POLL_S))
        try:
            details = cluster.details()
        except SlowClusterError as error:
            # it has the document: what was begun goes on
            return Look(rows, [str(error)], [])
        rows = rows_of(details, names)
        return Look(rows, *unfinished(details, names))

    until_running(names, timeout_s, look)


def unfinished(details: Mapping[str, Any], names: Iterable[str]) -> tuple[list[str], list[str]]:
    """What is waited for, with the deployments' own messages, and what is wrong with applications that failed."""
    waiting, failures = [], []
    for name in names:
        app = details["applications"].get(name)
        if app is None or app["status"] == "DELETING":
            failures.append(f"application {name!r} was removed while it was deployed")
        elif app["status"] == "DEPLOY_FAILED":
            # why its constructor failed is told of the deployment alone
            reasons = [_innermost(message) for message in (app["message"], *_own_messages(app))]
            failures.append(": ".join([f"application {name!r} failed to deploy", *reasons]))
        elif app["status"] != "RUNNING":
            messages = _own_messages(app)
            waiting.append(": ".join([f"application {name!r} is {app['status']}", *messages]))
    if not waiting and not failures:
        proxies = details.get("proxies") or {}
        waiting = [
            f"the proxy of node {node} is {one['status']}"
            for node, one in proxies.items()
            if one["status"] != "HEALTHY"
        ]
    return waiting, failures


def _own_messages(app: Mapping[str, Any]) -> list[str]:
    return [one["message"] for one in app["deployments"].values() if one.get("message")]


def _innermost(message: str) -> str:
    """Of tracebacks that quote each other the one that the others are about."""
    text = without_colours(message).strip()
    return text[max(text.rfind("Traceback (most recent call last):"), 0) :]


def rows_of(details: Mapping[str, Any], names: Iterable[str]) -> list[ProgressRow]:
    """Rows of the named applications and their deployments."""
    rows = []
    for name in names:
        app = details["applications"].get(name)
        if app is None:
            continue
        rows.append(ProgressRow(name, "", app["status"], message=app["message"]))
        for bare, one in app["deployments"].items():
            running = sum(replica["state"] == "RUNNING" for replica in one["replicas"])
            rows.append(ProgressRow(name, bare, one["status"], running, one["target_num_replicas"], one["message"]))
    return rows


def show_status(cluster: Cluster, name: str | None, form: str) -> None:
    """Print how the applications are: a table, or what the cluster says of them.

    Raises:
        ConfigError: there is no application of that name.
    """
    details = cluster.details()
    apps = details["applications"]
    if name is not None and name not in apps:
        raise ConfigError(f"no application {name!r} runs there; it has {', '.join(sorted(apps)) or 'none'}")
    names = [name] if name is not None else list(apps)
    if form != TABLE:
        show({one: apps[one] for one in names}, form)
        return
    if not names:
        say(f"No application runs on the Ray cluster at {cluster.address}.")
        return
    table(STATUS_HEAD, status_rows(_as_own(details), names, SystemClock().wall_time()))


def _as_own(details: Mapping[str, Any]) -> dict[str, Any]:
    """Today's details with the keys that a table of servd's own status needs."""
    return {
        "applications": {
            name: {**app, "deployments": {bare: {**one, "name": bare, "recent_dead_replicas": []} for bare, one in
                                          app["deployments"].items()}}
            for name, app in details["applications"].items()
        }
    }  # fmt: skip


def show_config(cluster: Cluster, name: str | None) -> None:
    """Print what was sent for each application, as YAML; programs deployed without one have none."""
    configs = {key: app.get("deployed_app_config") for key, app in cluster.details()["applications"].items()}
    wanted = [configs.get(name)] if name is not None else list(configs.values())
    print(SEPARATOR.join(dump_yaml(one) for one in wanted if one))


def shut_down(cluster: Cluster) -> None:
    """Remove all applications."""
    cluster.shut_down()
    say(f"Removed all applications of the Ray cluster at {cluster.address}.", "SUCC")


def delete(cluster: Cluster, name: str) -> None:
    """Remove one application; the others are sent again as they are.

    Raises:
        ConfigError: there is none of that name, or a program deployed it.
    """
    details = cluster.details()
    apps = details["applications"]
    if name not in apps:
        raise ConfigError(f"no application {name!r} runs there; it has {', '.join(sorted(apps)) or 'none'}")
    if apps[name].get("source") != "declarative":
        raise ConfigError(
            f"application {name!r} came from a program, not from a document: `serve.delete({name!r})` there"
        )
    cluster.put(without(details, name))
    while name in cluster.details()["applications"]:
        block_for(POLL_S)
    say(f"Removed application {name!r}.", "SUCC")


def without(details: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The document of what runs but for one application."""
    kept = [
        app["deployed_app_config"]
        for key, app in details["applications"].items()
        if key != name and app.get("deployed_app_config") and app.get("source") == "declarative"
    ]
    found: dict[str, Any] = {"http_options": details["http_options"], "applications": kept}
    if details.get("proxy_location"):
        found["proxy_location"] = details["proxy_location"]
    return found


def show_diff(cluster: Cluster, path: str, form: str, *, builds: bool = True) -> bool:
    """Print how what a file would send differs from what was sent; gives whether it differs."""
    document = read(path)
    sent = cluster_document(document, builds=builds)
    details = cluster.details()
    before = {
        name: app["deployed_app_config"]
        for name, app in details["applications"].items()
        if app.get("deployed_app_config") and app.get("source") == "declarative"
    }
    after = {app["name"]: app for app in sent.value["applications"]}
    for option in differing_http(sent.given_http, details.get("http_options") or {}):
        warn(f"the data port there has another {option}")
    lines = list(difflib.unified_diff(_lines(before), _lines(after), cluster.address, path, lineterm=""))
    if form != TABLE:
        show({"diff": lines}, form)
    else:
        print("\n".join(lines) if lines else f"{path} is what runs on the Ray cluster at {cluster.address}.")
    return bool(lines)


def _lines(apps: Mapping[str, Any]) -> list[str]:
    ordered = {name: _sorted(apps[name]) for name in sorted(apps)}
    return dump_yaml(ordered).splitlines() if ordered else []


def _sorted(value: Any) -> Any:
    """Keys in one order: the cluster gives them back in another."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
