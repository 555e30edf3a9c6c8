"""Serves calls of gRPC with the methods of the user's deployment."""

import asyncio
import inspect
from asyncio import Task
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from servd.app.grpc_servicers import Codec
from servd.calls import traced
from servd.calls.failures import ClientGoneError, tell
from servd.calls.grpc_services import REFLECT
from servd.calls.request_context import RequestContext, current_request
from servd.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, gRPCStatusError
from servd.ground.settings import SHOW_TRACEBACKS, is_on
from servd.grpc_util import RayServegRPCContext, code_of, gRPCInputStream
from servd.observability.described import slot, text_of
from servd.observability.tracebacks import user_traceback
from servd.replica.grpc.exchange import GrpcExchange
from servd.replica.grpc.reflection import reflected
from servd.wire.grpc.codes import Code, pushback
from servd.wire.http_answers import text_for_clients
from servd.wire.records import FIRST_CREDIT, SMALLER, STREAMED_BODY, TRACED, body_of
from servd.wire.trace_context import METADATA, trace_in_metadata

_CONTEXT = "grpc_context"


class Method(Protocol):
    """A method of the user's."""

    function: Any


class User(Protocol):
    """What a service asks of the replica's `UserCallable`."""

    def find(self, name: str) -> Any:
        """The method of that name; raises RayServeException without one."""
        ...

    async def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], context: RequestContext) -> Any:
        """Result of a method."""
        ...

    def stream(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], context: RequestContext
    ) -> AsyncGenerator[Any, None]:
        """Items of a generator method."""
        ...


class Server(Protocol):
    """What a service asks of the replica's server."""

    def begin(self, peer: Any, call_id: int) -> bool:
        """Whether the call shall run, which begins now: not where nobody waits for it any more."""
        ...

    def take_back_calls(self, context: RequestContext) -> None:
        """End the calls that a request has made, since it was cancelled."""
        ...

    def release(self) -> None:
        """A request has ended."""
        ...


class GrpcService:
    """The methods of one replica. codecs: by full name."""

    def __init__(self, loop: asyncio.AbstractEventLoop, user: User, codecs: Mapping[str, Codec], app: str) -> None:
        self._loop = loop
        self._user = user
        self._codecs = codecs
        self._app = app
        self._takes_context: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"GrpcService({list(self._codecs)})"

    def start(
        self, server: Server, peer: Any, record: tuple[Any, ...], frames: list[Any], ancestors: tuple[str, ...]
    ) -> None:
        """Serve an admitted call of `peer`, which has it among its open ones from here on."""
        _, call_id, flags, method, message, request_id, (left, model_id, client, metadata, *known) = record
        deadline = None if left is None else self._loop.time() + left
        context = RequestContext(request_id, method, self._app, model_id, deadline, 0, ancestors)
        body = bytes(body_of(message, frames))
        credit = FIRST_CREDIT[flags & SMALLER]
        who = (client, metadata, known[0] if known else None)
        exchange = GrpcExchange(peer, call_id, method, body, context, *who, credit=credit)
        peer.open[call_id] = exchange
        peer.newest = call_id
        if flags & STREAMED_BODY:
            exchange.expect_messages()
        variables = None
        if flags & TRACED and (trace := trace_in_metadata(metadata)) is not None:
            about = {"rpc.system": "grpc", "rpc.method": method}
            exchange.context, variables = traced.begun(context, trace, method.rpartition("/")[2], about)
            own = (METADATA[0], exchange.context.trace.traceparent)
            exchange.metadata = tuple(own if pair[0] == own[0] else pair for pair in metadata)
        serving = self._serve(server, peer, exchange)
        exchange.task = Task(serving, loop=self._loop, name=request_id, context=variables)

    async def _serve(self, server: Server, peer: Any, exchange: GrpcExchange) -> None:
        exchange.has_started = True
        if not server.begin(peer, exchange.call_id):
            return
        about = RayServegRPCContext(
            exchange.metadata, exchange.client, exchange.context.deadline, self._loop.time, exchange.authentication
        )
        name = exchange.method.rpartition("/")[2]
        try:
            current_request.set(exchange.context)
            await self._run(exchange, name, about)
        except (asyncio.CancelledError, ClientGoneError) as error:
            server.take_back_calls(exchange.context)
            if exchange.call_id in peer.open:
                tell(error, name)
            self._fail(exchange, error, about)
        # whatever user code raises belongs to its request
        except BaseException as error:
            if about.code() is None and not issubclass(type(error), gRPCStatusError):
                tell(error, name)
            self._fail(exchange, error, about)
        finally:
            server.release()
            exchange.context.end()

    async def _run(self, exchange: GrpcExchange, name: str, about: RayServegRPCContext) -> None:
        if exchange.method == REFLECT:
            exchange.finish(Code.OK, message=reflected(exchange.message))
            return
        codec = self._codecs.get(exchange.method)
        if codec is None:
            raise _unimplemented(f"this version of the application has no method {exchange.method}")
        kwargs = {_CONTEXT: about} if self._wants_context(name) else {}
        if codec.streams_in:
            request: Any = _Requests(exchange, codec)
        else:
            request, exchange.message = _read(codec, exchange.message), b""
        args, message = (request,), b""
        if codec.streams_out:
            async with aclosing(self._user.stream(name, args, kwargs, exchange.context)) as items:
                async for item in items:
                    if not about.has_begun and about.compression():
                        exchange.compress(about.compression())
                    about.has_begun = True
                    await exchange.send(codec.write(item))
        else:
            result = await self._user.call(name, args, kwargs, exchange.context)
            if about.code() is None or code_of(about.code()) is Code.OK:
                message = codec.write(result)
                if about.compression():
                    exchange.compress(about.compression())
        code = Code.OK if about.code() is None else code_of(about.code())
        exchange.finish(code, about.details(), about.trailing_metadata(), message)

    def _wants_context(self, name: str) -> bool:
        found = self._takes_context.get(name)
        if found is None:
            try:
                method = self._user.find(name)
            except RayServeException as error:
                raise _unimplemented(str(error)) from None
            found = self._takes_context[name] = _CONTEXT in inspect.signature(method.function).parameters
        return found

    def _fail(self, exchange: GrpcExchange, error: BaseException, about: RayServegRPCContext) -> None:
        try:
            self._tell_end(exchange, error, about)
        # user code may have put anything into its error, and the client waits
        except Exception as wrong:
            tell(wrong, exchange.method.rpartition("/")[2])
            exchange.finish(*_failure(wrong, exchange.context.request_id, is_late=False))

    def _tell_end(self, exchange: GrpcExchange, error: BaseException, about: RayServegRPCContext) -> None:
        trailing = about.trailing_metadata()
        if about.code() is not None and code_of(about.code()) is not Code.OK:
            exchange.finish(code_of(about.code()), about.details() or text_of(error), trailing)
        elif issubclass(type(error), gRPCStatusError):
            exchange.finish(*_told(error), trailing)  # type: ignore[arg-type]
        else:
            context = exchange.context
            exchange.finish(*_failure(error, context.request_id, is_late=context.is_late(self._loop.time())))


class _Requests(gRPCInputStream):
    """Those of a call. An iteration that the client's leaving ends never looks like one that has come to its end."""

    def __init__(self, exchange: GrpcExchange, codec: Codec) -> None:
        super().__init__(self._received(exchange, codec))
        self._exchange = exchange

    def is_cancelled(self) -> bool:
        return self._exchange.is_unheard or super().is_cancelled()

    @staticmethod
    async def _received(exchange: GrpcExchange, codec: Codec) -> AsyncIterator[Any]:
        while (message := await exchange.receive()) is not None:
            yield _read(codec, message)


def _unimplemented(text: str) -> gRPCStatusError:
    return gRPCStatusError(RayServeException(text), Code.UNIMPLEMENTED, text)


def _read(codec: Codec, data: bytes) -> Any:
    try:
        return codec.read(data)
    except Exception as error:
        raise gRPCStatusError(error, Code.INTERNAL, f"the request is no message of {codec.name}") from error


def _told(error: gRPCStatusError) -> tuple[Code, str]:
    code = Code.INTERNAL if error.grpc_code is None else code_of(error.grpc_code)
    return code, error.grpc_details or text_of(error.original_exception)


def _failure(error: BaseException, request_id: str, *, is_late: bool) -> tuple[Code, str, tuple[tuple[str, str], ...]]:
    """Code, details, trailing metadata of what user code raised: the client gets the id that leads to it."""
    # of the type alone: `isinstance` asks the object too, which may raise
    kind = type(error)
    if is_late:
        return Code.DEADLINE_EXCEEDED, "the time limit of the request passed while its method ran", ()
    if issubclass(kind, BackPressureError):
        return (
            Code.RESOURCE_EXHAUSTED,
            text_for_clients(text_of(error)),
            (pushback(slot(error, "__dict__").get("retry_after_s")),),
        )
    if issubclass(kind, DeploymentUnavailableError):
        return Code.UNAVAILABLE, text_for_clients(text_of(error)), ()
    text = f"Internal Server Error (request id {request_id})"
    if is_on(SHOW_TRACEBACKS):
        text = f"{text}\n\n{user_traceback(error)}"
    return Code.INTERNAL, text, ()
