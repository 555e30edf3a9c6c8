"""What `history`, `rollback`, `diff`, `validate`, `scale` and `stack` do, and `deploy --plan`."""

import difflib
import json
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import quote

from servd.commands.console import say, table
from servd.commands.verbs import CheckedDocument, read_document
from servd.commands.waiting import wait_until_running
from servd.daemon.admin_client import AdminClient
from servd.documents import runtime_env
from servd.documents.control_plane import GoalDocument
from servd.documents.files import dump_yaml
from servd.documents.sent import top_level
from servd.exceptions import ConfigError
from servd.schema import parse_v1, parse_v2

HISTORY_HEAD = ("revision", "time", "applications", "outcome", "origin")
PLAN_HEAD = ("application", "deployment", "replicas", "what happens", "because of")
FILES_SHOWN = 20
TABLE, YAML, JSON = "table", "yaml", "json"


def show(value: Any, form: str) -> None:
    """Print a value as YAML or JSON."""
    print(json.dumps(value, indent=2) if form == JSON else dump_yaml(value))


def show_history(client: AdminClient, limit: int, form: str) -> None:
    """Print the accepted changes, newest first."""
    client.probe()
    found = client.revisions(limit)
    if form != TABLE:
        show(found["revisions"], form)
        return
    rows = [
        (
            f"{item['revision']}{' *' if item['revision'] == found['revision'] else ''}",
            moment(item["at"]),
            ", ".join(item["applications"]) or ("none" if item["running"] else "none, Serve does not run"),
            "" if item["outcome"] == "undecided" else item["outcome"],
            item["origin"],
        )
        for item in found["revisions"]
    ]
    table(HISTORY_HEAD, rows) if rows else say("There is no revision yet.")


def moment(at: float) -> str:
    """Wall time in seconds as local time for people."""
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def roll_back(client: AdminClient, number: int | None, *, plan_only: bool, wait: bool, timeout_s: float | None) -> None:
    """Make the goal what it was at a revision, by default the last one before the current that ran.

    Raises:
        ConfigError: there is no such revision.
    """
    client.probe()
    found = client.revisions(1)
    current = found["revision"]
    wanted = found["last_that_ran"] if number is None else number
    if wanted is None:
        raise ConfigError(
            "no earlier revision ran and differs from the current one; `servd history` lists them: name one"
        )
    if plan_only:
        show_plan(client.rollback(wanted, revision=current, dry_run=True), TABLE)
        return
    made = client.rollback(wanted, revision=current)["revision"]
    say(f"Rolled back to revision {wanted}; this is revision {made}.", "SUCC")
    if wait:
        wait_until_running(client, made, client.revision(made)["applications"], timeout_s)


def prune_code(client: AdminClient, keep: int, *, plan_only: bool) -> None:
    """Remove code that only revisions before the latest `keep` need; with `plan_only` say what would go."""
    client.probe()
    pruned = client.prune(keep, dry_run=plan_only)
    names, size = pruned["names"], f"{pruned['freed_bytes'] / 2**20:.1f} MiB"
    if plan_only:
        say(f"Would remove {len(names)} of the stored snapshots and shipped applications, {size}.")
        for name in names:
            print(name)
        return
    say(f"Removed {len(names)} of the stored snapshots and shipped applications, {size}.", "SUCC")


def show_deploy_plan(client: AdminClient, path: str, form: str) -> None:
    """Print what deploying a file would do."""
    document = read_document(path)
    client.probe()
    show_plan(client.plan(document.value, multi_app=document.multi_app, config_file=document.path), form)


def show_plan(plan: dict[str, Any], form: str) -> None:
    """Print the plan of a dry run."""
    if form != TABLE:
        show(plan, form)
        return
    for option, (before, after) in plan["http"].items():
        print(f"HTTP option {option}: {before} -> {after}")
    table(PLAN_HEAD, list(_plan_rows(plan)))
    for name, app in plan["applications"].items():
        if app["note"]:
            print(f"{name}: {app['note']}")
        files = list(app["files"].items())
        for path, what in files[:FILES_SHOWN]:
            print(f"{name}: {what} {path}")
        if len(files) > FILES_SHOWN:
            print(f"{name}: and {len(files) - FILES_SHOWN} more files")


def _plan_rows(plan: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, app in plan["applications"].items():
        yield name, "", "", app["action"], ", ".join(app["fields"])
        for item in app["deployments"].values():
            before, after = item["replicas_before"], item["replicas_after"]
            count = str(before) if before == after else f"{before} -> {'?' if after is None else after}"
            # what makes a new version of the whole application stands in its own line
            because = [field for field in item["fields"] if field not in app["fields"]]
            yield "", item["name"], count, item["action"], ", ".join(because)


def show_diff(client: AdminClient, path: str, form: str) -> bool:
    """Print how a file differs from what is deployed, then what deploying it would do; gives whether it differs."""
    document = read_document(path)
    client.probe()
    current = client.status()["revision"]
    stored = client.revision(current)["document"] if current else None
    before = dump_yaml(stored).splitlines() if stored else []
    after = dump_yaml(_as_stored(document)).splitlines()
    lines = list(difflib.unified_diff(before, after, f"revision {current}", path, lineterm=""))
    plan = client.plan(document.value, multi_app=document.multi_app, config_file=document.path)
    # the document may be the same and the source files not
    differs = bool(lines or plan["http"] or any(app["action"] != "unchanged" for app in plan["applications"].values()))
    if form != TABLE:
        show({"diff": lines, "plan": plan}, form)
        return differs
    print("\n".join(lines) if lines else f"{path} is what revision {current} has.")
    print()
    show_plan(plan, TABLE)
    return differs


def _goal_of(document: CheckedDocument) -> GoalDocument:
    return parse_v2(document.value) if document.multi_app else parse_v1(document.value)


def _as_stored(document: CheckedDocument) -> dict[str, Any]:
    goal = _goal_of(document)
    return top_level(goal, goal.stored["applications"]) if document.multi_app else goal.stored


def validate(path: str) -> None:
    """Say that a file is valid, as the daemon would find it, without a daemon.

    Raises:
        ConfigError: see `valid_document`; a local directory that is missing counts too.
    """
    document = valid_document(path)
    missing = list(_missing(path, document))
    if missing:
        raise ConfigError("\n".join(missing))
    kind = "ServeDeploySchema (multi-app)" if document.multi_app else "ServeApplicationSchema (single-app)"
    say(f"{path} is a valid {kind} config: {', '.join(document.apps) or 'no applications'}.", "SUCC")


def valid_document(path: str) -> CheckedDocument:
    """The document in a file, checked as the daemon would, without a daemon.

    Raises:
        ConfigError: every fault with its place.
    """
    document = read_document(path)
    for app in _goal_of(document).applications:
        runtime_env.check_application(app.name, app.runtime_env, app.deployments)
    return document


def _missing(path: str, document: CheckedDocument) -> Iterator[str]:
    for app in _goal_of(document).applications:
        own = [(entry.get("ray_actor_options") or {}).get("runtime_env") or {} for entry in app.deployments]
        for env in (app.runtime_env, *own):
            for uri in runtime_env.local_uris(env):
                place = runtime_env.local_path(uri)
                if not os.path.exists(place):
                    yield f'{path}: application "{app.name}": runtime_env: there is no {place}'


def scale(client: AdminClient, target: str, count: int) -> None:
    """Pin the replica count of APP/DEPLOYMENT.

    Raises:
        ConfigError: the target has not that form.
    """
    app, mark, deployment = target.partition("/")
    if not mark or not app or not deployment or "/" in deployment:
        raise ConfigError(f"{target!r} must have the form APP/DEPLOYMENT; `servd status` lists them")
    client.probe()
    client.scale(app, deployment, count)
    say(f"Pinned {target} to {count} replica(s), until the next deploy that names {app!r}.", "SUCC")


def show_stacks(client: AdminClient, target: str) -> None:
    """Print the Python stacks of the replicas that a target means.

    Raises:
        ConfigError: it means none.
    """
    client.probe()
    replicas = [item for item in replicas_of(client.status(), target) if item["state"] != "STOPPING"]
    if not replicas:
        raise ConfigError(f"{target!r} means no living replica; give APP, APP/DEPLOYMENT, a replica id or a pid")
    texts = []
    for replica in replicas:
        path = f"/api/servd/v1/replicas/{quote(replica['replica_id'], safe='')}/stack"
        texts.append(f"=== replica {replica['replica_id']}, " + client.request("GET", path).text.rstrip())
    print("\n\n".join(texts))


def replicas_of(status: dict[str, Any], target: str) -> list[dict[str, Any]]:
    """Replicas of servd's own status that a target means: APP, APP/DEPLOYMENT, a full name, a replica id or a pid."""
    found = []
    for name, app in status["applications"].items():
        for full_name, deployment in app["deployments"].items():
            is_whole = target in (name, f"{name}/{deployment['name']}", full_name)
            found += [
                replica
                for replica in deployment["replicas"]
                if is_whole or target in (replica["replica_id"], str(replica["pid"]))
            ]
    return found
