"""What `servd errors` does."""

from typing import Any

from servd.commands.console import say, table
from servd.commands.operations import TABLE, moment, show
from servd.daemon.admin_client import AdminClient
from servd.exceptions import ConfigError
from servd.ground.names import on_one_line

HEAD = ("id", "deployment", "count", "last", "what", "where", "last request")


def show_errors(client: AdminClient, target: str, form: str) -> None:
    """Print what applications raised, the latest first. target: APP, APP/DEPLOYMENT or "" for all.

    Raises:
        ConfigError: there is no such application or deployment.
    """
    client.probe()
    app, _, deployment = target.partition("/")
    found = client.errors(app, deployment)
    if target and not found:
        _check(client.status()["applications"], app, deployment)
    if form != TABLE:
        show(found, form)
        return
    if not found:
        say(f"No error of {target or 'any application'} is known.")
        return
    rows = [
        (
            one["id"],
            _where(one),
            str(one["count"]),
            moment(one["last_at"]),
            one["message"],
            one["place"],
            on_one_line(next(iter(one["request_ids"]), "")),
        )
        for one in found
    ]
    table(HEAD, rows)


def show_error(client: AdminClient, error_id: str, form: str) -> None:
    """Print one of them, its traceback last."""
    client.probe()
    one = client.error(error_id)
    if form != TABLE:
        show(one, form)
        return
    about = {
        "error": one["id"],
        "deployment": _where(one),
        "method": one["method"],
        "route": one["route"],
        "place": one["place"],
        "count": one["count"],
        "first": moment(one["first_at"]),
        "last": moment(one["last_at"]),
        "requests": ", ".join(_named(request_id, one.get("trace_ids", {})) for request_id in one["request_ids"]),
    }
    for name, value in about.items():
        if value:
            # a request's id and path may hold anything
            print(f"{name}: {on_one_line(str(value))}")
    print(f"\n{one['traceback']}")


def _where(one: dict[str, Any]) -> str:
    """Application and deployment; of a failed build the application."""
    return f"{one['application']}/{one['deployment']}" if one["deployment"] else str(one["application"])


def _named(request_id: str, traces: dict[str, str]) -> str:
    return f"{request_id} (trace {traces[request_id]})" if request_id in traces else request_id


def _check(applications: dict[str, Any], app: str, deployment: str) -> None:
    if app not in applications:
        raise ConfigError(f"there is no application {app!r}, and no error of one is kept")
    names = sorted(one["name"] for one in applications[app]["deployments"].values())
    if deployment and deployment not in names:
        raise ConfigError(
            f"application {app!r} has no deployment {deployment!r}; it has {', '.join(names) or 'none yet'}"
        )
