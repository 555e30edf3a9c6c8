"""What the page is told: one small row per thing, and of two moments what differs. Pure.

How this works: the page keeps rows by their keys, `i` (the instance), `a/NAME`, `d/APP/NAME` in which the names are spelled as
in URLs, `r/ID`, `e/ID`. It is told all of them when it is opened, and later those that have changed, and the keys of those
that are gone. Times are wall time, so that a row stays as it is while nothing happens.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from servd.documents.control_plane import (
    ApplicationView,
    DeadReplicaView,
    DeploymentView,
    InstanceView,
    ReplicaView,
)
from servd.observability.error_groups import KeptError

Row = dict[str, Any]
Rows = dict[str, Row]
Figures = Mapping[str, Any]
"""The body of `GET /api/servd/v1/figures`; what is not in it is not shown."""

LONGEST_TEXT = 2000
"""Characters of a message in a row; the whole is elsewhere in the API."""
_OF_BOTH = ("waiting", "requests_per_s", "errors", "p50_ms", "p95_ms", "p99_ms", "memory_bytes", "cpu_share")
_OF_REPLICA = (*_OF_BOTH, "descriptors", "threads")
_OF_DEPLOYMENT = (*_OF_BOTH, "restarts", "ongoing")


def rows_of(view: InstanceView, errors: Iterable[KeptError], figures: Figures) -> Rows:
    """Every row, as it is now."""
    rows = {"i": _instance(view)}
    apps = figures.get("applications", {})
    for app in view.applications:
        rows[f"a/{app.name}"] = _application(app)
        counted = apps.get(app.name, {}).get("deployments", {})
        for one in app.deployments:
            known = counted.get(one.name, {})
            key = f"d/{quote(app.name, safe='')}/{quote(one.bare_name, safe='')}"
            rows[key] = {**_deployment(app, one), **_figures(known, _OF_DEPLOYMENT)}
            of_replicas = known.get("replicas", {})
            for replica in one.replicas:
                told = _figures(of_replicas.get(replica.replica_id, {}), _OF_REPLICA)
                rows[f"r/{replica.replica_id}"] = {**_replica(app, one, replica), **told}
    rows |= {f"e/{kept.group.id}": _error(kept) for kept in errors}
    return rows


def difference(before: Rows, after: Rows) -> tuple[Rows, list[str]]:
    """Rows that are new or have changed, and keys of those that are gone."""
    changed = {key: row for key, row in after.items() if before.get(key) != row}
    return changed, [key for key in before if key not in after]


def event(name: str, value: Any) -> bytes:
    """One server-sent event; value: anything with a JSON form."""
    # JSON has no ends of lines but those that are spelled
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def _cut(text: str) -> str:
    left_out = len(text) - LONGEST_TEXT
    return text if left_out <= 0 else f"{text[:LONGEST_TEXT]} [{left_out} characters left out]"


def _instance(view: InstanceView) -> Row:
    upgrade = view.upgrade
    scheme = "https" if view.http.is_tls else "http"
    host = f"[{view.http.host}]" if ":" in view.http.host else view.http.host
    return {
        "revision": view.revision,
        "running": view.running,
        "edition": view.edition,
        "capacity": view.target_capacity,
        "notice": _cut(view.notice),
        "upgrade": f"{upgrade.stage}: {upgrade.before} to {upgrade.edition}. {upgrade.message}" if upgrade else "",
        "http": f"{scheme}://{host}:{view.http.port}{view.http.root_path}",
        "listening": view.http.listening,
        "proxies": [[proxy.slot, proxy.status, proxy.pid, proxy.connections] for proxy in view.proxies],
        "controller": view.controller_pid,
    }


def _application(app: ApplicationView) -> Row:
    return {
        "name": app.name,
        "route": app.route_prefix,
        "status": app.standing,
        "message": _cut(app.standing_message or app.message),
        "at": round(app.last_deployed_time_s, 3),
        "docs": app.docs_path,
    }


def _deployment(app: ApplicationView, one: DeploymentView) -> Row:
    return {
        "app": app.name,
        "name": one.bare_name,
        "full": one.name,
        "status": one.standing,
        "message": _cut(one.message),
        "wanted": one.target_num_replicas,
        "running": sum(replica.state in ("RUNNING", "UPDATING") for replica in one.replicas),
        "autoscaled": one.autoscaling is not None,
        "ongoing": sum(replica.ongoing for replica in one.replicas),
        "decisions": [[item.at, item.before, item.after, _cut(item.reason)] for item in one.decisions],
        "dead": [_dead(dead) for dead in one.recent_dead],
    }


def _dead(dead: DeadReplicaView) -> Row:
    """A death in short: its last lines and its stack are in the status."""
    code = dead.exit_code
    how = "" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
    at = round(dead.start_time_s + dead.age_s, 3)
    return {"id": dead.replica_id, "at": at, "how": how, "reason": _cut(dead.reason), "open": dead.ongoing}


def _replica(app: ApplicationView, one: DeploymentView, replica: ReplicaView) -> Row:
    return {
        "app": app.name,
        "deployment": one.bare_name,
        "state": replica.state,
        "pid": replica.pid,
        "at": replica.start_time_s,
        "ongoing": replica.ongoing,
        "message": _cut(replica.message),
        "start": replica.start_method,
    }


def _figures(known: Mapping[str, Any], names: Iterable[str]) -> Row:
    """As exact as somebody can read them: what is shown the same is told once."""
    return {name: _rounded(name, known[name]) for name in names if name in known}


def _rounded(name: str, value: Any) -> Any:
    if name == "memory_bytes" and value is not None:
        return value >> 16 << 16
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _error(kept: KeptError) -> Row:
    group = kept.group
    return {
        "app": kept.app,
        "deployment": kept.deployment,
        "type": group.type,
        "text": _cut(group.text),
        "place": group.place,
        "method": group.method,
        "route": group.route,
        "count": group.count,
        "first": round(group.first_at, 3),
        "last": round(group.last_at, 3),
    }
