"""One call of gRPC as a proxy serves it, from its metadata to its note in the journal."""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Protocol

import grpc
import grpc.aio

from servd.calls.caller import Caller
from servd.exceptions import BackPressureError, NoRouteError, RequestError
from servd.observability.access_log import Labels
from servd.observability.head_traces import RESPONSE, HeadTraces, TracedId
from servd.observability.journal import Journal
from servd.proxy.grpc.outgoing import GrpcCall, Metadata
from servd.proxy.grpc.table import GrpcTable
from servd.wire.connection_room import Share
from servd.wire.grpc.codes import Code, pushback
from servd.wire.grpc.messages import Authentication, GrpcMethod, GrpcRoute
from servd.wire.http_answers import text_for_clients
from servd.wire.records import read_answer_block
from servd.wire.trace_context import METADATA, TRACEPARENT, trace_in_metadata, with_trace

_LOOKS_AFTER_END = 3
_MOST_PAIRS = 64
"""Metadata of a call, which the library bounds by their bytes alone: what short ones cost is many times those."""
_MOST_DETAILS = 2048
"""Bytes; what is not ASCII takes three times as many on its way, and clients have room for 8 KiB with all other metadata."""
_OWN_KEYS = frozenset(
    {"application", "multiplexed_model_id", "request_id", "x-request-id", "x-request-timeout-seconds", *METADATA}
)

CODES = {code.value[0]: code for code in grpc.StatusCode}

logger = logging.getLogger(__name__)

Ended = tuple[Code, str, Metadata, bytes]
"""Code, details, trailing metadata beside the request's id, message."""


class Forwarder(Protocol):
    """What the lane asks of the proxy's `Forwarder`."""

    caller: Caller
    journal: Journal
    traces: HeadTraces

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of everything here."""
        ...

    def request_id(self, given: bytes | None) -> bytes:
        """The id of a request."""
        ...


class Lane(Protocol):
    """What a call asks of its lane."""

    forwarder: Forwarder
    table: GrpcTable
    ongoing: int
    is_secure: bool

    def share(self, client: str) -> Share:
        """What a call holds of its connection's room. client: that connection, as gRPC names it."""
        ...

    def over(self, client: str, share: Share) -> None:
        """A call has ended."""
        ...


class Served:
    """One call."""

    def __init__(self, lane: Lane, method: GrpcMethod, context: Any) -> None:
        self._lane = lane
        self._method = method
        self._context = context
        self._began = lane.forwarder.journal.now()
        pairs = context.invocation_metadata() or ()
        self._said = {key: value for key, value in pairs if key in _OWN_KEYS}
        self._pairs = len(pairs)
        given = text_of(self._said.get("request_id")) or text_of(self._said.get("x-request-id"))
        self._traced: TracedId | None = None
        self._id = lane.forwarder.request_id(given.encode() if given else None)
        self._request_id = self._id.decode()
        self._trace()
        self._labels: Labels = (method.name, "", "", "")
        self._call: GrpcCall | None = None
        self._client: str = context.peer()
        # an answer of one message holds nothing of the room, and shall take it from no stream
        self._share = lane.share(self._client) if method.streams_out else Share()
        self._sent_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def _trace(self) -> None:
        """The call may be part of a trace: then its id knows, and its metadata say what is above its method."""
        traces = self._lane.forwarder.traces
        begins = traces.begins()
        if not begins and TRACEPARENT.decode() not in self._said:
            return
        parent = trace_in_metadata(self._context.invocation_metadata() or ())
        name = self._method.name.removeprefix("/")
        about = {"rpc.system": "grpc", "rpc.method": name}
        traced = traces.taken_in(self._id, parent, name, about, began=self._began, begins=begins)
        if traced is not None:
            self._id = self._traced = traced

    async def run(self, message: bytes, messages: AsyncIterator[bytes] | None) -> bytes:
        """Serve it to its end; gives the answer's message, b"" of a stream. messages: further ones of the request."""
        lane, code = self._lane, Code.CANCELLED
        lane.ongoing += 1
        try:
            code, details, trailing, answer = await self._served(message, messages)
            details = _shortened(details)
            trailing = (*trailing, ("request_id", self._request_id))
            if self._traced is not None:
                trailing = (*trailing, (RESPONSE.decode(), self._traced.response.decode()))
            if code is not Code.OK:
                await self._context.abort(CODES[code], details, trailing)
            if details:
                self._context.set_details(details)
            self._context.set_trailing_metadata(trailing)
            self._sent_bytes += len(answer)
            return answer
        except asyncio.CancelledError:
            # the client has left, or its own clock has run out
            call = self._call
            if call is not None and call.deadline is not None and lane.forwarder.loop.time() >= call.deadline:
                code = Code.DEADLINE_EXCEEDED
            raise
        finally:
            lane.ongoing -= 1
            if not self._share.is_alone:
                lane.over(self._client, self._share)
            self._note(code)

    async def _served(self, message: bytes, messages: AsyncIterator[bytes] | None) -> Ended:
        if self._pairs > _MOST_PAIRS:
            return (
                Code.RESOURCE_EXHAUSTED,
                f"a call may have {_MOST_PAIRS} metadata, this one has {self._pairs}",
                (),
                b"",
            )
        try:
            route = self._lane.table.find(text_of(self._said.get("application")))
        except NoRouteError as error:
            return Code.NOT_FOUND, str(error), (), b""
        self._labels = (self._method.name, route.app, route.deployment, "")
        if not self._lane.table.has(route, self._method.name):
            return Code.UNIMPLEMENTED, f"application {route.app!r} has no method {self._method.name}", (), b""
        forwarder = self._lane.forwarder
        call = self._call = self._made(route, message)
        reader = None
        forwarder.caller.submit(call, forwarder.caller.router_of(route.deployment))
        try:
            if messages is not None:
                reader = forwarder.loop.create_task(self._read(messages, call))
            return await self._heard(call)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if reader is not None:
                reader.cancel()
            if not call.is_over:
                forwarder.caller.cancel(call)

    def _made(self, route: GrpcRoute, message: bytes) -> GrpcCall:
        loop, context = self._lane.forwarder.loop, self._context
        limits = [limit for limit in (route.request_timeout_s, _seconds(self._said)) if limit]
        own_s = min(limits) if limits else math.inf
        left_s = context.time_remaining()
        whole_s = own_s if left_s is None else min(own_s, left_s)
        call = GrpcCall(
            loop,
            self._method,
            message,
            self._share,
            request_id=self._request_id,
            model_id=text_of(self._said.get("multiplexed_model_id")) or "",
            client=self._client,
            metadata=partial(metadata_of, context, self._traced),
            deadline=loop.time() + whole_s if whole_s < math.inf else None,
            authentication=_authentication(context) if self._lane.is_secure else None,
            traced=self._traced,
        )
        if own_s < math.inf:
            # the client's own limit is gRPC's business
            self._timer = loop.call_later(own_s, self._time_out, call, own_s)
        return call

    def _time_out(self, call: GrpcCall, limit_s: float) -> None:
        if not call.is_over:
            stage = "waiting for a replica" if call.peer is None else "in the handler"
            self._lane.forwarder.caller.cancel(call)
            call.on_failure(TimeoutError(f"the time limit of {limit_s:g} s passed while {stage}"))

    async def _read(self, messages: AsyncIterator[bytes], call: GrpcCall) -> None:
        # a stream that ends otherwise is one whose client is gone: the call is cancelled then
        with contextlib.suppress(grpc.aio.BaseError, grpc.aio.UsageError):
            async for message in messages:
                await call.send(message)
            # the library gives the same end for a client that has left, and says so a moment later: before these end, unless its
            # own threads get no time between two of its words
            for _ in range(_LOOKS_AFTER_END):
                await self._context.read()
            await call.send_end()

    async def _heard(self, call: GrpcCall) -> Ended:
        while True:
            while call.messages:
                if call.compression:
                    await self._compress(call)
                message = call.messages.popleft()
                await self._context.write(message)
                self._sent_bytes += len(message)
                call.took(message)
            if call.is_over:
                break
            await call.heard()
        if call.answer is not None:
            if call.compression:
                await self._compress(call)
            code, block, answer = call.answer
            details, trailing = read_answer_block(block)
            return Code(code), details, trailing, answer
        assert call.failure is not None
        return self._failed(call.failure)

    async def _compress(self, call: GrpcCall) -> None:
        self._context.set_compression(grpc.Compression(call.compression))
        call.compression = 0
        # the library would forget it with an answer of one message
        await self._context.send_initial_metadata(())

    def _failed(self, error: Exception) -> Ended:
        code, trailing = failure_of(error)
        if code is Code.INTERNAL:
            logger.error("grpc_call_failed request_id=%s", self._request_id, exc_info=error)
            return code, f"Internal Server Error (request id {self._request_id})", (), b""
        return code, text_for_clients(str(error)), trailing, b""

    def _note(self, code: Code) -> None:
        journal = self._lane.forwarder.journal
        if journal.is_on or self._traced is not None:
            peer = None if self._call is None else self._call.peer
            about = (self._method.name.encode(), self._sent_bytes, client_host(self._client))
            replica_id = "" if peer is None else peer.replica_id
            key = (self._labels, "gRPC", code.name)
            journal.note(key, self._began, self._id, *about, replica_id)


def metadata_of(context: Any, traced: TracedId | None = None) -> Metadata:
    """What the client has sent; in a trace with what is above the call there."""
    pairs = context.invocation_metadata() or ()
    if traced is None:
        return tuple((key, value) for key, value in pairs)
    kept = ((key, value) for key, value in pairs if key not in METADATA)
    return (*kept, *((key.decode(), value.decode()) for key, value in with_trace((), traced.trace)))


def _authentication(context: Any) -> Authentication:
    """What is known of the client's connection."""
    pairs = tuple((key, tuple(values)) for key, values in context.auth_context().items())
    key = context.peer_identity_key()
    return key.decode() if isinstance(key, bytes) else key, pairs


def failure_of(error: Exception) -> tuple[Code, Metadata]:
    """Code and trailing metadata for a call that never got its answer."""
    if isinstance(error, BackPressureError):
        return Code.RESOURCE_EXHAUSTED, (pushback(error.retry_after_s),)
    if isinstance(error, TimeoutError):
        return Code.DEADLINE_EXCEEDED, ()
    if isinstance(error, NoRouteError):
        return Code.NOT_FOUND, ()
    return (Code.UNAVAILABLE, ()) if isinstance(error, RequestError) else (Code.INTERNAL, ())


def _shortened(details: str) -> str:
    """As much of it as clients take: what is longer than their room for metadata fails the call in another way, or hangs."""
    data = details.encode(errors="replace")
    return details if len(data) <= _MOST_DETAILS else data[:_MOST_DETAILS].decode(errors="ignore") + " ..."


def client_host(peer: str) -> str:
    """The address in `ipv4:127.0.0.1:1234`, `ipv6:%5B::1%5D:1234`; "" of a client that has none."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")


def text_of(value: "str | bytes | None") -> str | None:
    """A value of metadata that is text."""
    return value if isinstance(value, str) else None


def _seconds(said: dict[str, "str | bytes"]) -> float:
    """The limit that the metadata asks for; 0 = none."""
    try:
        asked = float(text_of(said.get("x-request-timeout-seconds")) or 0)
    except ValueError:
        return 0.0
    return asked if 0 < asked < math.inf else 0.0
