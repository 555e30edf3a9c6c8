"""A goal as text that later versions read."""

import json
from dataclasses import asdict, fields
from typing import Any, TypeVar

from servd.controller.plan.goal import ApplicationGoal, Goal, HttpGoal
from servd.documents.control_plane import ApplicationDocument
from servd.documents.sent import HttpWish
from servd.ground.states import DeployMode

_T = TypeVar("_T")


def goal_to_json(goal: Goal) -> str:
    """The goal as JSON text."""
    return json.dumps(asdict(goal))


def goal_from_json(text: str | bytes) -> Goal:
    """The goal behind its JSON text; keys that this version does not know are left out.

    Raises:
        KeyError, TypeError, ValueError: it is no goal.
    """
    value = json.loads(text)
    applications = tuple(
        _build(ApplicationGoal, {**_with_servicers(app), "document": _document(app["document"])})
        for app in value["applications"]
    )
    http = _build(HttpGoal, _with_servicers(value["http"])) if value.get("http") else None
    asked = _build(HttpWish, _with_servicers(value.get("asked") or {}))
    mode = DeployMode(value["mode"])
    return _build(Goal, {**value, "mode": mode, "http": http, "applications": applications, "asked": asked})


def _with_servicers(value: dict[str, Any]) -> dict[str, Any]:
    found = value.get("grpc_servicers")
    return value if found is None else {**value, "grpc_servicers": tuple(found)}


def _document(value: dict[str, Any]) -> ApplicationDocument:
    return _build(
        ApplicationDocument,
        {
            **value,
            "deployments": tuple(value.get("deployments", ())),
            "driver_path": tuple(value.get("driver_path", ())),
        },
    )


def _build(kind: type[_T], value: dict[str, Any]) -> _T:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: item for key, item in value.items() if key in known})
