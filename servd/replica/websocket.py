"""A WebSocket inside a replica whose client's connection was handed over: the replica speaks to the client itself.

Until the handler has accepted, the connection is the proxy's: what refuses the handshake goes there as an answer of HTTP. With
the answer that accepts, the proxy gives the connection away, and hears of it again when it is over.
"""

import asyncio
from collections import deque
from typing import Any

from servd.calls.failures import ClientGoneError
from servd.calls.request_context import RequestContext
from servd.replica.caller_peer import CallerPeer
from servd.replica.exchange import HttpExchange
from servd.replica.receiving import Message
from servd.replica.responses import UTF8_TEXT
from servd.wire.http_answers import block_of
from servd.wire.records import BACK, END, HEAD, RESTARTING
from servd.wire.websocket.connection import WebSocketWire
from servd.wire.websocket.heartbeat import Heartbeat
from servd.wire.websocket.protocol import Agreed, WebSocketProtocol, agree
from servd.wire.websocket.said import content_of

_GOING_WRONG = 1011
_SWITCHING = 101
_NOT_ACCEPTED = b"the WebSocket's handler ended before it accepted"


class WebSocketExchange(HttpExchange):
    """One WebSocket. As `HttpExchange`, for its handler and for the server.

    Args:
        pings: seconds between two pings, and from a ping to a sign of life.

    Attributes:
        is_handed: it is the replica's, and not over.
    """

    outlives_handler = True
    _is_left = False

    def __init__(
        self,
        peer: CallerPeer,
        call_id: int,
        scope: dict[str, Any],
        context: RequestContext,
        body: Any,
        *,
        pings: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__(peer, call_id, scope, context, body)
        self._pings = pings
        self._loop = asyncio.get_running_loop()
        self._agreed: Agreed | None = None
        self._wire: WebSocketWire | None = None
        self._given: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"WebSocketExchange({self.scope['path']} id={self.call_id}, {self._wire or 'handshake'})"

    @property
    def is_handed(self) -> bool:
        """It is the replica's, and not over."""
        return self._wire is not None and not self._wire.is_over

    def _is_told_all(self) -> bool:
        # once it is open, its end has an event of its own
        return self.is_disconnected or (self.is_finished and self._wire is None)

    def expect_events(self, is_lent: bool) -> None:  # noqa: ARG002 - it always is
        """The connection has come with the request."""
        self._events = deque([{"type": "websocket.connect"}])

    async def send(self, message: Message) -> None:
        """ASGI `send`.

        Raises:
            ClientGoneError: the client is gone.
            RuntimeError: the message does not fit the state of the WebSocket.
            TypeError: it has neither text nor bytes.
            ValueError: it cannot be sent: a code that no server may say, a line break in a header.
        """
        kind = message["type"]
        if self.is_disconnected and kind != "websocket.close":
            raise ClientGoneError("the client is gone")
        wire = self._wire
        if kind == "websocket.send":
            if wire is None or wire.is_closing:
                raise RuntimeError("the WebSocket is not open")
            content = content_of(message)
            body = content.encode() if isinstance(content, str) else content
            if wire.send(isinstance(content, str), body):
                await wire.room()
        elif kind == "websocket.close":
            self._close(message.get("code", 1000), message.get("reason") or "")
        elif kind == "websocket.accept":
            await self._accept(message)
        elif kind == "websocket.http.response.start":
            if self.has_begun or self._held_head is not None:
                raise RuntimeError("the handshake has been answered already")
            self._held_head = (message["status"], message.get("headers", ()))
        elif kind == "websocket.http.response.body":
            await self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r}")

    def abort(self, reason: str) -> None:
        """The handler has ended, and has not closed it."""
        if not self.has_begun:
            self.finish(500, UTF8_TEXT, _NOT_ACCEPTED)
        elif self._agreed is None:
            # amid an answer that refuses it
            super().abort(reason)
        elif self._wire is not None:
            self._wire.close(_GOING_WRONG)
        self.is_finished = True

    def disconnect(self) -> None:
        """The proxy is gone, or says that the client is."""
        self._leave()

    def let_go(self) -> None:
        """As `disconnect`, and the handler goes on."""
        self._leave()

    def feed_event(self, message: Message, cost: int) -> None:  # noqa: ARG002 - the proxy has one thing to say
        """The proxy is to end."""
        self._leave(message["code"])

    def feed_body(self, data: bytes, more: bool) -> None:  # noqa: ARG002 - it is the beginning
        """The connection is this replica's from now on; data: what the client has sent."""
        if self._agreed is None or self._wire is not None or self._is_left:
            return
        lent = self._peer.door.body(self._peer.key, self.call_id)
        if lent is None:
            # the door was closed meanwhile, and what lay there with it
            self._peer.send((BACK, self.call_id, 0))
            self._leave()
            return
        protocol = WebSocketProtocol(self._agreed.extensions)
        self._over = self._loop.create_future()
        self._wire = WebSocketWire(self._loop, self, lent[0], protocol, Heartbeat(*self._pings))
        if self._given is not None and not self._given.done():
            self._given.set_result(None)
        self._wire.begin(data)

    async def conclude(self) -> None:
        """The handler has ended: see the connection to its end too, which does not take long any more."""
        try:
            if self._wire is not None:
                assert self._over is not None
                await self._over
        finally:
            if self._wire is not None:
                self._wire.cut()
            self._peer.door.refuse(self._peer.key, self.call_id)
            if self._agreed is not None:
                self._peer.finish_exchange(self.call_id, (END, self.call_id, self._peer.ongoing_after(), None))

    def cut(self) -> None:
        """Close the connection, whatever the client has got."""
        if self._wire is not None:
            self._wire.cut()

    def on_message(self, message: Message, cost: int) -> None:
        """A message of the client came."""
        message["cost"] = cost
        assert self._events is not None
        self._events.append(message)
        self._wake()

    def on_farewell(self, code: int, reason: str) -> None:
        """The client says nothing more."""
        if not self.is_disconnected:
            assert self._events is not None
            self._events.append({"type": "websocket.disconnect", "code": code, "reason": reason})
            self._wake()
            self.is_disconnected = True

    def on_over(self) -> None:
        """The connection is closed."""
        assert self._wire is not None
        self._peer.send((BACK, self.call_id, self._wire.sent_bytes))
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _leave(self, code: int = RESTARTING) -> None:
        self._is_left = True
        self.on_farewell(code if self._wire is not None else 1006, "")
        if self._wire is not None:
            self._wire.close(code)
        else:
            # the handler may never begin
            self._peer.door.refuse(self._peer.key, self.call_id)
            if self._given is not None and not self._given.done():
                self._given.set_exception(ClientGoneError("the client is gone"))
                # whoever waits may have been cancelled
                self._given.exception()
        self._wake_writer()

    def _close(self, code: int, reason: str) -> None:
        if self._wire is not None:
            self._wire.close(code, reason)
            self.is_finished = True
        elif not self.has_begun and not self.is_disconnected:
            self.finish(403, (), b"")

    async def _accept(self, message: Message) -> None:
        if self.has_begun or self._held_head is not None:
            raise RuntimeError("the handshake has been answered already")
        agreed = agree(self.scope["headers"], message.get("subprotocol"))
        own = block_of(tuple((bytes(name), bytes(value)) for name, value in message.get("headers", ())), False)
        block = b"".join(b"%b: %b\r\n" % pair for pair in agreed.headers)
        if block.count(b"\n") != len(agreed.headers) or block.count(b"\r") != len(agreed.headers):
            raise ValueError("a subprotocol holds a line break")
        self._agreed = agreed
        self.has_begun = True
        self._given = self._loop.create_future()
        self._peer.send((HEAD, self.call_id, _SWITCHING, block + own))
        await self._given
        # it was for the answer to the handshake
        self.context.deadline = None

    def _grant(self, cost: int) -> None:
        if self._wire is not None:
            self._wire.took(cost)
