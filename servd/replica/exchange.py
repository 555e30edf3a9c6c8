"""One HTTP request inside a replica, and what the replica's server asks of the user's code."""

import asyncio
from collections.abc import Iterable
from typing import Any

from servd.calls.failures import ClientGoneError
from servd.calls.request_context import RequestContext
from servd.ground.clock import SystemClock
from servd.ground.settings import is_on
from servd.observability.described import name_of, text_of
from servd.replica.caller_peer import CallerPeer
from servd.replica.receiving import Message, Receiving
from servd.replica.responses import TIME_OUT, error_response
from servd.wire.borrowing import Borrowing
from servd.wire.http_answers import BLOCKS, block_for, check_final, framing, has_content
from servd.wire.records import (
    BODY,
    CREDIT_BYTES,
    END,
    EVENT,
    EVENT_COST_BYTES,
    FIRST_CREDIT,
    HEAD,
    LENT_EARLY_BYTES,
    REPLICA_TIMING,
    RESPONSE,
    SMALLER,
    duration,
)
from servd.wire.websocket.said import checked
from servd.wire.write_right import GivenConnection

WHOLE_BYTES = CREDIT_BYTES
"""Up to this size a body goes out at once, however slow its reader is."""
_PIECE_BYTES = CREDIT_BYTES // 4
"""Several pieces are on their way while the reader takes one."""
LENT_BYTES = 512 * 1024
"""From this size on the replica writes a body to the client itself, where it may; below, asking costs more than it saves."""
_LENT_PIECE_BYTES = 64 * 1024
"""From the second piece of this size on it asks for streams too; smaller ones go together through the caller, with fewer calls of
the kernel than they would cost here."""
_IS_TIMED = is_on("HTTP_SERVER_TIMING")
_now = SystemClock().now

Headers = Iterable[tuple[bytes, bytes]]


class HttpExchange(Receiving):
    """One request: its ASGI scope, its body, and the way back to the client.

    Attributes:
        scope: ASGI scope, type "http" or "websocket"; path is the full external path, root_path root and
        prefix. context: the request's context, already current in the task that serves it.
        whole_below: bytes; a body smaller than that may go by `finish`, whoever reads it. upload: reads the request's body.
        has_begun: the response's head was sent. may_ask: the client's connection may be asked for.
        outlives_handler: it goes on when the handler has ended, until `conclude` returns.
    """

    # of the class until an instance needs its own: most requests set none of them
    has_begun = has_started = may_ask = outlives_handler = False
    _closes = _has_sent = False
    _borrowed: Borrowing | None = None
    task: asyncio.Task[None] | None = None
    _held_head: tuple[int, Headers] | None = None
    _writer: asyncio.Future[None] | None = None
    _left: int | None = None
    _credit = CREDIT_BYTES
    _is_narrow = False
    whole_below = LENT_BYTES
    _began = 0.0

    def __init__(
        self, peer: CallerPeer, call_id: int, scope: dict[str, Any], context: RequestContext, body: Any
    ) -> None:
        self._peer = peer
        self.call_id = call_id
        self.scope = scope
        self.context = context
        self.body = body
        if _IS_TIMED:
            self._began = _now()

    def __repr__(self) -> str:
        return f"HttpExchange({self.scope.get('method', 'WEBSOCKET')} {self.scope['path']} id={self.call_id})"

    def finish(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer with a whole response at once.

        Args:
            headers: without content-length, which follows from the body (an answer to HEAD may give it).

        Raises:
            ValueError: a header holds a line break, or the status ends no request.
        """
        block = None
        if type(headers) is tuple and not _IS_TIMED and self.scope.get("method") != "HEAD":
            try:
                block = BLOCKS.get(headers)
            except TypeError:
                # pairs may be lists
                pass
        if block is None or status < 200:
            check_final(status)
            block = self._block(headers, False)
            if self._closes:
                status = -status
        self.is_finished = self.has_begun = True
        if self._waiter is not None:
            self._wake()
        if self.upload is not None:
            self.upload.give_back()
        if self._borrowed is not None:
            self._borrowed.end()
        # the limit was for the answer: what goes on in the background has none
        self.context.deadline = None
        peer = self._peer
        if len(body) >= LENT_EARLY_BYTES:
            peer.invite()
            body = peer.outbox.attach(body)
        call_id = self.call_id
        if peer.open.pop(call_id, None) is not None:
            peer.send((RESPONSE, call_id, peer.ongoing_after(), status, block, body))

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """As `finish`, but a large body goes piece by piece, as its reader takes it.

        Raises:
            ClientGoneError: the client is gone.
        """
        size = len(body)
        is_small = size < self.whole_below if self.may_ask or self._is_narrow else size <= WHOLE_BYTES
        if is_small or not has_content(self.scope.get("method", ""), status):
            self.finish(status, headers, body)
            return
        pairs = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        pairs.append((b"content-length", b"%d" % size))
        self._begin(status, pairs, size)
        await self._ask()
        await self._send_pieces(body, size <= WHOLE_BYTES)
        self._end()

    async def send(self, message: Message) -> None:
        """ASGI `send`.

        Raises:
            ClientGoneError: the client is gone.
            RuntimeError: the message does not fit the state of the response.
        """
        kind = message["type"]
        if self.is_disconnected:
            if kind == "websocket.close":
                # what a decent handler says in the end, heard or not
                return
            raise ClientGoneError("the client is gone")
        if kind == "http.response.body":
            await self._send_body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start":
            if self.has_begun or self._held_head is not None:
                raise RuntimeError("the response has begun already")
            self._held_head = (message["status"], message.get("headers", ()))
        elif kind.startswith("websocket."):
            await self._send_event(message)
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r}")

    def fail(self, error: BaseException, now: float) -> None:
        """End a request whose handler failed. now: by the loop's clock."""
        if self.has_begun or self.scope["type"] == "websocket":
            self.abort(text_of(error) or name_of(type(error)))
            return
        # a call that failed at its request's time limit may tell so before the proxy's own clock does
        status, headers, body = (
            TIME_OUT if self.context.is_late(now) else error_response(error, self.context.request_id)
        )
        self.finish(status, headers, body)

    def abort(self, reason: str) -> None:
        """End a response that has begun: the client's connection is closed early."""
        self._end(reason)

    async def conclude(self) -> None:
        """See to what goes on when the handler has ended."""

    def cut(self) -> None:
        """Close the connection where it was handed over."""

    def lend(self, given: GivenConnection) -> None:
        """The client's connection has come with the request."""
        self._borrowed = Borrowing(self._peer, self.call_id, given)
        self.whole_below = LENT_EARLY_BYTES

    def narrow(self, flags: int) -> None:
        """Say how much of the answer the caller has room for, until it grants more; flags: of the request."""
        if flags & SMALLER:
            self._credit, self._is_narrow = FIRST_CREDIT[flags & SMALLER], True
            self.whole_below = self._credit + 1

    def disconnect(self) -> None:
        """The client is gone: `receive` says so, `send` raises."""
        if self.scope["type"] == "websocket" and self._events is not None:
            self._events.append({"type": "websocket.disconnect", "code": 1006, "reason": ""})
        self._wake()
        self._stop_sending()

    def let_go(self) -> None:
        """The client is gone, and the handler shall complete all the same: it waits for nothing of the client any more, and what
        it sends is dropped."""
        self._is_unheard = True
        self._end_loans()
        self._wake()
        self._wake_writer()

    def add_credit(self, size: int) -> None:
        """The client took `size` bytes of the response."""
        self._credit += size
        if self._credit > 0:
            self._wake_writer()

    async def _ask(self) -> None:
        if self.may_ask and not self._is_unheard and not self.is_disconnected:
            self.may_ask = False
            self._borrowed = Borrowing(self._peer, self.call_id)
            await self._borrowed.ask()

    def _stop_sending(self) -> None:
        self.is_disconnected = True
        self._end_loans()
        self._wake_writer()

    def _end_loans(self) -> None:
        if self._borrowed is not None:
            self._borrowed.end()
        if self.upload is not None:
            self.upload.end()

    def _wake_writer(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    async def _send_body(self, body: Any, more: bool) -> None:
        if self.is_finished:
            raise RuntimeError("the response is complete already")
        if type(body) is not bytes:
            body = bytes(body)
        if not self.has_begun:
            if self._held_head is None:
                raise RuntimeError("the response has not begun")
            status, headers = self._held_head
            if not more:
                await self.answer(status, headers, body)
                return
            self._begin(status, headers, len(body))
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                # the caller sees that too, and could tell the client's side alone
                how = "longer" if self._left < 0 else "shorter"
                raise ValueError(f"the body of the response is {how} than its content-length")
        if body:
            if self.may_ask and len(body) >= (_LENT_PIECE_BYTES if self._has_sent else LENT_BYTES):
                await self._ask()
            self._has_sent = True
            await self._send_pieces(body)
        if not more:
            self._end()

    def _begin(self, status: int, headers: Headers, size: int) -> None:
        check_final(status)
        block = self._block(headers, True)
        self.has_begun = True
        method = self.scope.get("method", "")
        if b"content-length:" in block and has_content(method, status):
            self._left = framing(method, status, "1.1", block, None).content_bytes
        status = -status if self._closes else status
        if self._borrowed is not None:
            if self._borrowed.begin(status, block, self.context.request_id, size):
                self.may_ask = False
                return
            self._borrowed = None
        self._peer.send((HEAD, self.call_id, status, block))

    def _end(self, error: str | None = None) -> None:
        self.is_finished = True
        self._wake()
        if error is None:
            self.context.deadline = None
        if self.upload is not None:
            self.upload.give_back()
        if (borrowed := self._borrowed) is not None:
            borrowed.give_back(has_more=self.call_id in self._peer.open)
            borrowed.end()
            error = "a piece of the body was cut off" if error is None and borrowed.is_torn else error
        self._peer.finish_exchange(self.call_id, (END, self.call_id, self._peer.ongoing_after(), error))

    async def _send_pieces(self, body: bytes | memoryview, at_once: bool = False) -> None:
        """at_once: what the kernel does not take now goes through the caller, who holds it while the request ends."""
        if self._borrowed is not None:
            body = await self._borrowed.write(memoryview(body), at_once)
            if self._borrowed.is_lost:
                self.is_disconnected = True
            if self.is_disconnected:
                raise ClientGoneError("the client is gone")
            if not body:
                return
        if len(body) <= _PIECE_BYTES and not self._is_narrow:
            await self._send_piece(body)
            return
        # views, not copies
        whole = memoryview(body)
        start = 0
        while start < len(whole):
            start += await self._send_piece(whole[start : start + _PIECE_BYTES])

    async def _send_piece(self, piece: bytes | memoryview) -> int:
        """How much of it was sent, or dropped."""
        if not await self._has_credit():
            return len(piece)
        if self._is_narrow:
            piece = piece[: self._credit]
        self._credit -= len(piece)
        peer = self._peer
        peer.send((BODY, self.call_id, peer.outbox.attach(piece), True))
        return len(piece)

    async def _send_event(self, message: Message) -> None:
        message = checked(message, self.has_begun)
        data = message.get("bytes") or message.get("text") or message.get("body") or b""
        cost = len(data) + EVENT_COST_BYTES
        if not await self._has_credit():
            return
        self._credit -= cost
        if message["type"] == "websocket.close" and self._events is not None:
            # the caller tells nothing of its client any more
            code = message.get("code", 1000) if self.has_begun else 1006
            self._events.append({"type": "websocket.disconnect", "code": code, "reason": message.get("reason") or ""})
            self._wake()
        self.has_begun = True
        if "headers" in message:
            message = {**message, "headers": [tuple(pair) for pair in message["headers"]]}
        self._peer.send((EVENT, self.call_id, message, cost))

    async def _has_credit(self) -> bool:
        """Wait until something may be sent; False where it shall be dropped."""
        # the last piece may exceed what is left: more is never outstanding than the credit and one piece
        while self._credit <= 0 and not self._is_unheard:
            # a handler that goes on although it was cancelled would wait for ever
            if not self.is_disconnected:
                self._writer = asyncio.get_running_loop().create_future()
                await self._writer
            if self.is_disconnected:
                raise ClientGoneError("the client is gone")
        if self._is_unheard:
            # nothing holds it up any more, so let others have their turn
            await asyncio.sleep(0)
        return not self._is_unheard

    def _block(self, headers: Headers, keep_length: bool) -> bytes:
        block, self._closes = block_for(headers, keep_length or self.scope.get("method") == "HEAD")
        if _IS_TIMED:
            return b"".join((block, REPLICA_TIMING, duration((_now() - self._began) * 1000), b"\r\n"))
        return block
