"""The goal as a document: V1 at `/api/serve/deployments/`, V2 at `/api/serve/applications/`, and the V1 status."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from servd.documents.control_plane import ControlPlane, GoalDocument, InstanceView
from servd.exceptions import ConfigError
from servd.rest import today
from servd.rest.bodies import v1_config, v1_status, v2_details, version_body
from servd.rest.dialects import Dialect, dialect_of
from servd.rest.exchange import (
    Resource,
    config_file,
    empty_answer,
    if_match,
    is_dry_run,
    json_answer,
    origin,
    parsed,
    read_body,
    until_listening,
)
from servd.rest.revisions import plan_answer
from servd.schema import parse_v1, parse_v2

Body = Callable[[InstanceView], Any]


def deployments_resource(plane: ControlPlane) -> Resource:
    """The V1 config: PUT, GET, DELETE."""
    return _document_resource(plane, parse_v1, v1_config)


def applications_resource(plane: ControlPlane) -> Resource:
    """The V2 config: PUT, GET (details), DELETE, in either dialect."""
    seed = _document_resource(plane, parse_v2, v2_details)

    async def get(request: Request) -> Response:
        if dialect_of(request) is Dialect.SEED:
            return await seed["GET"](request)
        source = _source(request)
        view = plane.view()
        return json_answer(today.details(view, source), view)

    def parse_today(raw: Any) -> GoalDocument:
        return replace(parse_v2(raw), keeps_others=True)

    of_today = _document_resource(plane, parse_today, today.details)

    async def put(request: Request) -> Response:
        resource = seed if dialect_of(request) is Dialect.SEED else of_today
        return await resource["PUT"](request)

    async def delete(request: Request) -> Response:
        # the same in both, but who asks in one that is not known shall lose nothing
        dialect_of(request)
        return await seed["DELETE"](request)

    return {"GET": get, "PUT": put, "DELETE": delete}


def _source(request: Request) -> str | None:
    """The query parameter `api_type`: only applications that came that way.

    Raises:
        ConfigError: it is no way.
    """
    wanted = request.query_params.get("api_type", "").lower()
    if wanted not in ("", "declarative", "imperative"):
        raise ConfigError(f"query parameter api_type must be declarative or imperative, got {wanted[:80]!r}")
    return wanted or None


def version_resource(plane: ControlPlane) -> Resource:
    """What clients of either release ask first: GET."""

    async def get(request: Request) -> Response:
        is_today = dialect_of(request) is Dialect.TODAY
        return json_answer(today.version_body(plane.view()) if is_today else version_body())

    return {"GET": get}


def deployments_status_resource(plane: ControlPlane) -> Resource:
    """The V1 status: GET."""
    return {"GET": _reader(plane, v1_status)}


def _document_resource(plane: ControlPlane, parse: Callable[[Any], GoalDocument], body_of: Body) -> Resource:
    async def put(request: Request) -> Response:
        body = await read_body(request)
        condition = if_match(request, plane)
        document = replace(await parsed(body, parse), config_file=config_file(request))
        if is_dry_run(request):
            return plan_answer(await plane.plan(document, if_match=condition))
        revision = await plane.put(document, if_match=condition, origin=origin(request))
        await until_listening(plane)
        return empty_answer(revision)

    async def delete(request: Request) -> Response:
        await plane.delete(if_match=if_match(request, plane), origin=origin(request))
        return empty_answer()

    return {"GET": _reader(plane, body_of), "PUT": put, "DELETE": delete}


def _reader(plane: ControlPlane, body_of: Body) -> Callable[[Request], Any]:
    async def get(_: Request) -> Response:
        view = plane.view()
        return json_answer(body_of(view), view)

    return get
