"""Serves requests inside a replica: takes records from callers, runs the user's code, answers."""

import asyncio
from asyncio import Task
from collections.abc import Callable
from functools import partial
from typing import Any

from servd.calls import traced
from servd.calls.failures import ClientGoneError, tell
from servd.calls.pickling import dump_exception, dumps, loads
from servd.calls.request_context import RequestContext, current_request
from servd.calls.routes.patterns import unpacked_route
from servd.calls.routes.table import decoded_path
from servd.exceptions import ProtocolError
from servd.ground.ids import random_uuid
from servd.ground.remembered import Remembered
from servd.replica.admission import Admission
from servd.replica.caller_peer import CallerPeer, add_line
from servd.replica.exchange import HttpExchange
from servd.replica.grpc.exchange import GrpcExchange
from servd.replica.grpc.service import GrpcService
from servd.replica.handle_call import HandleCall
from servd.replica.methods import UserCallable
from servd.replica.unusual_request import add_rest
from servd.replica.websocket_start import cut_websockets, restart_websockets, start_websocket
from servd.wire.began import BeganLog
from servd.wire.http_answers import REQUEST_ID
from servd.wire.lending import LendingDoor
from servd.wire.link import Peer, ReplicaLink
from servd.wire.records import (
    BEYOND,
    BODY,
    CALL,
    CANCEL,
    CLAIM,
    CREDIT,
    DECLINE,
    EVENT,
    GRPC,
    HELLO,
    HTTP,
    KEEP,
    LENDS,
    LIMIT,
    OFFER,
    SOCKET,
    STREAM,
    TRACED,
    WANT,
    bodies_of,
    body_of,
    read_origin,
)
from servd.wire.trace_context import unpacked

_ASGI = {"version": "3.0", "spec_version": "2.4"}
_MAX_REMEMBERED, _MAX_REMEMBERED_PATH_BYTES = 4096, 256


class ReplicaServer:
    """The data side of a replica: one loop, one ROUTER, the user's code.

    Args:
        address: ZeroMQ address to bind; never used by another replica before or after.
        user: the user's deployment.
        limit: `max_concurrent_queries`, over all callers.
        cancel_on_disconnect: cancel handlers whose caller took the request back.
        replica_id: of this replica, for calls that run in circles.
        on_cancelled: called with the context of a request whose handler was cancelled: the calls it made end too.
        on_records: called after what a caller sent was taken in; keep it cheap.
        grpc: serves calls of gRPC, also where the application has no servicers: callers may think that it has.
        takes_websockets: clients' connections may be handed over to it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: str,
        user: UserCallable,
        *,
        limit: int,
        grpc: GrpcService,
        app: str = "",
        replica_id: str = "",
        cancel_on_disconnect: bool = True,
        on_cancelled: Callable[[RequestContext], None] | None = None,
        on_records: Callable[[], None] | None = None,
        takes_websockets: bool = False,
    ) -> None:
        self._loop = loop
        self._address = address
        self._user = user
        self._app = app
        self._replica_id = replica_id
        self._own = (replica_id,)
        self.take_back_calls: Callable[[RequestContext], None] = on_cancelled or (lambda _: None)
        self.cancel_on_disconnect = cancel_on_disconnect
        self.admission: Admission[CallerPeer] = Admission(limit)
        self._limit, self._is_held = limit, False
        self._on_heard = on_records
        self._grpc = grpc
        self._link: ReplicaLink | None = None
        self._door = LendingDoor(loop, address, partial(add_line, self._callers), takes_websockets=takes_websockets)
        self._paths = Remembered(decoded_path, most=_MAX_REMEMBERED, longest=_MAX_REMEMBERED_PATH_BYTES)
        self._origins = Remembered(read_origin, most=_MAX_REMEMBERED)
        self._idle: asyncio.Future[None] | None = None
        self._began: BeganLog | None = None
        self._begun_ids = memoryview(bytearray(16)).cast("Q")

    def __repr__(self) -> str:
        return f"ReplicaServer({self._address}, {self.admission})"

    @property
    def ongoing(self) -> int:
        """Admitted requests that have not ended."""
        return self.admission.running

    def start(self) -> None:
        """Bind and serve.

        Raises:
            TransportError: the address cannot be bound.
        """
        self._began = BeganLog(self._address)
        self._begun_ids = self._began.words
        self._link = ReplicaLink(
            self._loop,
            self._address,
            self._on_records,
            self._on_gone,
            lambda link, identity: CallerPeer(link, identity, self.admission, self._door),
        )

    def bind_again(self) -> None:
        """Make the address anew that somebody removed.

        Raises:
            TransportError: it cannot be bound.
        """
        if self._link is not None:
            self._link.bind(self._address)

    def set_limits(self, limit: int, cancel_on_disconnect: bool) -> None:
        """Take over new values; what runs goes on."""
        self._limit = limit
        self.admission.limit = 0 if self._is_held else limit
        self.cancel_on_disconnect = cancel_on_disconnect
        for peer in self._link.peers.values() if self._link is not None else ():
            peer.send((LIMIT, limit))
        self._make_offers()

    def hold(self, is_held: bool) -> None:
        """Refuse new requests as a full replica does, as long as those that run hold up all others."""
        self._is_held = is_held
        self.admission.limit = 0 if is_held else self._limit
        self._make_offers()

    def drain(self) -> None:
        """Take nothing new from now on; what runs goes on."""
        self.admission.leave()

    def restart_websockets(self) -> bool:
        """Tell WebSockets that the service restarts; whether there was one."""
        return restart_websockets(self._callers())

    def _callers(self) -> list[CallerPeer]:
        peers = self._link.peers.values() if self._link is not None else ()
        return [peer for peer in peers if isinstance(peer, CallerPeer)]

    async def wait_idle(self) -> None:
        """Return when no request runs, and none can begin any more."""
        while self.admission.running:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)
        self.admission.end()

    def close(self, linger_s: float = 0.0) -> None:
        """Send what waits, then stop serving; `linger_s` as in `ReplicaLink.close`."""
        if self._link is not None:
            cut_websockets(self._callers())
            self._link.flush()
            self._link.close(linger_s)
            self._link = None
        self._door.close()
        if self._began is not None:
            self._began.close()

    def _on_records(self, peer: Peer, records: list[Any], frames: list[Any]) -> None:
        assert isinstance(peer, CallerPeer)
        for record in records[1:]:
            if peer.is_refused:
                return
            running = self.admission.running
            try:
                kind = record[0]
                if kind == HTTP:
                    self.on_http(peer, record, frames)
                elif kind == CALL:
                    self._on_call(peer, record, frames)
                else:
                    self._on_other(peer, kind, record, frames)
            except Exception:
                # admitted, but it cannot begin; the link drops the peer
                if self.admission.running > running:
                    self.release()
                raise
        if self._on_heard is not None:
            self._on_heard()
        if peer.newest != peer.newest_said and not peer.is_due:
            peer.link.schedule(peer)

    def _on_other(self, peer: CallerPeer, kind: int, record: tuple[Any, ...], frames: list[Any]) -> None:
        if kind == GRPC:
            if self.admit(peer, record):
                self._grpc.start(self, peer, record, frames, self._own)
            return
        if kind == SOCKET:
            start_websocket(self, peer, record)
            return
        if kind in (DECLINE, WANT):
            self.admission.decline(peer) if kind == DECLINE else self.admission.want(peer, record[1])
            self._make_offers()
            return
        if kind == HELLO:
            assert self._began is not None
            peer.greet(self._began, self._limit, self._user.routes, *record[1:4])
            return
        work = peer.open.get(record[1])
        if kind == CANCEL:
            if work is not None:
                peer.cancel(record[1], work, self._take_back)
        elif kind == CREDIT:
            if work is not None:
                work.add_credit(record[2])
        elif kind == BODY:
            if isinstance(work, HttpExchange | GrpcExchange):
                work.feed_body(bytes(body_of(record[2], frames)), record[3])
        elif kind == EVENT:
            if isinstance(work, HttpExchange):
                work.feed_event(record[2], record[3])
        elif kind == KEEP:
            peer.door.keep(peer.key, record[1])
        else:
            raise ProtocolError(f"unknown record kind {kind!r}")

    def on_http(
        self,
        peer: CallerPeer,
        record: tuple[Any, ...],
        frames: list[Any],
        make: Callable[..., HttpExchange] = HttpExchange,
    ) -> None:
        """Serve a request of HTTP, if there is a slot for it. make: makes the exchange."""
        (_, call_id, flags, method, path, query, headers, body, request_id, route, origin, extra) = record
        if not self.admit(peer, record):
            return
        client, server, scheme, version, root_path = self._origins[origin]
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": method,
            "scheme": scheme,
            "path": self._paths[path],
            "raw_path": path,
            "query_string": query,
            "root_path": root_path if route == "/" else root_path + route,
            # the caller has taken away what its client gave
            "headers": [*headers, (REQUEST_ID, request_id.encode())],
            "client": client,
            "server": server,
        }
        context = RequestContext(request_id, route, self._app, "", None, 0, self._own)
        exchange = make(peer, call_id, scope, context, body)
        exchange.may_ask = bool(flags & LENDS)
        variables = None
        if flags & ~LENDS or extra is not None or type(body) is int:
            variables = add_rest(peer, exchange, flags, extra, frames, self._limit)
        peer.open[call_id] = exchange
        peer.newest = call_id
        # `create_task` would make up a name first, which costs a sixth of the task
        exchange.task = Task(self._serve(peer, call_id, exchange), loop=self._loop, name=request_id, context=variables)

    def _on_call(self, peer: CallerPeer, record: tuple[Any, ...], frames: list[Any]) -> None:
        _, call_id, flags, method, parts, (request_id, route, app, model_id, left, depth, ancestors) = record
        if not self.admit(peer, record):
            return
        # drivers of earlier editions name none
        request_id, (route, pattern) = request_id or random_uuid(), unpacked_route(route)
        deadline, within = None if left is None else self._loop.time() + left, (*ancestors, self._replica_id)
        context = RequestContext(request_id, route, app, model_id, deadline, depth + 1, within, pattern)
        call = HandleCall(peer, call_id, method, bodies_of(parts, frames), bool(flags & STREAM), context)
        variables = None
        if flags & TRACED and (trace := unpacked(call.parts.pop())) is not None:
            call.context, variables = traced.begun(context, trace, method, {})
        peer.open[call_id] = call
        peer.newest = call_id
        call.task = Task(self._answer(peer, call_id, call), loop=self._loop, name=request_id, context=variables)

    def admit(self, peer: CallerPeer, record: tuple[Any, ...]) -> bool:
        """Whether there is a slot for a request, which has it then; the caller is told where there is none."""
        admission = self.admission
        if admission.enter(peer, record[2] & CLAIM, record[2] & BEYOND):
            return True
        peer.reject(record, admission.running, admission.is_leaving)
        return False

    def begin(self, peer: CallerPeer, call_id: int) -> bool:
        """Whether an admitted call shall run, which begins now: not where nobody waits for it any more."""
        if call_id not in peer.open and self.cancel_on_disconnect:
            self.release()
            return False
        self._begun_ids[peer.place] = call_id
        return True

    async def _serve(self, peer: CallerPeer, call_id: int, exchange: HttpExchange) -> None:
        exchange.has_started = True
        if not self.begin(peer, call_id):
            return
        try:
            current_request.set(exchange.context)
            if exchange.upload is not None:
                exchange.upload.start()
            await self._user.handle_http(exchange)
            if not exchange.is_finished and exchange.scope["type"] == "http" and not exchange.is_disconnected:
                raise RuntimeError("the handler ended without a complete response")
        except (asyncio.CancelledError, ClientGoneError) as error:
            self.take_back_calls(exchange.context)
            if not exchange.is_finished and not exchange.is_disconnected:
                tell(error, "__call__")
                exchange.fail(RuntimeError("the handler was cancelled"), self._loop.time())
        # whatever user code raises belongs to its request
        except BaseException as error:
            tell(error, "__call__")
            if not exchange.is_finished:
                exchange.fail(error, self._loop.time())
        finally:
            if not exchange.is_finished:
                exchange.abort("")
            try:
                if exchange.outlives_handler:
                    await exchange.conclude()
            finally:
                # before what may fail: a slot that is not given back is gone for good
                self.release()
                exchange.context.end()

    async def _answer(self, peer: CallerPeer, call_id: int, call: HandleCall) -> None:
        call.has_started = True
        if not self.begin(peer, call_id):
            return
        try:
            current_request.set(call.context)
            args, kwargs = loads(call.parts)
            call.parts = []
            if call.is_stream:
                await call.send_all(self._user.stream(call.method, args, kwargs, call.context))
            else:
                call.reply(True, dumps(await self._user.call(call.method, args, kwargs, call.context)))
        except asyncio.CancelledError as error:
            self.take_back_calls(call.context)
            if call_id in peer.open:
                tell(error, call.method)
            call.reply(False, dump_exception(error))
        # whatever user code raises belongs to its request
        except BaseException as error:
            tell(error, call.method)
            call.reply(False, dump_exception(error))
        finally:
            self.release()
            call.context.end()

    def release(self) -> None:
        """A request has ended."""
        admission = self.admission
        admission.running -= 1
        if admission.tickets:
            self._make_offers()
        if not admission.running and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def _make_offers(self) -> None:
        while (peer := self.admission.next_offer()) is not None:
            peer.send((OFFER, self.admission.running))

    @property
    def _take_back(self) -> Callable[[RequestContext], None] | None:
        return self.take_back_calls if self.cancel_on_disconnect else None

    def _on_gone(self, peer: Peer) -> None:
        assert isinstance(peer, CallerPeer)
        for call_id, work in list(peer.open.items()):
            peer.cancel(call_id, work, self._take_back)
        peer.door.leave(peer.key)
        self.admission.forget(peer)
        if self._began is not None:
            self._began.close_place(peer.place)
        self._make_offers()
