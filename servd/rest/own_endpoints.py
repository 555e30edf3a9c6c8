"""servd's own endpoints under `/api/servd/v1/`: one application, scale, stacks, shipped code, metrics, status, start."""

import contextlib
import hashlib
import hmac
import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from servd.documents.checked import validated
from servd.documents.control_plane import ControlPlane
from servd.documents.orders import ApplicationOrder, ScaleOrder, StartOrder
from servd.exceptions import ConfigError, GoalNotSavedError, ServdError, StateError, UnknownNameError
from servd.ground.durable import sync_directory
from servd.ground.host_limits import told
from servd.ground.settings import make_private_dir
from servd.observability.error_groups import ErrorBook
from servd.rest import shapes
from servd.rest.bodies import error_entry, own_status
from servd.rest.dialects import Dialect, dialect_of
from servd.rest.exchange import (
    PEER_KEY,
    Resource,
    if_match,
    json_answer,
    number_parameter,
    origin,
    parse_json,
    read_body,
    until_listening,
)
from servd.rest.problems import problem

LONGEST_POLL_S = 60.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Metrics = Callable[[bool], Awaitable[str]]
"""Gives the metrics of the instance as Prometheus' text, where it is told so with the names of today's Ray."""

_DIGITS = set("0123456789abcdef")


def status_resource(plane: ControlPlane) -> Resource:
    """GET status; with `?seen=VERSION&timeout_s=T` it waits for another version first."""

    async def get(request: Request) -> Response:
        timeout_s = number_parameter(request, "timeout_s", 30.0)
        if "seen" in request.query_params:
            seen = int(number_parameter(request, "seen", 0))
            await plane.changed(seen, min(max(timeout_s, 0.0), LONGEST_POLL_S))
        view = plane.view()
        return json_answer(own_status(view), view)

    return {"GET": get}


def start_resource(plane: ControlPlane) -> Resource:
    """POST start: Serve runs, with an empty goal if it did not run."""

    async def post(request: Request) -> Response:
        body = await read_body(request)
        order = validated(StartOrder, parse_json(body) if body.strip() else {})
        revision = await plane.start_instance(order.wish(), origin=origin(request))
        await until_listening(plane)
        return json_answer({"revision": revision})

    return {"POST": post}


def upgrade_resource(plane: ControlPlane) -> Resource:
    """POST upgrade: answers once the new edition was tried; the daemon becomes it after the answer."""

    async def post(request: Request) -> Response:
        offer = await plane.prepare_upgrade(origin=origin(request))
        answer = json_answer(asdict(offer))
        if offer.is_needed:
            answer.background = BackgroundTask(plane.begin_upgrade)
        return answer

    return {"POST": post}


def application_resource(plane: ControlPlane, name: str) -> Resource:
    """PUT adds or replaces one application, DELETE takes it out; the others stay. Neither waits."""

    async def put(request: Request) -> Response:
        body = await read_body(request)
        condition = if_match(request, plane)
        order = validated(ApplicationOrder, parse_json(body))
        application = order.to_application(name)
        revision = await plane.put_application(
            application, http=order.http_wish(), if_match=condition, origin=origin(request)
        )
        await until_listening(plane)
        return json_answer({"revision": revision})

    async def delete(request: Request) -> Response:
        condition = if_match(request, plane)
        revision = await plane.delete_application(name, if_match=condition, origin=origin(request))
        return json_answer({"revision": revision})

    return {"PUT": put, "DELETE": delete}


def scale_resource(plane: ControlPlane, app: str, deployment: str) -> Resource:
    """POST pins the replica count of one deployment until the next change that names the application."""

    async def scale(request: Request) -> ScaleOrder:
        order = validated(ScaleOrder, parse_json(await read_body(request)))
        await plane.scale(app, deployment, order.target_num_replicas, origin=origin(request))
        return order

    async def post(request: Request) -> Response:
        if dialect_of(request) is Dialect.SEED:
            order = await scale(request)
            return json_answer({"application": app, "deployment": deployment, **order.model_dump()})
        try:
            order = await scale(request)
        except ServdError as error:
            # today's clients read all answers of this path as JSON
            return json_answer({"error": str(error)}, status=error.status_code)
        return json_answer({"message": f"{deployment} of {app} is scaled to {order.target_num_replicas} replicas"})

    return {"POST": post}


def stack_resource(plane: ControlPlane, replica_id: str) -> Resource:
    """GET: Python stacks of a living replica, as text."""

    async def get(_: Request) -> Response:
        return PlainTextResponse(await plane.stack(replica_id) + "\n")

    return {"GET": get}


def errors_resource(book: ErrorBook) -> Resource:
    """GET: errors of applications by type and place, the latest first; with `?application=` and `?deployment=` only theirs."""

    async def get(request: Request) -> Response:
        wanted = request.query_params
        found = [
            error_entry(one)
            for one in book.all()
            if one.app == wanted.get("application", one.app)
            and one.deployment == wanted.get("deployment", one.deployment)
        ]
        answer: shapes.Errors = {"errors": found}
        return json_answer(answer)

    return {"GET": get}


def error_resource(book: ErrorBook, error_id: str) -> Resource:
    """GET: one of them with the traceback of the last time."""

    async def get(_: Request) -> Response:
        found = book.get(error_id)
        if found is None:
            raise UnknownNameError(
                f"there is no error {error_id[:80]!r}; GET /api/servd/v1/errors lists those that are kept"
            )
        answer: shapes.ErrorDetail = {**error_entry(found), "traceback": found.group.traceback}
        return json_answer(answer)

    return {"GET": get}


def metrics_resource(text: Metrics) -> Resource:
    """GET: the metrics of all processes."""

    async def get(request: Request) -> Response:
        return Response(await text(dialect_of(request) is Dialect.TODAY), media_type=METRICS_TYPE)

    return {"GET": get}


def code_resource(code_dir: str, digest: str) -> Resource:
    """PUT keeps a pickled application under its SHA-256; over the Unix socket only, without size limit."""

    async def put(request: Request) -> Response:
        if not request.scope[PEER_KEY].is_unix:
            return problem(403, "403: applications are shipped by value over the Unix socket only, never over TCP")
        if len(digest) != 64 or not set(digest) <= _DIGITS:
            raise ConfigError(f"{digest!r} is no SHA-256 in hexadecimal")
        await _keep(request, Path(code_dir) / f"{digest}.pkl", digest)
        return json_answer({"sha256": digest})

    return {"PUT": put}


async def _keep(request: Request, path: Path, digest: str) -> None:
    """Write the body beside `path`, check its sum, then move it there."""
    found = hashlib.sha256()
    try:
        make_private_dir(str(path.parent), with_parents=False)
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
    except (OSError, StateError) as error:
        raise GoalNotSavedError(f"cannot keep the application's code in {path.parent}: {told(error)}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for part in request.stream():
                found.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if not hmac.compare_digest(found.hexdigest(), digest):
            raise ConfigError(f"the body has SHA-256 {found.hexdigest()}, the path says {digest}")
        os.replace(draft, path)
        sync_directory(str(path.parent))
    except OSError as error:
        _forget(draft)
        raise GoalNotSavedError(f"cannot keep the application's code in {path.parent}: {told(error)}") from error
    except BaseException:
        _forget(draft)
        raise


def _forget(draft: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(draft)
