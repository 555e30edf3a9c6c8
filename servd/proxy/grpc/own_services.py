"""The services that a proxy has itself: health, Ray Serve's, and reflection, for which it asks a replica."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from servd.calls import grpc_services as services
from servd.exceptions import ProtocolError
from servd.proxy.grpc.outgoing import GrpcCall
from servd.proxy.grpc.served import Forwarder, text_of
from servd.proxy.grpc.table import GrpcTable
from servd.wire.connection_room import Share
from servd.wire.grpc.codes import Code
from servd.wire.grpc.messages import GrpcMethod
from servd.wire.http_answers import text_for_clients


class OwnServices:
    """They follow the table. Calls of theirs are not noted: probes would be most of the log.

    Attributes:
        is_serving: the port takes calls.
    """

    def __init__(self, forwarder: Forwarder, table: GrpcTable) -> None:
        self._forwarder = forwarder
        self._table = table
        self.is_serving = False
        self._changed = asyncio.Event()
        self._handlers = {
            f"/{services.HEALTH}/Check": grpc.unary_unary_rpc_method_handler(self._check),
            f"/{services.HEALTH}/Watch": grpc.unary_stream_rpc_method_handler(self._watch),
            f"/{services.RAY_SERVE}/Healthz": grpc.unary_unary_rpc_method_handler(self._healthz),
            f"/{services.RAY_SERVE}/ListApplications": grpc.unary_unary_rpc_method_handler(self._list_applications),
        }
        self._reflecting = {
            f"/{name}/ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(self._reflect)
            for name in services.REFLECTIONS
        }

    def __repr__(self) -> str:
        return f"OwnServices({'serving' if self.is_serving else 'not serving'})"

    def handler(self, name: str) -> Any:
        """What serves a method, in gRPC's form; None for one that is none of these."""
        found = self._handlers.get(name)
        if found is None and self._table.reflecting(None) is not None:
            found = self._reflecting.get(name)
        return found

    def tell(self) -> None:
        """Tell those who watch, since the table or `is_serving` has changed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _health(self, service: str) -> services.Health:
        if service not in ("", *self._table.services(), services.HEALTH, services.RAY_SERVE):
            return services.Health.SERVICE_UNKNOWN
        return services.Health.SERVING if self.is_serving else services.Health.NOT_SERVING

    async def _check(self, request: bytes, context: Any) -> bytes:
        status = self._health(await _service_asked(request, context))
        if status is services.Health.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return services.health_answer(status)

    async def _watch(self, request: bytes, context: Any) -> None:
        service, told = await _service_asked(request, context), None
        while True:
            changed = self._changed
            if (status := self._health(service)) is not told:
                told = status
                await context.write(services.health_answer(status))
            elif self.is_serving:
                await changed.wait()
            else:
                # or it would hold up the end
                return

    async def _healthz(self, _: bytes, context: Any) -> bytes:
        if not self.is_serving:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this proxy is draining")
        return services.healthz_answer("success")

    async def _list_applications(self, _: bytes, context: Any) -> bytes:  # noqa: ARG002 - gRPC's form
        return services.applications_answer(self._table.applications())

    async def _reflect(self, requests: AsyncIterator[bytes], context: Any) -> None:
        app = text_of(dict(context.invocation_metadata() or ()).get("application"))
        async for request in requests:
            if services.asks_for_services(request):
                names = [*self._table.services(), services.HEALTH, services.RAY_SERVE, *services.REFLECTIONS]
                await context.write(services.services_answer(request, names))
            else:
                await context.write(await self._asked(request, app, context.peer()))

    async def _asked(self, request: bytes, app: str | None, client: str) -> bytes:
        """What a replica says to a reflection request: the message types are there."""
        route = self._table.reflecting(app)
        if route is None:
            return services.error_answer(request, Code.NOT_FOUND, f"no application {app!r} tells its message types")
        caller = self._forwarder.caller
        call = GrpcCall(
            self._forwarder.loop,
            GrpcMethod(services.REFLECT, is_idempotent=True),
            request,
            Share(),
            request_id=self._forwarder.request_id(None).decode(),
            model_id="",
            client=client,
            metadata=tuple,
            deadline=None,
        )
        caller.submit(call, caller.router_of(route.deployment))
        try:
            while not call.is_over:
                await call.heard()
        finally:
            if not call.is_over:
                caller.cancel(call)
        if call.answer is not None and call.answer[0] == Code.OK:
            return call.answer[2]
        reason = text_for_clients(str(call.failure or "the replica does not know its message types"))
        return services.error_answer(request, Code.UNAVAILABLE, reason)


async def _service_asked(request: bytes, context: Any) -> str:
    try:
        return services.service_asked(request)
    except ProtocolError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise
