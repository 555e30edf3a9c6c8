"""JSON Schemas of the answers of servd's own endpoints. Every key that is named is always there; others may join it."""

from typing import Any

from servd.ground.states import (
    ApplicationStatus,
    DeploymentStatus,
    DeployMode,
    ProxyLocation,
    ProxyStatus,
    ReplicaState,
)

Json = dict[str, Any]


def _record(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _map(values: Json) -> Json:
    return {"type": "object", "additionalProperties": values}


def _one_of(words: Any) -> Json:
    return {"type": "string", "enum": [str(word) for word in words]}


_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_NUMBER: Json = {"type": "number"}
_FLAG: Json = {"type": "boolean"}
_OBJECT: Json = {"type": "object"}
_TEXTS = _list(_TEXT)
_PID = _or_null({"type": "integer"})
_IDENTITY: dict[str, Json] = {
    "node_id": _TEXT,
    "node_ip": _TEXT,
    "actor_id": _or_null(_TEXT),
    "actor_name": _TEXT,
    "worker_id": _or_null(_TEXT),
    "log_file_path": _TEXT,
}
_REPLICA = _record(
    **_IDENTITY,
    replica_id=_TEXT,
    state=_one_of(ReplicaState),
    pid=_PID,
    start_time_s=_NUMBER,
    ongoing=_COUNT,
    message=_TEXT,
)
_DEAD_REPLICA = _record(
    replica_id=_TEXT,
    pid=_PID,
    exit_code=_or_null(_COUNT),
    signal=_or_null(_COUNT),
    age_s=_NUMBER,
    reason=_TEXT,
    open_requests=_COUNT,
    log_lines=_TEXTS,
    stack=_TEXT,
)
_DEPLOYMENT = _record(
    name=_TEXT,
    status=_one_of(DeploymentStatus),
    status_trigger=_TEXT,
    message=_TEXT,
    deployment_config=_OBJECT,
    target_num_replicas=_COUNT,
    replicas=_list(_REPLICA),
    recent_dead_replicas=_list(_DEAD_REPLICA),
    autoscaling=_or_null(_OBJECT),
)
_APPLICATION = _record(
    name=_TEXT,
    route_prefix=_or_null(_TEXT),
    docs_path=_or_null(_TEXT),
    status=_one_of(ApplicationStatus),
    message=_TEXT,
    last_deployed_time_s=_NUMBER,
    deployed_app_config=_or_null(_OBJECT),
    deployments=_map(_DEPLOYMENT),
)
STATUS = _record(
    revision=_COUNT,
    version=_COUNT,
    running=_FLAG,
    log_dir=_TEXT,
    deploy_mode=_one_of(DeployMode),
    controller_info=_record(**_IDENTITY, pid=_PID),
    http=_record(host=_TEXT, port=_COUNT, root_path=_TEXT, location=_one_of(ProxyLocation), listening=_FLAG, tls=_FLAG),
    proxies=_list(
        _record(
            **_IDENTITY,
            proxy_id=_TEXT,
            slot=_COUNT,
            pid=_PID,
            host=_TEXT,
            port=_COUNT,
            status=_one_of(ProxyStatus),
            connections=_COUNT,
        )
    ),
    applications=_map(_APPLICATION),
)
CHANGED = _record(revision=_COUNT)
SCALED = _record(application=_TEXT, deployment=_TEXT, target_num_replicas=_COUNT)
SHIPPED = _record(sha256=_TEXT)
VERSION = _record(version=_TEXT, ray_version=_TEXT, ray_commit=_TEXT)
_REVISION: dict[str, Json] = {
    "revision": _COUNT,
    "at": _NUMBER,
    "origin": _TEXT,
    "running": _FLAG,
    "deploy_mode": _one_of(DeployMode),
}
REVISIONS = _record(revision=_COUNT, revisions=_list(_record(**_REVISION, applications=_TEXTS)))
REVISION = _record(**_REVISION, applications=_map(_or_null(_OBJECT)), document=_or_null(_OBJECT))
PLAN = _record(
    revision=_COUNT,
    http=_map({"type": "array", "minItems": 2, "maxItems": 2}),
    applications=_map(
        _record(
            action=_one_of(("unchanged", "changed", "removed", "added")),
            fields=_TEXTS,
            note=_TEXT,
            deployments=_map(
                _record(
                    name=_TEXT,
                    action=_one_of(("untouched", "reconfigured", "restarted", "removed", "added")),
                    fields=_TEXTS,
                    replicas_before=_COUNT,
                    replicas_after=_or_null(_COUNT),
                )
            ),
        )
    ),
)
