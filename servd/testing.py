"""Test an application: in the test's own process with an HTTP client, or on a daemon of its own.

Needs httpx (`pip install httpx`). With `pytest_plugins = ["servd.testing"]` in a `conftest.py` tests have
the fixture `servd_daemon`. Source of the names: Starlette's `TestClient`, httpx.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from starlette.websockets import WebSocketDisconnect

from servd.api import delete, run
from servd.app.built import BuiltApplication
from servd.app.deployment import Application
from servd.calls.routes.table import decoded_path
from servd.client import Client, start_own
from servd.daemon.listeners import concrete_port
from servd.exceptions import ServdError
from servd.ground.settings import DEFAULT_HTTP_HOST, url_of
from servd.handle import RayServeSyncHandle
from servd.local.http import OVER, LocalCall, Message
from servd.local.mode import RUNS
from servd.local.websockets import AsyncWebSocket, WebSocket, waited_for
from servd.wire.http_answers import has_content

try:
    import httpx
except ImportError as error:
    raise ImportError("servd.testing needs httpx, which is not installed: pip install httpx") from error

__all__ = [
    "AppClient",
    "AsyncAppClient",
    "AsyncWebSocket",
    "Daemon",
    "WebSocket",
    "WebSocketDisconnect",
    "async_client",
    "client",
    "daemon",
]

_HOST = "testserver"
_CLIENT = ("testclient", 50000)
TIMEOUT_S = 30.0
"""How long a client waits for each message of an answer, unless it is given a `timeout`."""
_PORT_TRIES = 5


class _Door:
    """Where requests enter an application of this process. prefix: of its route, "" = it has all paths."""

    def __init__(self, name: str, raises: bool) -> None:
        self._name, self._raises = name, raises
        self.prefix = (RUNS.caller_of(name)[0].route_prefix or "").rstrip("/")

    def call(
        self, kind: str, method: str, url: httpx.URL, headers: httpx.Headers, body: bytes = b""
    ) -> LocalCall | None:
        """The request on its way; None: its path is not the application's."""
        raw_path, _, query = url.raw_path.partition(b"?")
        path = decoded_path(raw_path)
        if not f"{path}/".startswith(f"{self.prefix}/"):
            return None
        scope: dict[str, Any] = {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": url.scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": self.prefix,
            "headers": [(name.lower(), value) for name, value in headers.raw],
            "client": _CLIENT,
            "server": (url.host, url.port or (443 if url.scheme in ("https", "wss") else 80)),
        }
        if kind == "websocket":
            del scope["method"]
            scope["extensions"] = {"websocket.http.response": {}}
            given = headers.get("sec-websocket-protocol", "")
            scope["subprotocols"] = [word.strip() for word in given.split(",") if word.strip()]
        return LocalCall(*RUNS.caller_of(self._name), scope, body, raises=self._raises)

    def websocket(self, http: "AppClient | AsyncAppClient", url: str, options: dict[str, Any]) -> LocalCall:
        """A WebSocket on its way, with the client's own headers and cookies."""
        subprotocols = options.pop("subprotocols", ())
        request = http.build_request("GET", url, **options)
        if subprotocols:
            request.headers["sec-websocket-protocol"] = ", ".join(subprotocols)
        scheme = "wss" if request.url.scheme in ("https", "wss") else "ws"
        call = self.call("websocket", "GET", request.url.copy_with(scheme=scheme), request.headers)
        if call is None:
            raise WebSocketDisconnect(1006, f"{request.url.path} is not below {self.prefix}")
        return call


class _Answer(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of an answer, piece by piece, as the handler sends it."""

    def __init__(self, call: LocalCall, request: httpx.Request, status: int) -> None:
        self._call, self._request = call, request
        self._has_content = has_content(request.method, status)

    def __iter__(self) -> Iterator[bytes]:
        while (message := _next(self._call, self._request))["type"] != OVER:
            if (piece := message.get("body")) and self._has_content:
                yield bytes(piece)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await _next_async(self._call, self._request))["type"] != OVER:
            if (piece := message.get("body")) and self._has_content:
                yield bytes(piece)

    def close(self) -> None:
        self._call.leave().result()

    async def aclose(self) -> None:
        await asyncio.wrap_future(self._call.leave())


class _Transport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    def __init__(self, door: _Door) -> None:
        self._door = door

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        call = self._door.call("http", request.method, request.url, request.headers, body)
        return self._not_found(request) if call is None else _response(call, request, _next(call, request))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        call = self._door.call("http", request.method, request.url, request.headers, body)
        return self._not_found(request) if call is None else _response(call, request, await _next_async(call, request))

    def _not_found(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            404, text=f"Path {request.url.path!r} is not below {self._door.prefix!r}, where the application is."
        )


def _response(call: LocalCall, request: httpx.Request, head: Message) -> httpx.Response:
    return httpx.Response(head["status"], headers=head["headers"], stream=_Answer(call, request, head["status"]))


def _next(call: LocalCall, request: httpx.Request) -> Message:
    limit_s = request.extensions.get("timeout", {}).get("read")
    try:
        return waited_for(call.next(), limit_s)
    except TimeoutError:
        call.leave()
        raise httpx.ReadTimeout(f"no answer within {limit_s} s", request=request) from None


async def _next_async(call: LocalCall, request: httpx.Request) -> Message:
    limit_s = request.extensions.get("timeout", {}).get("read")
    try:
        async with asyncio.timeout(limit_s):
            return await asyncio.wrap_future(call.next())
    except TimeoutError:
        call.leave()
        raise httpx.ReadTimeout(f"no answer within {limit_s} s", request=request) from None


class AppClient(httpx.Client):
    """Made by `client`: an `httpx.Client` whose requests go straight to the application.

    Attributes:
        handle: to the ingress.
    """

    handle: RayServeSyncHandle

    def __init__(self, door: _Door, handle: RayServeSyncHandle, options: dict[str, Any]) -> None:
        super().__init__(transport=_Transport(door), **_with_defaults(door, options))
        self._door, self.handle = door, handle

    def websocket_connect(self, url: str, **options: Any) -> WebSocket:
        """A WebSocket, to be entered with `with`.

        Args:
            url: as of a request.
            options: `subprotocols`, and what a request of httpx takes (`headers`, `params`, `cookies`).

        Raises:
            WebSocketDisconnect: when entered: the application refuses it.
        """
        return WebSocket(self._door.websocket(self, url, options), self.timeout.read)


class AsyncAppClient(httpx.AsyncClient):
    """Made by `async_client`: as `AppClient`, for code with an event loop."""

    handle: RayServeSyncHandle

    def __init__(self, door: _Door, handle: RayServeSyncHandle, options: dict[str, Any]) -> None:
        super().__init__(transport=_Transport(door), **_with_defaults(door, options))
        self._door, self.handle = door, handle

    def websocket_connect(self, url: str, **options: Any) -> AsyncWebSocket:
        """A WebSocket, to be entered with `async with`; else as `AppClient.websocket_connect`."""
        return AsyncWebSocket(self._door.websocket(self, url, options), self.timeout.read)


def _with_defaults(door: _Door, options: dict[str, Any]) -> dict[str, Any]:
    return {"base_url": f"http://{_HOST}{door.prefix}", "timeout": TIMEOUT_S, **options}


@contextmanager
def client(
    app: Application | BuiltApplication, *, name: str = "default", raise_app_exceptions: bool = True, **options: Any
) -> Iterator[AppClient]:
    """The application in this process, and an HTTP client to it; works in a running event loop too, as in a notebook.

    All its deployments run on an event loop in a thread of their own, one replica each, and their code is not copied: what a test
    changes (`dependency_overrides`, module attributes) holds in them.

    Args:
        name: of the application.
        raise_app_exceptions: what a handler raises is raised by the request; else the answer is that of a replica.
        options: of `httpx.Client`. `base_url` is by default where the application's route begins, and `timeout` 30 s.

    Raises:
        Exception: whatever a constructor raises.
        ServdError: an application of that name runs in this process.
    """
    handle = _started(app, name)
    try:
        with AppClient(_Door(name, raise_app_exceptions), handle, options) as made:
            yield made
    finally:
        delete(name)


@asynccontextmanager
async def async_client(
    app: Application | BuiltApplication, *, name: str = "default", raise_app_exceptions: bool = True, **options: Any
) -> AsyncIterator[AsyncAppClient]:
    """As `client`, with an `httpx.AsyncClient`; the event loop goes on while the application starts and ends."""
    handle = await asyncio.to_thread(_started, app, name)
    try:
        async with AsyncAppClient(_Door(name, raise_app_exceptions), handle, options) as made:
            yield made
    finally:
        await asyncio.to_thread(delete, name)


def _started(app: Application | BuiltApplication, name: str) -> RayServeSyncHandle:
    if RUNS.ingress_of(name):
        raise ServdError(
            f"an application {name!r} runs in this process: end it with `servd.delete({name!r})`, or give another name"
        )
    return run(app, name=name, local=True)


class Daemon:
    """Made by `daemon`.

    Attributes:
        url: of the data plane, without a slash at its end.
        state_dir: what commands take as `--state-dir`; the log files lie in its folder `logs`.
    """

    def __init__(self, url: str, state_dir: str) -> None:
        self.url, self.state_dir = url, state_dir

    def __repr__(self) -> str:
        return f"Daemon({self.url}, {self.state_dir})"

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client to the data plane. options: of httpx."""
        return httpx.Client(**{"base_url": self.url, "timeout": TIMEOUT_S, **options})

    def async_client(self, **options: Any) -> httpx.AsyncClient:
        """As `client`, for code with an event loop."""
        return httpx.AsyncClient(**{"base_url": self.url, "timeout": TIMEOUT_S, **options})


@contextmanager
def daemon() -> Iterator[Daemon]:
    """A daemon on free ports, with a state directory that goes with it; it ends with this process at the latest.

    Meanwhile it is the daemon of this process: `servd.run`, `servd.delete`, `servd.get_app_handle` and the others mean it.
    `servd.shutdown()` deletes what was deployed, and leaves it as it is at its start.

    Raises:
        ServdError: this process runs a daemon of its own already, or it cannot start.
    """
    with tempfile.TemporaryDirectory(prefix="servd-test-") as folder:
        state_dir = os.path.join(folder, "state")
        owner = start_own(state_dir)
        try:
            port = _opened_port(owner)
            # else the verbs of the next test would mean the daemon of this host
            owner.connection.after_shutdown = partial(owner.start_instance, {"port": port})
            yield Daemon(url_of(DEFAULT_HTTP_HOST, port), state_dir)
        finally:
            owner.close()


def _opened_port(owner: Client) -> int:
    """Open the data plane on a free port."""
    for left in reversed(range(_PORT_TRIES)):
        port = concrete_port(None, 0)
        try:
            owner.start_instance({"port": port})
        except ServdError:
            # another program may have taken it since
            if not left:
                raise
            continue
        break
    return port


if "pytest" in sys.modules:
    import pytest

    @pytest.fixture(scope="session")
    def servd_daemon() -> Iterator[Daemon]:
        """One daemon for all tests of the run (see `daemon`); let each delete what it deploys: `servd.delete(name)`."""
        with daemon() as running:
            yield running
