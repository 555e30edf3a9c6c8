"""The lane for everything that is not HTTP/1.1: WebSocket, h2c, HTTP/2 by prior knowledge; Hypercorn's connection class."""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any, cast

from h2.errors import ErrorCodes
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H2CProtocolRequiredError, H11WSConnection
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.typing import ConnectionState

from servd.ground.clock import worked
from servd.proxy.app_queue import AppQueue
from servd.proxy.client_host import Silence, is_reset
from servd.proxy.forwarded_call import Send
from servd.proxy.forwarder import Forwarder
from servd.proxy.http_form import HttpForm
from servd.proxy.hypercorn.http2 import LaneHttp2
from servd.proxy.hypercorn.read_size import MOST_READ_BYTES, next_read
from servd.proxy.hypercorn.refusals import Refuse
from servd.proxy.hypercorn.websocket import LaneWebSocket
from servd.proxy.parting import parted
from servd.proxy.websocket_form import WebSocketForm
from servd.wire.connection_room import Share
from servd.wire.websocket.heartbeat import Heartbeat

_PREFACE = b"PRI * HTTP/2.0\r\n"
_AFTER_END_S = 1.0

logger = logging.getLogger(__name__)


class HypercornLane:
    """Takes over connections of the HTTP/1.1 lane, with the bytes read so far."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._loop = forwarder.loop
        self._http = HttpForm(forwarder)
        self._websocket = WebSocketForm(forwarder)
        self.connections: set[LaneConnection] = set()
        self.is_draining = False
        self.limits = forwarder.limits
        config = Config()
        config.keep_alive_timeout = forwarder.limits.unused_s or forwarder.limits.idle_s
        # its own bound would break off connections that are in use
        config.keep_alive_max_requests = sys.maxsize
        config.h2_max_header_list_size = forwarder.limits.head_bytes
        config.include_server_header = False
        config.accesslog = None
        config.errorlog = logger
        self.config = config
        self.context = WorkerContext(None)
        # never called: `_LaneTasks` runs the forms
        self.app = ASGIWrapper(cast(Any, None))

    def __repr__(self) -> str:
        return f"HypercornLane(connections={len(self.connections)}{', draining' if self.is_draining else ''})"

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Serve this connection from now on; `data` begins with the HTTP/2 preface or a request's head."""
        reader = asyncio.StreamReader(loop=self._loop)
        protocol = _LaneProtocol(reader, loop=self._loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        connection = LaneConnection(self, reader, writer, data)
        protocol.connection = connection
        self.connections.add(connection)
        connection.task = self._loop.create_task(connection.serve())
        connection.task.add_done_callback(connection.end)

    def drain(self, patience_s: float) -> None:
        """Close WebSockets, and HTTP/2 connections as soon as they are idle; who still begins requests then is asked to leave."""
        self.is_draining = True
        self._websocket.drain()
        for connection in list(self.connections):
            connection.close_if_idle()
            self._loop.call_later(patience_s, connection.ask_to_leave)

    def close(self) -> None:
        """Cut off what is left."""
        for connection in list(self.connections):
            if connection.task is not None:
                connection.task.cancel()

    def turn(self) -> None:
        """Once a second: look for clients that are gone and could not say so."""
        for connection in list(self.connections):
            connection.turn()

    async def serve(self, scope: Any, queue: AppQueue, send: Send, share: Share) -> None:
        """Forward what one scope stands for. share: of what its connection may hold.

        Raises:
            ConnectionAbortedError: the response was broken off after it had begun.
        """
        if scope["type"] == "http":
            await self._http(scope, queue, send, share)
        elif scope["type"] == "websocket":
            await self._websocket(scope, queue, send, share)

    async def refuse(self, scope: Any, status: int, send: Send) -> None:
        """Answer a request that nobody is asked for."""
        await self._http.refuse(scope, status, send)


class _LaneProtocol(asyncio.StreamReaderProtocol):
    connection: "LaneConnection | None" = None

    def eof_received(self) -> bool | None:
        if self.connection is not None:
            self.connection.changed.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.connection is not None:
            self.connection.is_lost = True
            self.connection.changed.set()
            for queue in self.connection.queues:
                queue.give_up()


class _LaneTasks(TaskGroup):
    """Runs the forwarder for each request, with a queue that is bounded by bytes."""

    def __init__(self, connection: "LaneConnection", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._connection = connection

    async def spawn_app(self, app: Any, config: Any, scope: Any, send: Any) -> Any:  # noqa: ARG002 - Hypercorn's signature
        stream: HTTPStream | WSStream = send.__self__
        protocol = self._connection.protocol.protocol
        is_websocket = isinstance(stream, WSStream)
        if isinstance(protocol, LaneHttp2):
            wishes = [value.lower() for name, value in scope["headers"] if name == b"expect"]
            about = {"is_websocket": is_websocket, "is_expecting": b"100-continue" in wishes}
            queue = protocol.open_queue(stream.stream_id, **about)
            share = protocol.open_share(stream.stream_id)
        else:
            queue, share = AppQueue(), Share()
        self._connection.queues.add(queue)
        if isinstance(stream, WSStream):
            self._connection.websockets[queue] = self._take_over(stream, queue)
        self.spawn(self._serve, stream, scope, queue, share)
        return queue.put

    def spawn(self, func: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        work = func(*args)
        try:
            self._task_group.create_task(work)
        except RuntimeError:
            # all of the connection's tasks are being ended
            work.close()

    def _take_over(self, stream: WSStream, queue: AppQueue) -> LaneWebSocket:
        limits = self._connection.lane.limits
        return LaneWebSocket.take_over(
            stream,
            queue,
            Heartbeat(limits.ws_ping_interval_s, limits.ws_ping_timeout_s),
            unsent_bytes=lambda: self._connection.unsent_bytes(stream.stream_id),
            end_soon=lambda: self.spawn(self._end_late, stream.stream_id),
            on_handled=self._on_handled,
        )

    async def _on_handled(self, stream_id: int, size: int) -> None:
        protocol = self._connection.protocol.protocol
        if isinstance(protocol, LaneHttp2):
            await protocol.handled(stream_id, size)

    async def _serve(self, stream: HTTPStream | WSStream, scope: Any, queue: AppQueue, share: Share) -> None:
        try:
            await self._connection.lane.serve(scope, queue, cast(Send, stream.app_send), share)
        except ConnectionAbortedError:
            protocol = self._connection.protocol.protocol
            if isinstance(protocol, LaneHttp2):
                await protocol.break_off(stream.stream_id, ErrorCodes.INTERNAL_ERROR)
        except Exception:
            logger.exception("forwarding_failed")
        finally:
            self._connection.queues.discard(queue)
            queue.give_up()
            await stream.app_send(None)
            self._connection.websockets.pop(queue, None)
            protocol = self._connection.protocol.protocol
            if isinstance(protocol, LaneHttp2):
                protocol.close_share(stream.stream_id)

    async def _end_late(self, stream_id: int) -> None:
        # it was told why; what it answers is nobody's business
        await asyncio.sleep(_AFTER_END_S)
        protocol = self._connection.protocol.protocol
        if isinstance(protocol, LaneHttp2):
            await protocol.break_off(stream_id, ErrorCodes.ENHANCE_YOUR_CALM)
            await protocol._close_stream(stream_id)
        else:
            self._connection.writer.transport.abort()


class _LaneWrapper(ProtocolWrapper):
    refuse: Refuse

    def use_h2(self) -> LaneHttp2:
        about = (self.app, self.config, self.context, self.task_group, self.state, self.ssl, self.client, self.server)
        self.protocol = LaneHttp2(self.refuse, *about, self.send)
        return self.protocol

    async def handle(self, event: Event) -> None:
        try:
            await self.protocol.handle(event)
        except H2CProtocolRequiredError as upgrade:
            await self.use_h2().initiate(upgrade.headers, upgrade.settings)
            if upgrade.data:
                await self.protocol.handle(RawData(data=upgrade.data))


class LaneConnection(TCPServer):
    """Hypercorn's connection, with cures for what it leaves behind (early WebSocket bytes, ended connections)."""

    def __init__(
        self, lane: HypercornLane, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes
    ) -> None:
        loop = lane._loop
        super().__init__(lane.app, loop, lane.config, lane.context, {}, reader, writer)
        self.lane = lane
        self.queues: set[AppQueue] = set()
        self.websockets: dict[AppQueue, LaneWebSocket] = {}
        self._silence = Silence(lane.limits.keep_alive)
        self._data = data
        self._is_idle = False
        self.is_lost = False
        self._is_ended = False
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        # now: others look at it before the task has its first turn
        self._task_group = _LaneTasks(self, loop)
        self.protocol = self._wrapper()

    @property
    def is_held_up(self) -> bool:
        """A handler does not take what the client sent, so the client is not read from."""
        return not all(queue.has_room for queue in self.queues)

    @property
    def _is_refused(self) -> bool:
        """The WebSocket's handshake was refused before anybody was asked."""
        stream = getattr(self.protocol.protocol, "stream", None)
        is_http1 = isinstance(getattr(self.protocol.protocol, "connection", None), H11WSConnection)
        return is_http1 and isinstance(stream, WSStream) and stream.closed

    def unsent_bytes(self, stream_id: int) -> int:
        """What waits for the client to take it, of this stream where it has several."""
        protocol = self.protocol.protocol
        if isinstance(protocol, LaneHttp2):
            return protocol.unsent_bytes(stream_id)
        return self.writer.transport.get_write_buffer_size()

    def turn(self) -> None:
        """Once a second: end the connection of a client that is gone, ping those of WebSockets."""
        sock = self.writer.get_extra_info("socket")
        if (self.is_held_up and is_reset(sock)) or self._silence.look(sock):
            self.writer.transport.abort()
        for websocket in list(self.websockets.values()):
            websocket.turn()
        if isinstance(protocol := self.protocol.protocol, LaneHttp2):
            protocol.turn()

    async def serve(self) -> None:
        """Run to the end of the connection."""
        try:
            await self.run()
        except asyncio.CancelledError:
            pass
        except Exception:
            logger.exception("lane_connection_failed")

    def end(self, _: object) -> None:
        """Nothing is left of it; also where its task was ended before its first turn."""
        self.lane.connections.discard(self)
        self.writer.transport.abort()

    def _wrapper(self) -> _LaneWrapper:
        is_tls = self.writer.get_extra_info("sslcontext") is not None
        names = (self.writer.get_extra_info(name) for name in ("peername", "sockname"))
        client, server = (name[:2] if name else None for name in names)
        about = (self.app, self.config, self.context, self._task_group, ConnectionState(self.state))
        wrapper = _LaneWrapper(*about, is_tls, client, server, self.protocol_send)
        wrapper.refuse = self.lane.refuse
        if self._data.startswith(_PREFACE):
            wrapper.use_h2()
        return wrapper

    async def run(self) -> None:
        """As the base class, but HTTP/2 by prior knowledge begins as HTTP/2: through HTTP/1 it would lose its idle timer."""
        try:
            async with self._task_group as task_group:
                await self.protocol.initiate()
                await self.idle_task.restart(task_group, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        """As the base class, and looks for the moment to close while draining."""
        if not (self._is_ended and isinstance(event, Updated)):
            # a timer begun now would outlive the connection
            await super().protocol_send(event)
        self.changed.set()
        if isinstance(event, Updated):
            self._is_idle = event.idle
            if event.idle and (self.lane.is_draining or getattr(self.protocol.protocol, "is_left", False)):
                self.close_if_idle()

    def close_if_idle(self) -> None:
        """Say goodbye when nothing is under way."""
        if self._is_idle:
            self._task_group.spawn(self._say_goodbye)

    def ask_to_leave(self) -> None:
        """Its client shall send further requests elsewhere, if it would go on."""
        if isinstance(protocol := self.protocol.protocol, LaneHttp2):
            protocol.is_unwelcome = True

    async def _say_goodbye(self) -> None:
        protocol = self.protocol.protocol
        if isinstance(protocol, LaneHttp2):
            if not await protocol.say_goodbye():
                return
            await parted(self.writer.transport, protocol.parted)
        await self.protocol.handle(Closed())
        self.writer.close()

    async def _initiate_server_close(self) -> None:
        # whoever asks just now is to know that it may ask again
        await self._say_goodbye()

    async def _read_data(self) -> None:
        data, self._data = self._data, b""
        head, end, rest = data.partition(b"\r\n\r\n")
        if data.startswith(_PREFACE):
            head, end, rest = data, b"", b""
        await self.protocol.handle(RawData(head + end))
        if not await self._is_handshake_over() or self._is_refused:
            # gone before it was answered, or answered with a refusal, after which the base class would go on listening
            await self.protocol.handle(Closed())
        else:
            if rest:
                await self.protocol.handle(RawData(rest))
            await self._read_on()
        self._is_ended = True
        # else the descriptor waits for the idle time-out
        await self.idle_task.stop()
        if self.task is not None:
            # an application that never hears of the end
            self.loop.call_later(_AFTER_END_S, self.task.cancel)

    async def _read_on(self) -> None:
        # the base class works off all that was read before others have their turn
        size = MOST_READ_BYTES
        while not self.reader.at_eof():
            try:
                data = await self.reader.read(size)
            except OSError:
                break
            began = worked()
            await self.protocol.handle(RawData(data))
            is_all = len(data) < size
            size = next_read(len(data), worked() - began)
            if not is_all:
                await asyncio.sleep(0)
        await self.protocol.handle(Closed())

    async def _is_handshake_over(self) -> bool:
        # bytes before the answer to the handshake would be refused in a way that leaves task and descriptor behind
        while not self.is_lost and not self.reader.at_eof():
            protocol = self.protocol.protocol
            stream = getattr(protocol, "stream", None)
            if not isinstance(getattr(protocol, "connection", None), H11WSConnection):
                return True
            if not isinstance(stream, WSStream) or stream.state is not ASGIWebsocketState.HANDSHAKE:
                return True
            if stream.closed:
                return True
            self.changed.clear()
            await self.changed.wait()
        return False
