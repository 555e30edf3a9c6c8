"""WebSockets of plain HTTP/1.1 clients: their handshake is a request, then the connection is handed over to the replica for good.

```
    HANDSHAKE ----- accepted, and the answer has left -----> GIVEN ----- the replica says so -----> OVER
        |                                                      |                                     ^
        +---- refused, timed out, left: an answer of HTTP -----+---- the replica died: cut ----------+
```

The proxy reads and writes in HANDSHAKE, and neither afterwards; the replica does in GIVEN, and only then.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from typing import Any

from servd.calls.traced import note_wait
from servd.observability.head_traces import BEGINS, RESPONSE, TracedId
from servd.proxy.client_host import is_left, written_bytes
from servd.proxy.forwarder import CLIENT_GONE, answer_timeout
from servd.proxy.http1_order import HttpOrder
from servd.proxy.http1_rules import Handshake, read_handshake
from servd.proxy.listener import HandOver, Listener
from servd.proxy.probes import TEXT
from servd.wire.http_answers import status_line
from servd.wire.records import CANCEL, CLAIM, DECLINE, LENT_BODY, RESTARTING, SOCKET, TRACED, WEBSOCKET, Outbox

GOODBYE_S = 5.0
"""What a handler may still do after its client has gone."""

_SWITCHING = 101
_EARLY_BYTES = 64 * 1024
_LOOK_S = 0.005
_PATIENCE_S = 1.0
"""So long a replica may take to say whether WebSockets can be handed over to it, and to take those that were."""

logger = logging.getLogger(__name__)


class Stage(Enum):
    """Whose the connection is."""

    HANDSHAKE = "the proxy's"
    GIVEN = "the replica's"
    OVER = "nobody's"


class WebSocketLane:
    """Takes connections that leave HTTP/1.1, and gives on what cannot be handed over to a replica.

    Args:
        other: takes those.
    """

    def __init__(self, listener: Listener, other: HandOver) -> None:
        self._listener = listener
        self._other = other

    def __repr__(self) -> str:
        return f"WebSocketLane({self._listener})"

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Serve this connection from now on; `data` begins with the HTTP/2 preface or a request's head."""
        handshake = None
        # a replica cannot speak TLS to a client
        if transport.get_extra_info("sslcontext") is None and data.startswith(b"GET "):
            handshake = read_handshake(data)
        if handshake is not None and self._is_taken(handshake):
            head = data[: len(data) - len(handshake.early)]
            WebSocketConnection(
                self._listener, transport, handshake, lambda early: self._other(transport, head + early)
            )
        else:
            self._other(transport, data)

    def _is_taken(self, handshake: Handshake) -> bool:
        target = self._listener.forwarder.resolve(handshake.url.partition(b"?")[0])
        peers = [] if target is None else [candidate.peer for candidate in target.router.candidates]
        # where there is no replica it waits for one
        return not peers or any(peer is not None and (peer.takes_websockets or not peer.is_greeted) for peer in peers)


class WebSocketConnection(HttpOrder):
    """One such connection, from the handshake on. It is counted until the replica says that it is over.

    Args:
        transport: its protocol until now has nothing to do with it any more.
        fall_back: serves it otherwise, given what the client has sent behind the head.
    """

    __slots__ = ("_early", "_fall_back", "_given_up_at", "_stage", "_subprotocols")

    is_websocket = True
    _schemes = ("ws", "wss")

    def __init__(
        self,
        listener: Listener,
        transport: asyncio.Transport,
        handshake: Handshake,
        fall_back: Callable[[bytes], None],
    ) -> None:
        super().__init__(listener)
        self._transport = transport
        self._origin = self._make_origin("1.1")
        self._peer_ip = self._client_ip
        self._early = handshake.early
        self._subprotocols = handshake.subprotocols
        self._fall_back = fall_back
        self._stage = Stage.HANDSHAKE
        self._given_up_at = 0.0
        # what was sent too early must not reset the connection behind an answer
        self._is_in_body, self._is_usual = bool(handshake.early), False
        self._head_tick = 0
        transport.set_protocol(self)
        listener.connections.add(self)
        special = handshake.special
        if listener.forwarder.traces.begins():
            special = {**special, BEGINS: b""}
        self._start(b"WEBSOCKET", handshake.url, handshake.headers, b"", special, False, False)
        if listener.is_draining:
            self.drain()

    def __repr__(self) -> str:
        return f"WebSocketConnection({self._stage.value})"

    # --- the client -----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        if self._stage is Stage.GIVEN:
            # uvloop stops at once; bytes that came here would be missing there
            logger.error("read_what_was_given bytes=%d", len(data))
            self._end_given()
            return
        self._early += data
        self._is_in_body = True
        if len(self._early) > _EARLY_BYTES:
            self._pause_reading()

    def eof_received(self) -> bool:
        # no WebSocket goes on with half a connection
        self._transport.abort()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._listener.connections.discard(self)
        self._is_deaf = self._is_unready = True
        if self.is_active:
            self._note(CLIENT_GONE if self._stage is Stage.HANDSHAKE and not self.has_begun else self._status)
            self._forwarder.caller.cancel(self)
        self._end_request()

    def check_time(self, tick: int, is_over: bool) -> None:  # noqa: ARG002 - the listener's
        """Once a second: end the connection of a client that has gone and could not say so."""
        sock = self._transport.get_extra_info("socket")
        if self._transport.is_closing():
            return
        if self._stage is Stage.GIVEN:
            # the replica reads it, and hears of the end
            if self._silence.look(sock):
                self._shut()
            return
        # behind what it sent too early its end is not read
        if (self._is_read_paused and is_left(sock)) or self._silence.look(sock):
            self._transport.abort()

    def drain(self) -> None:
        """The service restarts."""
        if self._stage is Stage.GIVEN and self.peer is not None:
            self.peer.send_event(self, {"type": "websocket.disconnect", "code": RESTARTING, "reason": ""}, 0)
        elif self.is_active and not self.has_begun:
            self._forwarder.caller.cancel(self)
            self.answer((503, TEXT + b"retry-after: 1\r\n", b"the service restarts"))

    # --- the replica ----------------------------------------------------------------------------------------------------

    def record(self, call_id: int, flags: int, outbox: Outbox) -> tuple[Any, ...]:  # noqa: ARG002 - it has no body
        peer = self.peer
        assert peer is not None
        if not peer.hand_over(self, self._transport.get_extra_info("socket").fileno()):
            self._loop.call_soon(self._take_back, call_id, peer.takes_websockets or not peer.is_greeted)
            # this one cannot have it: give the slot back that it holds, or say something without a meaning
            return (DECLINE,) if flags & CLAIM else (CANCEL, call_id)
        flags |= WEBSOCKET | LENT_BODY
        left = None if self._timer is None else max(0.0, self._timer.when() - self._loop.time())
        if self._is_watched:
            self._sent_at = self._now()
            if type(self._request_id) is TracedId:
                flags |= TRACED
                note_wait(self, self._request_id.span)
        limits = self._forwarder.limits
        extra = (left, self.model_id, self._subprotocols)
        pings = (limits.ws_ping_interval_s, limits.ws_ping_timeout_s)
        return (SOCKET, call_id, flags, "GET", *self._tail[1:8], extra, pings)

    def on_head(self, status: int, block: bytes) -> None:
        if status != _SWITCHING:
            super().on_head(status, block)
            return
        if self._transport.is_closing():
            return
        self._end_timer()
        self.has_begun, self._status, self._sent_bytes = True, _SWITCHING, 0
        rid = self._request_id
        trace = b"%b: %b\r\n" % (RESPONSE, rid.response) if type(rid) is TracedId else b""
        head = (status_line(_SWITCHING), block, self._forwarder.tail, trace, b"x-request-id: ", rid, b"\r\n\r\n")
        self._transport.write(b"".join(head))
        # what this turn writes leaves at its end
        self._loop.call_soon(self._give)

    def on_back(self, size: int) -> None:
        if self._stage is Stage.GIVEN:
            self._sent_bytes = size
            self._is_lent = False
            self._end_given()
            # a decent handler hears of the end and ends; the others are cancelled
            self._loop.call_later(GOODBYE_S, self._forwarder.caller.cancel, self)

    def on_end(self, error: str | None) -> None:
        if self._stage is Stage.GIVEN:
            self._end_given()
        elif self._stage is Stage.HANDSHAKE:
            super().on_end("the WebSocket ended before it began" if self._status == _SWITCHING else error)

    def on_failure(self, error: Exception) -> None:
        if self._stage is not Stage.OVER:
            super().on_failure(error)

    def on_returned(self) -> None:
        self._serve_otherwise()

    # --- whose it is ----------------------------------------------------------------------------------------------------

    def _give(self) -> None:
        if self._stage is not Stage.HANDSHAKE or not self.is_active or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size():
            # a client that has not taken answers to earlier requests
            self._loop.call_later(_LOOK_S, self._give)
            return
        assert self.peer is not None
        self._pause_reading()
        self._stage = Stage.GIVEN
        self._is_lent = True
        self._lent_at = written_bytes(self._transport.get_extra_info("socket"))
        early, self._early = self._early, b""
        self.peer.send_body(self, early, True)
        if self._listener.is_draining:
            self.drain()

    def _end_given(self) -> None:
        self._stage = Stage.OVER
        self._note(_SWITCHING)
        self._end_request()
        self._is_deaf = True
        self._cut()

    def _take_back(self, call_id: int, may_take_it: bool) -> None:
        peer = self.peer
        if peer is None or self.call_id != call_id or call_id not in peer.pending:
            return
        peer.unsend(self)
        self.peer = None
        self._given_up_at = self._given_up_at or self._loop.time() + _PATIENCE_S
        if may_take_it and self._loop.time() < self._given_up_at:
            self._loop.call_later(_LOOK_S, self._send_again)
        else:
            self._serve_otherwise()

    def _send_again(self) -> None:
        if self.is_active and not self._transport.is_closing():
            self._forwarder.caller.submit(self, self.router)

    def _serve_otherwise(self) -> None:
        if self._transport.is_closing() or not self.is_active:
            return
        self._end_request()
        self._is_deaf = self._is_unready = True
        self._listener.connections.discard(self)
        self._resume_reading()
        self._fall_back(self._early)

    def _on_time_out(self) -> None:
        # it is for the answer to the handshake
        stage = "waiting for a replica" if self.peer is None else "before the handler accepted"
        self._timer = None
        self._forwarder.caller.cancel(self)
        self.answer(answer_timeout(self._limit_s, stage))

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on(self) -> None:
        """Nothing comes behind a WebSocket."""

    def _parse_on(self) -> None:
        """Nothing is parsed."""

    def _start_stream(self) -> None:
        """There is no body."""

    def _read_anew(self) -> None:
        """There is no body."""
