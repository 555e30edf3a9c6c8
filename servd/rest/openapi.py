"""The OpenAPI description of the whole admin plane, made from the models that check the documents."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import BaseModel

from servd.documents.answers import ServeInstanceDetails, ServeStatusSchema
from servd.documents.orders import ApplicationOrder, ScaleOrder, StartOrder
from servd.ground.package import VERSION
from servd.rest import figure_shapes, shapes, today_shapes
from servd.schema import ServeApplicationSchema, ServeDeploySchema

Json = dict[str, Any]

_TEXTS = {
    "400": "The request or the document is wrong; the text lists every fault with its place.",
    "401": "The bearer token is missing or wrong.",
    "403": "Not let in: another user, another site, or a Host that is not served.",
    "404": "There is nothing of that name.",
    "405": "The path has other verbs; see Allow.",
    "409": "The daemon cannot become what lies in its place; the text says why, and what runs goes on.",
    "412": "If-Match is not the current revision; nothing was changed.",
    "413": "The body is over 1 MiB.",
    "500": "It did not work; the text says why.",
    "503": "No controller can be started; the text says why, and what runs goes on.",
    "504": "The replica does not answer.",
    "507": "The goal cannot be saved; the accepted one goes on.",
}
_READ = ("401", "403", "405", "500", "503")
_CHANGE = ("400", *_READ, "412", "413", "507")
_OBJECT: Json = {"type": "object"}
_EMPTY_CONFIG: Json = {
    "type": "object",
    "properties": {"import_path": {"const": ""}, "runtime_env": {}, "deployments": {}},
}
_DRY_RUN: Json = {
    "name": "dry_run",
    "in": "query",
    "schema": {"type": "boolean"},
    "description": "Check everything, change nothing, answer with what would happen.",
}
_IF_MATCH: Json = {
    "name": "If-Match",
    "in": "header",
    "schema": {"type": "string"},
    "description": "The ETag of the revision that the change is meant for; absent or *: no condition.",
}
_CONFIG_FILE: Json = {
    "name": "config_file",
    "in": "query",
    "schema": {"type": "string", "pattern": "^/"},
    "description": "Absolute path of the file that the document was read from: it is left out of the application's code.",
}
_DIALECT: Json = {
    "name": "dialect",
    "in": "query",
    "schema": {"enum": ["2.5", "today"]},
    "description": "Whose clients are answered; absent: today's on the dashboard port, else those of 2.5.",
}
_API_TYPE: Json = {
    "name": "api_type",
    "in": "query",
    "schema": {"enum": ["declarative", "imperative"]},
    "description": "In today's dialect: only applications that came from a document, or only those of `run`.",
}
_ETAG: Json = {"schema": {"type": "string"}, "description": "The revision of the goal, quoted."}
_NUMBER: Json = {"type": "number"}
_LOGS: tuple[Json, ...] = tuple(
    {"name": name, "in": "query", "schema": schema, "description": text}
    for name, schema, text in (
        ("application", {"type": "string"}, "Only of this application; without one of proxies and controller too."),
        ("deployment", {"type": "string"}, "Only of its deployments of this name."),
        ("replica", {"type": "string"}, "Only of this replica."),
        ("level", {"type": "string"}, "Only of this level and above."),
        ("request", {"type": "string"}, "Only of the request with this id."),
        ("limit", {"type": "integer"}, "At most so many, default 200, 2000 at most."),
    )
)  # fmt: skip
_REFERENCE = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One verb of one path.

    ok: shape, model or JSON Schema of the answer, None for an empty one. body: model or schema of the request.
    tells_revision: with `ETag`. has_json_errors: in today's dialect, as `{"error": text}`.
    """

    method: str
    path: str
    name: str
    summary: str
    ok: Any
    errors: tuple[str, ...] = _READ
    body: type[BaseModel] | Json | None = None
    parameters: tuple[Json, ...] = ()
    ok_type: str = "application/json"
    needs_body: bool = True
    path_schemas: Mapping[str, Json] = field(default_factory=dict)
    tells_revision: bool = False
    has_json_errors: bool = False


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


_WHOSE = (
    _query("application", {"type": "string"}, "Only of this application."),
    _query("deployment", {"type": "string"}, "Only of deployments of this name, without the application's."),
)


def _documents() -> list[Operation]:
    put = (_DRY_RUN, _CONFIG_FILE, _IF_MATCH)
    v1, v2 = "/api/serve/deployments/", "/api/serve/applications/"
    stored = {"anyOf": [_ref(ServeApplicationSchema), _EMPTY_CONFIG]}
    return [
        Operation("get", v1, "getConfig", "The V1 config as submitted.", stored, tells_revision=True),
        Operation(
            "put",
            v1,
            "putConfig",
            "Deploy a V1 config; the answer is empty, or the plan of a dry run.",
            shapes.Plan,
            _CHANGE,
            ServeApplicationSchema,
            put,
            tells_revision=True,
        ),
        Operation("delete", v1, "deleteConfig", "Remove everything.", None, _CHANGE, parameters=(_IF_MATCH,)),
        Operation(
            "get",
            f"{v1}status",
            "getStatus",
            "Status of the application `default`.",
            ServeStatusSchema,
            tells_revision=True,
        ),
        Operation(
            "get",
            v2,
            "getDetails",
            "Everything that runs.",
            ServeInstanceDetails | today_shapes.TodayInstance,
            ("400", *_READ),
            parameters=(_DIALECT, _API_TYPE),
            tells_revision=True,
        ),
        Operation(
            "put",
            v2,
            "putApplications",
            "Deploy a V2 config; the answer is empty, or a dry run's plan. Today's dialect leaves those of `run` alone.",
            shapes.Plan,
            _CHANGE,
            ServeDeploySchema,
            (*put, _DIALECT),
            tells_revision=True,
        ),
        Operation("delete", v2, "deleteApplications", "Remove everything.", None, _CHANGE, None, (_IF_MATCH, _DIALECT)),
        Operation(
            "get",
            "/api/ray/version",
            "getVersion",
            "What clients of either dialect ask first.",
            shapes.Version | today_shapes.TodayVersion,
            ("400", *_READ),
            parameters=(_DIALECT,),
        ),
        Operation("get", "/api/openapi.json", "getOpenapi", "This document.", _OBJECT),
    ]


def _metrics() -> Operation:
    return Operation(
        "get", "/metrics", "getMetrics", "Prometheus' text format.", {"type": "string"}, ("400", *_READ),
        parameters=(_DIALECT,), ok_type="text/plain",
    )  # fmt: skip


def _own() -> list[Operation]:
    own = "/api/servd/v1"
    scale = "/api/v1/applications/{app}/deployments/{deployment}/scale"
    app_errors = (*_CHANGE, "404")
    digest = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    number = {"revision": {"type": "integer", "minimum": 1}}
    waits = (
        _query("seen", _NUMBER, "Wait until the version differs from this one."),
        _query("timeout_s", _NUMBER, "Wait no longer than this, seconds, at most 60."),
    )
    limit = (_query("limit", {"type": "integer"}, "At most so many, default 100."),)
    back = (_DRY_RUN, _IF_MATCH)
    return [
        Operation(
            "post", scale, "scale", "Pin a replica count; in today's dialect errors are JSON too.",
            shapes.Scaled | today_shapes.TodayScaled, app_errors, ScaleOrder, (_DIALECT,), has_json_errors=True,
        ),
        Operation(
            "get", f"{own}/status", "getOwnStatus", "Everything about everything.", shapes.Status, ("400", *_READ),
            parameters=waits, tells_revision=True,
        ),
        Operation(
            "post", f"{own}/start", "start", "Make Serve run.", shapes.Changed, _CHANGE, StartOrder, needs_body=False
        ),
        Operation(
            "post", f"{own}/upgrade", "upgrade", "Become the servd that lies in the daemon's place.", shapes.UpgradeBegun,
            (*_READ, "409"),
        ),
        Operation(
            "get", f"{own}/revisions", "listRevisions", "Accepted changes, newest first.", shapes.Revisions, ("400", *_READ),
            parameters=limit, tells_revision=True,
        ),
        Operation(
            "get", f"{own}/revisions/{{revision}}", "getRevision", "One revision with its document.", shapes.Revision,
            (*_READ, "404"), path_schemas=number,
        ),
        Operation(
            "post", f"{own}/revisions/{{revision}}/rollback", "rollback", "Make the goal what it was then.",
            shapes.Changed | shapes.Plan, app_errors, parameters=back, path_schemas=number,
        ),
        *_errors(f"{own}/errors"),
        *_figures(f"{own}/figures"),
        _logs(f"{own}/logs"),
        Operation(
            "post", f"{own}/prune", "prune", "Remove code that no revision within reach needs.", shapes.Pruned,
            ("400", *_READ, "507"), parameters=(_query("keep", {"type": "integer"}, "So many revisions, default 10."), _DRY_RUN),
        ),
        *_one_application(f"{own}/applications/{{app}}", "", ""),
        *_one_application(f"{own}/applications/", "Nameless", " whose name is the empty string"),
        Operation(
            "get", f"{own}/replicas/{{replica_id}}/stack", "getStack", "Python stacks of a living replica.",
            {"type": "string"}, (*_READ, "404", "504"), ok_type="text/plain",
        ),
        Operation(
            "put", f"{own}/code/{{sha256}}", "putCode", "Ship a pickled application; Unix socket only.",
            shapes.Shipped,
            ("400", *_READ, "507"), {"type": "string", "format": "binary"}, path_schemas={"sha256": digest},
        ),
    ]  # fmt: skip


def _logs(path: str) -> Operation:
    summary = "The last lines of log files, in order of time."
    return Operation("get", path, "getLogs", summary, shapes.LogLines, ("400", *_READ), parameters=_LOGS)


def _errors(path: str) -> list[Operation]:
    return [
        Operation(
            "get", path, "listErrors", "What applications raised, by type and place, the latest first.", shapes.Errors,
            parameters=_WHOSE,
        ),
        Operation(
            "get", f"{path}/{{id}}", "getError", "One of them, with its traceback.", shapes.ErrorDetail, (*_READ, "404")
        ),
    ]  # fmt: skip


def _figures(path: str) -> list[Operation]:
    since = _query("since", _NUMBER, "Only samples later than this, wall time in seconds: `at` of the answer before.")
    return [
        Operation(
            "get", path, "getFigures", "Requests, memory and CPU of replicas and deployments now.", figure_shapes.Figures,
            parameters=_WHOSE,
        ),
        Operation(
            "get", f"{path}/history", "getFiguresHistory", "The last 15 minutes of deployments.", figure_shapes.FiguresHistory,
            ("400", *_READ), parameters=(*_WHOSE, since),
        ),
    ]  # fmt: skip


def _one_application(path: str, suffix: str, which: str) -> list[Operation]:
    return [
        Operation(
            "put", path, f"put{suffix}Application", f"Add or replace one application{which}.",
            shapes.Changed, _CHANGE, ApplicationOrder, (_IF_MATCH,),
        ),
        Operation(
            "delete", path, f"delete{suffix}Application", f"Take away the application{which}.",
            shapes.Changed, _CHANGE, parameters=(_IF_MATCH,),
        ),
    ]  # fmt: skip


@cache
def openapi_document() -> Json:
    """OpenAPI 3.1 of the admin plane."""
    paths: Json = {}
    operations = [*_documents(), _metrics(), *_own()]
    wanted = {
        thing for op in operations for thing in (op.ok, op.body) if thing is not None and not isinstance(thing, dict)
    }
    known, definitions = shapes.schemas(sorted(wanted, key=str), _REFERENCE)
    for op in operations:
        paths.setdefault(op.path, {})[op.method] = _operation(op, known)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "servd admin API",
            "version": VERSION,
            "description": "Loopback and the Unix socket serve the daemon's own user; elsewhere a bearer token is needed.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(op: Operation, known: dict[Any, Json]) -> Json:
    ok = op.ok if isinstance(op.ok, dict) else known.get(op.ok)
    content: Json = {} if ok is None else {"content": {op.ok_type: {"schema": ok}}}
    if op.tells_revision:
        content["headers"] = {"ETag": _ETAG}
    errors: Json = {"text/plain": {"schema": {"type": "string"}}}
    if op.has_json_errors:
        errors["application/json"] = {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}
    found: Json = {
        "operationId": op.name,
        "summary": op.summary,
        "responses": {
            "200": {"description": "Done.", **content},
            **{code: {"description": _TEXTS[code], "content": errors} for code in sorted(op.errors)},
        },
    }
    names = [part[1:-1] for part in op.path.split("/") if part.startswith("{")]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": op.path_schemas.get(name, {"type": "string"})}
        for name in names
    ]
    if parameters or op.parameters:
        found["parameters"] = [*parameters, *op.parameters]
    if op.body is not None:
        is_model = isinstance(op.body, type)
        schema = op.body if isinstance(op.body, dict) else known[op.body]
        kind = "application/json" if is_model else "application/octet-stream"
        found["requestBody"] = {"required": op.needs_body, "content": {kind: {"schema": schema}}}
    return found
