"""The admin server: paths, verbs, access, and Hypercorn on the TCP port and the Unix socket."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from servd.calls.routes.target import unusual_target
from servd.documents.control_plane import ControlPlane
from servd.documents.figure_views import Figures
from servd.exceptions import HostLimitError
from servd.ground.clock import SystemClock
from servd.ground.host_limits import descriptors_left, no_descriptor
from servd.observability.error_groups import ErrorBook
from servd.rest.access import AccessRules
from servd.rest.dialects import DIALECT_KEY, Dialect
from servd.rest.documents import (
    applications_resource,
    deployments_resource,
    deployments_status_resource,
    version_resource,
)
from servd.rest.exchange import PEER_KEY, STRANGER, BodyWatch, Endpoint, Resource, json_answer
from servd.rest.figures import figures_resource, history_resource
from servd.rest.logs import logs_resource
from servd.rest.openapi import openapi_document
from servd.rest.own_endpoints import (
    Metrics,
    application_resource,
    code_resource,
    error_resource,
    errors_resource,
    metrics_resource,
    scale_resource,
    stack_resource,
    start_resource,
    status_resource,
    upgrade_resource,
)
from servd.rest.pages import ABORT_KEY, OPEN_PATHS, PAGE, login_page, open_pages, page_routes
from servd.rest.peers import Peer, peer_of
from servd.rest.problems import not_allowed, not_found, problem, problem_of
from servd.rest.revisions import prune_resource, revision_resource, revisions_resource, rollback_resource
from servd.rest.routes import Maker, Routes

logger = logging.getLogger(__name__)

GRACEFUL_TIMEOUT_S = 3.0
SPARE_DESCRIPTORS = 8
"""So many are not used for clients: those that live must be tended."""
TURN_AWAY_S = 1.0


class AdminApp:
    """The whole admin plane as an ASGI application. The server puts the peer into the scope under `servd.peer`."""

    def __init__(
        self,
        plane: ControlPlane,
        access: AccessRules,
        code_dir: str,
        metrics: Metrics,
        errors: ErrorBook,
        figures: Figures,
    ) -> None:
        self._access = access
        self._pages = open_pages(plane, errors, figures)
        own = page_routes(plane, self._pages, lambda: self._access, self._is_let_in)
        self._routes = Routes({**routes(plane, code_dir, metrics, errors, figures), **own})

    def admit_by(self, access: AccessRules) -> None:
        """Use these rules from now on."""
        self._access = access

    def end_pages(self) -> None:
        """Whoever looks at the page shall not hold up the end."""
        self._pages.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        body = BodyWatch(receive)
        request = Request(scope, body)
        try:
            response = await self._respond(request)
        except Exception as error:
            response = problem_of(error)
        if "content-length" in request.headers or "transfer-encoding" in request.headers:
            await body.discard_rest()
        await response(scope, body, send)

    async def _respond(self, request: Request) -> Response:
        path = _spelled(request.scope)
        refused = self._refused(request, path)
        if refused is not None:
            return refused
        resource = self._routes.find(path)
        if resource is None:
            return not_found()
        endpoint = _endpoint(resource, request.method)
        if endpoint is None:
            return not_allowed([*resource, "HEAD"] if "GET" in resource else [*resource])
        return await endpoint(request)

    def _is_let_in(self, request: Request) -> bool:
        """Whether the request would be let in now, too."""
        return self._refused(request, _spelled(request.scope)) is None

    def _refused(self, request: Request, path: str) -> Response | None:
        peer = request.scope.get(PEER_KEY, STRANGER)
        local, port = request.scope.get("server") or ("", 0)
        headers = _headers(request.scope)
        anyway = self._access.refusal_beside_token(peer, headers, local)
        if path in OPEN_PATHS:
            refusal = anyway
        else:
            at = SystemClock().wall_time()
            refusal = self._access.refusal(peer, headers, local, port=port or 0, method=request.method, at=at)
        if refusal is None:
            return None
        if refusal.status == 401 and path == PAGE and anyway is None:
            return login_page()
        extra = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
        return problem(refusal.status, refusal.text, extra)


def routes(
    plane: ControlPlane, code_dir: str, metrics: Metrics, errors: ErrorBook, figures: Figures
) -> dict[str, Maker]:
    """Every path of the admin plane."""
    return {
        "/api/serve/deployments/": lambda: deployments_resource(plane),
        "/api/serve/deployments/status": lambda: deployments_status_resource(plane),
        "/api/serve/applications/": lambda: applications_resource(plane),
        "/api/ray/version": lambda: version_resource(plane),
        "/api/openapi.json": lambda: {"GET": _openapi},
        "/metrics": lambda: metrics_resource(metrics),
        "/api/v1/applications/{app}/deployments/{deployment}/scale": lambda app, name: scale_resource(plane, app, name),
        "/api/servd/v1/status": lambda: status_resource(plane),
        "/api/servd/v1/start": lambda: start_resource(plane),
        "/api/servd/v1/upgrade": lambda: upgrade_resource(plane),
        "/api/servd/v1/revisions": lambda: revisions_resource(plane),
        "/api/servd/v1/revisions/{revision}": lambda number: revision_resource(plane, number),
        "/api/servd/v1/errors": lambda: errors_resource(errors),
        "/api/servd/v1/errors/{id}": lambda error_id: error_resource(errors, error_id),
        "/api/servd/v1/figures": lambda: figures_resource(figures),
        "/api/servd/v1/figures/history": lambda: history_resource(figures),
        "/api/servd/v1/logs": lambda: logs_resource(plane),
        "/api/servd/v1/prune": lambda: prune_resource(plane),
        "/api/servd/v1/revisions/{revision}/rollback": lambda number: rollback_resource(plane, number),
        # the application without a name
        "/api/servd/v1/applications/": lambda: application_resource(plane, ""),
        "/api/servd/v1/applications/{app}": lambda name: application_resource(plane, name),
        "/api/servd/v1/replicas/{replica_id}/stack": lambda replica_id: stack_resource(plane, replica_id),
        "/api/servd/v1/code/{sha256}": lambda digest: code_resource(code_dir, digest),
    }


def _spelled(scope: Scope) -> str:
    """The path as the client wrote it."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    if path[:1] != b"/":
        path, _ = unusual_target(path)
    return path.partition(b"?")[0].decode("latin-1")


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; of one that comes twice the last. The cookies of HTTP/2 come one by one."""
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    cookies = "; ".join(value for name, value in pairs if name == "cookie")
    return {**dict(pairs), **({"cookie": cookies} if cookies else {})}


def _endpoint(resource: Resource, method: str) -> Endpoint | None:
    return resource.get("GET" if method == "HEAD" else method)


async def _openapi(_: Request) -> Response:
    return json_answer(openapi_document())


def create_app(
    plane: ControlPlane, access: AccessRules, code_dir: str, metrics: Metrics, errors: ErrorBook, figures: Figures
) -> AdminApp:
    """The admin plane over `plane`; shipped applications are kept in `code_dir`; `metrics` gives Prometheus' text."""
    return AdminApp(plane, access, code_dir, metrics, errors, figures)


async def serve(
    app: AdminApp,
    sockets: list[socket.socket],
    shutdown: asyncio.Event,
    tls: ssl.SSLContext | None = None,
    local: asyncio.Queue[socket.socket] | None = None,
    today: Sequence[socket.socket] = (),
) -> None:
    """Serve the admin plane on listening sockets until `shutdown` is set; open requests get 3 s to finish.

    Args:
        tls: of TCP sockets; None = none.
        local: Unix sockets, each to be served instead of the one before it.
        today: further listening sockets, at which the dialect is today's.
    """
    config, context, loop = _config(), WorkerContext(None), asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    todays = {listener.getsockname()[1] for listener in today}

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if descriptors_left() < SPARE_DESCRIPTORS:
            await _turn_away(reader, writer)
            return
        peer = peer_of(writer.get_extra_info("socket"))
        wrapper = _with_peer(app, peer, _dialect_at(writer, todays), writer)
        await _Connection(ASGIWrapper(wrapper), loop, config, context, {}, reader, writer)  # type: ignore[arg-type]

    servers = [
        await asyncio.start_server(
            accepted, sock=listener, backlog=128, ssl=None if listener.family == socket.AF_UNIX else tls
        )
        for listener in (*sockets, *today)
    ]
    newest: list[asyncio.Server] = []

    async def serve_local(found: asyncio.Queue[socket.socket]) -> None:
        while True:
            server = await asyncio.start_server(accepted, sock=await found.get(), backlog=1024)
            for before in newest:
                before.close()
            newest[:] = [server]

    watching = [loop.create_task(serve_local(local))] if local is not None else []
    try:
        await shutdown.wait()
    finally:
        for task in watching:
            task.cancel()
        for server in (*servers, *newest):
            server.close()
        app.end_pages()
        await context.terminated.set()
        if tasks:
            _, late = await asyncio.wait(set(tasks), timeout=GRACEFUL_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _dialect_at(writer: asyncio.StreamWriter, todays: Collection[int]) -> Dialect:
    """The dialect of the door through which a connection came; todays: ports at which it is today's."""
    name = writer.get_extra_info("sockname")
    # the name of a Unix socket is a text
    return Dialect.TODAY if isinstance(name, tuple) and name[1] in todays else Dialect.SEED


def _config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("servd.rest.hypercorn")
    config.include_server_header = False
    config.keep_alive_timeout = 60.0
    return config


async def _turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say why nothing is done: what is left is for the processes that serve."""
    text = no_descriptor().encode()
    head = f"HTTP/1.1 {HostLimitError.status_code} Insufficient Storage\r\ncontent-type: text/plain; charset=utf-8\r\n"
    writer.write(f"{head}content-length: {len(text)}\r\nconnection: close\r\n\r\n".encode() + text)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(TURN_AWAY_S):
            await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            # an end with something unread is a reset, which may overtake the answer: of a head and a body, say
            while await reader.read(64 * 1024):
                pass
    writer.close()


class _Connection(TCPServer):
    _is_ended = False

    async def _read_data(self) -> None:
        await super()._read_data()
        # the client has gone: Hypercorn would keep the descriptor until the keep-alive time-out
        self._is_ended = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        # who was answered after its end needs no timer either
        if not (self._is_ended and isinstance(event, Updated)):
            await super().protocol_send(event)


def _with_peer(
    app: ASGIApp, peer: Peer, dialect: Dialect, writer: asyncio.StreamWriter
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        scope[PEER_KEY] = peer
        scope[DIALECT_KEY] = dialect
        scope[ABORT_KEY] = writer.transport.abort
        await app(scope, receive, send)

    return application
