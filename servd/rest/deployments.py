"""V1: `/api/serve/deployments/` and its status."""

from starlette.requests import Request
from starlette.responses import Response

from servd.control_plane import ControlPlane
from servd.rest.bodies import v1_config, v1_status
from servd.rest.exchange import (
    Resource,
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
from servd.schema import parse_v1


def deployments_resource(plane: ControlPlane) -> Resource:
    """The V1 config: PUT, GET, DELETE."""

    async def put(request: Request) -> Response:
        body = await read_body(request)
        condition = if_match(request, plane)
        document = await parsed(body, parse_v1)
        if is_dry_run(request):
            return plan_answer(await plane.plan(document, if_match=condition))
        await plane.put(document, if_match=condition, origin=origin(request))
        await until_listening(plane)
        return empty_answer()

    async def get(_: Request) -> Response:
        view = plane.view()
        return json_answer(v1_config(view), view)

    async def delete(request: Request) -> Response:
        await plane.delete(if_match=if_match(request, plane), origin=origin(request))
        return empty_answer()

    return {"GET": get, "PUT": put, "DELETE": delete}


def deployments_status_resource(plane: ControlPlane) -> Resource:
    """The V1 status: GET."""

    async def get(_: Request) -> Response:
        view = plane.view()
        return json_answer(v1_status(view), view)

    return {"GET": get}
