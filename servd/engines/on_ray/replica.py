"""A replica on a Ray cluster: servd's own `UserCallable` behind Ray's requests."""

import asyncio
import inspect
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any

from ray import serve

from servd.calls import pickling
from servd.calls.failures import listen, tell
from servd.calls.process import install_process
from servd.calls.replica_context import ReplicaContext, set_replica_context
from servd.calls.request_context import RequestContext, current_request
from servd.engines.on_ray.built import built_from
from servd.engines.on_ray.calls import FAILURE, VALUE, ClusterCaller, Part, context_from
from servd.engines.on_ray.private_names import get_serve_request_context
from servd.ground.ids import DeploymentID, ReplicaID
from servd.observability.tracebacks import user_traceback
from servd.replica.responses import UTF8_TEXT, Headers, error_response
from servd.replica.user_callable import UserCallable

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

logger = logging.getLogger("ray.serve")
"""Ray's own of a replica: its file is there, with the request's id on each line."""


class ClusterReplica:
    """One deployment of the application of an order (see `entry.build`) in this process. All methods belong on one loop."""

    def __init__(self, order: Mapping[str, Any], name: str) -> None:
        ids = serve.get_replica_context()
        self._app = order["name"]
        deployment = built_from(order).deployments[name]
        given = order["options"].get(name, {})

        def option(key: str) -> Any:
            return given.get(key, getattr(deployment.config, key))

        self._context = ReplicaContext(ReplicaID(DeploymentID(name, self._app), ids.replica_id.unique_id))
        self._user = UserCallable(
            deployment, self._context, max_sync_threads=option("max_sync_threads"), owns_process=True
        )
        self._time_limit_s: float | None = option("request_timeout_s")
        self._may_cancel: bool = option("cancel_on_disconnect")
        self._memory_limit_bytes: int | None = option("memory_limit_bytes")
        self._running: set[asyncio.Future[Any]] = set()

    async def start(self) -> None:
        """Construct the user's instance. Raises whatever its constructor raises."""
        install_process(ClusterCaller(self._app), asyncio.get_running_loop())
        set_replica_context(self._context)
        listen(_log_failure)
        await self._user.construct()

    async def call(self, method: str, parts: list[bytes], request: tuple[Any, ...]) -> Part:
        """Result of a handle call, or what it raised."""
        context = context_from(request, self._app)
        current_request.set(context)
        try:
            args, kwargs = pickling.loads(parts)
            async with asyncio.timeout_at(context.deadline):
                result = await self._user.call(method, args, kwargs, context)
            return VALUE, sendable(pickling.dumps(result))
        except Exception as error:
            tell(error, method)
            return FAILURE, sendable(pickling.dump_exception(error))

    async def stream(self, method: str, parts: list[bytes], request: tuple[Any, ...]) -> AsyncIterator[Part]:
        """Results of a streaming handle call, the last one perhaps what it raised."""
        context = context_from(request, self._app)
        current_request.set(context)
        try:
            args, kwargs = pickling.loads(parts)
            async for item in self._user.stream(method, args, kwargs, context):
                yield VALUE, sendable(pickling.dumps(item))
        except Exception as error:
            tell(error, method)
            yield FAILURE, sendable(pickling.dump_exception(error))

    async def reconfigure(self, user_config: Any) -> None:
        """Give the instance its `user_config`."""
        await self._user.reconfigure(user_config)

    async def check_health(self) -> None:
        """Raise if the process has outgrown its limit; then ask the user's own check."""
        limit = self._memory_limit_bytes
        if limit is not None and (used := _resident_bytes()) > limit:
            raise MemoryError(f"{used} bytes of memory are in use, memory_limit_bytes is {limit}")
        check = self._user.health_check
        if check is not None:
            found = check() if inspect.iscoroutinefunction(check) else await asyncio.to_thread(check)
            if inspect.isawaitable(found):
                await found

    async def close(self) -> None:
        """End the user's instance."""
        await self._user.close()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """What Ray takes for the application: answers requests and WebSockets as servd does."""
        if scope["type"] == "lifespan":
            # the instance's own has begun with it
            while (message := await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": f"{message['type']}.complete"})
            return
        about = get_serve_request_context()
        context = RequestContext(about.request_id, about.route, self._app, serve.get_multiplexed_model_id())
        current_request.set(context)
        exchange = ClusterExchange(scope, receive, send)
        try:
            await self._limited(self._user.handle_http(exchange), exchange)
        except Exception as error:
            tell(error, "__call__")
            if exchange.has_begun or scope["type"] != "http":
                raise
            await exchange.answer(*error_response(error, about.request_id))

    async def _limited(self, handling: Awaitable[None], exchange: "ClusterExchange") -> None:
        if not self._may_cancel:
            handling = asyncio.ensure_future(handling)
            # the loop holds it weakly, and who waits for it may be gone
            self._running.add(handling)
            handling.add_done_callback(self._running.discard)
            handling = asyncio.shield(handling)
        try:
            async with asyncio.timeout(self._time_limit_s if exchange.scope["type"] == "http" else None) as limit:
                await handling
        except TimeoutError:
            if not limit.expired() or exchange.has_begun:
                raise
            text = f"The time limit of {self._time_limit_s:g} s passed while in the handler."
            await exchange.answer(408, UTF8_TEXT, text.encode())
            return
        if exchange.whole is not None:
            await exchange.answer(*exchange.whole)


class ClusterExchange:
    """One request over ASGI."""

    # Ray's proxy takes a response of any size
    whole_below = sys.maxsize

    def __init__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.has_begun = False
        self.whole: tuple[int, Headers, bytes] | None = None

    async def send(self, message: Mapping[str, Any]) -> None:
        """ASGI `send`."""
        self.has_begun = True
        headers = message.get("headers")
        await self._send({**message, "headers": list(headers)} if headers is not None else dict(message))

    def finish(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer with a whole response, once the handler has returned."""
        self.whole = (status, headers, body)

    async def answer(self, status: int, headers: Any, body: bytes) -> None:
        """Answer with a whole response."""
        length = (b"content-length", str(len(body)).encode())
        known = {bytes(name).lower() for name, _ in headers}
        whole = [*headers] if b"content-length" in known or status in (204, 304) else [*headers, length]
        await self.send({"type": "http.response.start", "status": status, "headers": whole})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def _log_failure(error: BaseException, method: str, requests: Sequence[RequestContext], is_logged: bool) -> None:
    if is_logged:
        return
    ids = ",".join(one.request_id for one in requests)
    logger.error("user_code_failed method=%s requests=%s\n%s", method, ids, user_traceback(error))


def sendable(parts: list[Any]) -> list[bytes]:
    """Parts of a pickle as Ray sends them."""
    return [bytes(part) for part in parts]


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES
