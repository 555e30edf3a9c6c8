"""Revisions of the goal: list, read, roll back."""

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from servd.documents.control_plane import ChangePlan, ControlPlane, RevisionView
from servd.documents.sent import top_level
from servd.exceptions import ConfigError, UnknownNameError
from servd.ground.states import DeployMode
from servd.rest import shapes
from servd.rest.exchange import (
    Resource,
    if_match,
    is_dry_run,
    json_answer,
    number_parameter,
    origin,
    until_listening,
)

DEFAULT_LIMIT = 100
DEFAULT_KEPT = 10
MAX_LIMIT = 10_000
_LONGEST_NUMBER = 15


def revisions_resource(plane: ControlPlane) -> Resource:
    """GET: the latest revisions, newest first; `?limit=N`, default 100."""

    async def get(request: Request) -> Response:
        limit = int(number_parameter(request, "limit", DEFAULT_LIMIT))
        found = plane.revisions(min(max(limit, 0), MAX_LIMIT))
        view = plane.view()
        listed: list[shapes.ListedRevision] = [
            {**_head(revision), "applications": list(revision.applications)} for revision in found
        ]
        answer: shapes.Revisions = {
            "revision": view.revision,
            "last_that_ran": plane.last_that_ran(),
            "revisions": listed,
        }
        return json_answer(answer, view)

    return {"GET": get}


def revision_resource(plane: ControlPlane, number: str) -> Resource:
    """GET: one revision with its documents."""

    async def get(_: Request) -> Response:
        revision = plane.revision(_number(number))
        answer: shapes.Revision = {
            **_head(revision),
            "applications": revision.applications,
            "document": document_of(revision),
        }
        return json_answer(answer)

    return {"GET": get}


def rollback_resource(plane: ControlPlane, number: str) -> Resource:
    """POST: make the goal what it was then; with `?dry_run=true` only say what that would do."""

    async def post(request: Request) -> Response:
        condition = if_match(request, plane)
        wanted = _number(number)
        if is_dry_run(request):
            return plan_answer(await plane.plan_rollback(wanted, if_match=condition))
        revision = await plane.rollback(wanted, if_match=condition, origin=origin(request))
        await until_listening(plane)
        return json_answer({"revision": revision})

    return {"POST": post}


def prune_resource(plane: ControlPlane) -> Resource:
    """POST: remove code that only revisions before the latest `?keep=N` need; with `?dry_run=true` only say what would go."""

    async def post(request: Request) -> Response:
        keep = number_parameter(request, "keep", DEFAULT_KEPT)
        if not 0 <= keep <= MAX_LIMIT or keep != int(keep):
            raise ConfigError(f"keep is a whole number of revisions from 0 to {MAX_LIMIT}")
        pruned = await plane.prune(int(keep), dry_run=is_dry_run(request))
        answer: shapes.Pruned = {"names": list(pruned.names), "freed_bytes": pruned.freed_bytes}
        return json_answer(answer)

    return {"POST": post}


def plan_answer(plan: ChangePlan) -> Response:
    """200 with the plan of a dry run."""
    return json_answer(asdict(plan))


def document_of(revision: RevisionView) -> dict[str, Any] | None:
    """The document that a PUT would have to send for this revision; None where there was none."""
    stored = {name: config for name, config in revision.applications.items() if config is not None}
    if revision.mode == DeployMode.SINGLE_APP:
        return stored.get("default")
    if revision.mode == DeployMode.MULTI_APP:
        return top_level(revision, stored.values())
    return None


def _head(revision: RevisionView) -> shapes.RevisionHead:
    return {
        "revision": revision.revision,
        "at": revision.at,
        "origin": revision.origin,
        "running": revision.running,
        "deploy_mode": revision.mode,
        "outcome": revision.outcome,
    }


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > _LONGEST_NUMBER:
        raise UnknownNameError(f"there is no revision {text[:80]!r}: revisions are numbers")
    return int(text)
