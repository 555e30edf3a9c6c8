"""V2: `/api/serve/applications/`."""

from starlette.requests import Request
from starlette.responses import Response

from servd.control_plane import ControlPlane
from servd.rest.bodies import v2_details
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
from servd.schema import parse_v2


def applications_resource(plane: ControlPlane) -> Resource:
    """The V2 config: PUT, GET (details), DELETE."""

    async def put(request: Request) -> Response:
        body = await read_body(request)
        condition = if_match(request, plane)
        document = await parsed(body, parse_v2)
        if is_dry_run(request):
            return plan_answer(await plane.plan(document, if_match=condition))
        await plane.put(document, if_match=condition, origin=origin(request))
        await until_listening(plane)
        return empty_answer()

    async def get(_: Request) -> Response:
        view = plane.view()
        return json_answer(v2_details(view), view)

    async def delete(request: Request) -> Response:
        await plane.delete(if_match=if_match(request, plane), origin=origin(request))
        return empty_answer()

    return {"GET": get, "PUT": put, "DELETE": delete}
