"""What an HTTP/1.1 connection does with its socket while a replica reads or writes a body itself (`wire/lending.py`)."""

import contextlib
import os
import socket
from typing import Any

from servd.calls.request_router import IDEMPOTENT_METHODS
from servd.exceptions import ProtocolError
from servd.proxy.client_host import is_left, is_reset, is_slow, received_bytes, unread_bytes, written_bytes
from servd.proxy.forwarder import Target
from servd.proxy.http1_answer import HttpAnswering
from servd.proxy.http1_rules import outlives_client
from servd.proxy.limits import WHOLE_BODY_BYTES
from servd.proxy.listener import Listener
from servd.wire.body_loan import LENT_BODY_BYTES, BodyLoan, Reader
from servd.wire.records import CLAIM, LENDS, LENT, LENT_EARLY_BYTES, Outbox
from servd.wire.write_right import new_right, take_right

_LIKELY_STATUS = 200
"""Of an answer that a replica has begun, and that was broken off: others are seldom large."""
_WORD_S = 0.005
_WORD_TURNS = 4
"""A client that has its answer may be heard of before the replica that wrote it: as long as this, in turns of the loop, since a
process that gets no time hears of nobody meanwhile."""


class HttpLending(HttpAnswering):
    """Lends the connection to the replica that answers, for one body at a time.

    The connection stays here: limits hold, and whoever has left is noticed. While the body of an answer is lent, nothing is
    written, since only what a replica sends is, and it sends nothing until it has given back. While that of a request is, nothing
    is read; what the client does then is the kernel's to say.
    """

    __slots__ = (
        "_body_ends_at",
        "_is_asked",
        "_is_half_closed",
        "_is_lent",
        "_is_shared",
        "_lends",
        "_lent_at",
        "_loan",
        "_right",
        "_tail",
        "_target",
    )

    _body: bytes | bytearray
    _headers: list[tuple[bytes, bytes]]
    _is_half_closed: bool
    _is_read_paused: bool
    _is_streaming: bool
    _special: dict[bytes, bytes]
    _target: Target
    _unparsed: bytes

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._is_asked = self._is_lent = self._is_shared = False
        self._right: int | None = None
        self._lends = self._lent_at = 0
        self._tail: tuple[Any, ...] = ()
        self._loan: BodyLoan | None = None
        self._body_ends_at = 0

    def _allow_lending(self) -> None:
        # a replica cannot speak TLS to a client
        self._lends = 0 if self._transport.get_extra_info("sslcontext") is not None else LENDS

    def on_response(self, status: int, block: bytes, body: bytes) -> None:
        if self._right is not None:
            self._on_let_go()
        elif len(body) >= LENT_EARLY_BYTES and self.peer is not None:
            self._target.note_large()
        super().on_response(status, block, body)

    def on_head(self, status: int, block: bytes) -> None:
        if self._right is not None:
            self._on_let_go()
        self._is_asked = self._is_lent = False
        super().on_head(status, block)

    def on_ask(self) -> None:
        is_framed = (self._is_chunked or self._body_left is not None) and not self._is_mute
        if is_framed and not self._transport.is_closing() and not outlives_client(self._tail[3]):
            self._is_asked = True
            # what this turn writes leaves at its end
            self._loop.call_soon(self._lend, self.call_id)
        elif self.peer is not None:
            self.peer.keep(self)

    def on_back(self, size: int) -> None:
        self._is_asked = self._is_lent = False
        self._sent_bytes += size
        if self._body_left is not None:
            self._body_left -= size
        if size:
            self._target.note_large()

    def on_wrote(self, status: int, size: int, left: int | None) -> None:
        self._leave_right()
        self._target.note_large()
        self._status = status
        self._granted, self._sent_bytes = 0, size
        self._body_left, self._is_chunked, self._is_mute = left, left is None, False
        self._is_asked = self._is_lent = False

    def _lend_with_request(self, call_id: int, outbox: Outbox) -> int:
        """LENT where the connection goes with the request (`wire/write_right.py`), else 0."""
        # who had it before has refused the request, and let go of it
        self._leave_right()
        peer, transport = self.peer, self._transport
        is_usual = self._lends and self.is_plain and not self._is_watched and self._stream is None
        if peer is None or not is_usual or not peer.takes_connections:
            return 0
        # what waits to be written comes before the answer
        if transport.get_write_buffer_size() or transport.is_closing() or outlives_client(self._tail[3]):
            return 0
        try:
            right = new_right()
        except OSError:
            return 0
        sock = transport.get_extra_info("socket")
        if not outbox.give(call_id, sock.fileno(), right):
            os.close(right)
            return 0
        self._lent_at = written_bytes(sock)
        self._right = right
        return LENT

    def _on_let_go(self) -> None:
        """The replica answers in another way, and has let go of the connection before."""
        self._leave_right()
        self._target.note_lent_in_vain()

    def _leave_right(self) -> None:
        right, self._right = self._right, None
        if right is not None:
            os.close(right)

    def _find_who_answers(self) -> None:
        right = self._right
        if right is None:
            return
        if take_right(right):
            # it may have it open for a while
            self._is_shared = True
        else:
            self.has_begun = self._is_lent = True
            # it tells both with its last word
            self._status, self._sent_bytes = _LIKELY_STATUS, 0
        self._leave_right()

    def _on_left(self) -> None:
        """The client has left in the midst of an answer, as far as this knows."""
        if self._is_lent:
            # the replica may have written all of it, and be about to say so
            self._is_half_closed = self._has_next = True
            self._leave(self.call_id, _WORD_TURNS)
        else:
            self._leave(self.call_id, 0)

    def _leave(self, call_id: int, turns: int) -> None:
        if not self.is_active or self.call_id != call_id:
            return
        if turns:
            self._loop.call_later(_WORD_S, self._leave, call_id, turns - 1)
        else:
            # what waits to be written must not hold up the end
            self._transport.abort()

    def _note(self, status: int) -> None:
        if self._is_lent:
            # who writes has not said how much, and may be dead. The kernel counts what frames the body, too
            written = written_bytes(self._transport.get_extra_info("socket"))
            self._sent_bytes += max(0, written - self._lent_at)
        super()._note(status)

    def _end_request(self) -> None:
        self._find_who_answers()
        super()._end_request()

    def _end_sharing(self) -> None:
        """The connection is about to be closed here; who answers by itself ends it."""
        self._find_who_answers()
        if self._is_shared:
            self._shut()

    def on_end(self, error: str | None) -> None:
        # a replica gives back before it ends: what it goes on to write would be read as the next answer
        is_out = self._is_lent or self._right is not None
        super().on_end("the connection was not given back" if error is None and is_out else error)

    def on_taken(self, size: int) -> None:
        loan, stream = self._loan, self._stream
        if loan is None or stream is None:
            return
        try:
            if not loan.back(size):
                return
        except ProtocolError:
            self._transport.abort()
            return
        stream.forget_beginning()
        if loan.is_whole:
            self._end_body()
        self._resume_reading()

    def _wants_to_end(self) -> bool:
        """Whether the request that is under way shall be served to its end though its client is gone."""
        is_whole = self._stream is None or self._stream.is_complete
        return self.is_active and is_whole and self._outlives_client()

    def _outlives_client(self) -> bool:
        return bool(self._tail) and outlives_client(self._tail[3])

    def on_lost(self, *, may_live: bool) -> None:
        self._find_who_answers()
        if may_live and self._loan is not None and self._loan.is_lent:
            # two that read one body would each have half of it
            self.is_accepted = True

    def _lendable_bytes(self, method: str) -> int:
        """What is left of the body of the request that is being read, if it may be lent, else 0."""
        length = int(self._special.get(b"content-length", b"0")) if self._lends else 0
        left = length - len(self._body) - len(self._unparsed)
        if left < LENT_BODY_BYTES or outlives_client(self._headers):
            return 0
        # what is read whole can be sent again, and what is lent cannot
        return 0 if method in IDEMPOTENT_METHODS and length <= WHOLE_BODY_BYTES else left

    def _is_body_there(self, left: int) -> bool:
        """Whether so much of a body has come, read or not, that its sender will not make a replica wait that could do other
        things. As much is read before a request is sent where nothing is lent."""
        there = len(self._body) + len(self._unparsed)
        enough = min(there + left, WHOLE_BODY_BYTES)
        return there + unread_bytes(self._transport.get_extra_info("socket")) >= enough

    def _lend_body(self, flags: int) -> bool:
        """Lend what is left of the body to the replica that is about to be sent the request."""
        loan, peer = self._loan, self.peer
        if loan is None or peer is None or self._transport.is_closing():
            return False
        sock = self._transport.get_extra_info("socket")
        # one that had it before has refused the request, and read nothing
        loan.back(0)
        if not peer.lend_body(self, sock.fileno(), loan.left, is_sure=bool(flags & CLAIM)):
            self._resume_reading()
            return False
        self._body_ends_at = received_bytes(sock) - unread_bytes(sock) + loan.left
        # whoever had begun with it cannot give it back
        self.is_idempotent = False
        loan.lend()
        self._pause_reading()
        return True

    def _take_body(self, data: bytes) -> bytes:
        """What the client has sent of a body that may be lent; gives what is behind it."""
        assert self._loan is not None
        self._tick = self._listener.tick
        size = self._loan.read(len(data))
        if self._stream is not None and size:
            self._stream.feed(data[:size])
            if self._stream.is_full:
                self._pause_reading()
        if self._loan.is_whole:
            self._end_body()
        return data[size:]

    def _leave_body(self) -> None:
        super()._leave_body()
        if self._loan is not None:
            self._loan.end()
            # what comes now is dropped: closing with unread data would reset the connection, and the answer with it
            self._resume_reading()

    def _is_body_cut(self, sock: socket.socket) -> bool:
        """Whether the client has left a body that is lent, without having sent all of it."""
        if self._loan is None or not self._loan.is_lent:
            return False
        # its end counts as one byte
        return is_reset(sock) or (is_left(sock) and (self.has_begun or received_bytes(sock) - 1 < self._body_ends_at))

    def _is_body_slow(self) -> bool:
        """Whether nothing has come for too long of a body that is lent."""
        if self._loan is None or not self._loan.is_lent:
            return False
        return is_slow(self._transport.get_extra_info("socket"), self._forwarder.limits.idle_s)

    def _end_body(self) -> None:
        raise NotImplementedError

    def _pause_reading(self) -> None:
        raise NotImplementedError

    def _lend(self, call_id: int) -> None:
        peer = self.peer
        if peer is None or not self._is_asked or self.call_id != call_id or self._transport.is_closing():
            return
        self._is_asked = False
        # a client that has not taken the head yet reads slowly: the body would wait behind it here
        is_free = not self._transport.get_write_buffer_size()
        sock = self._transport.get_extra_info("socket")
        self._lent_at = written_bytes(sock)
        if is_free and peer.lend(self, sock.fileno(), self._body_left):
            self._is_lent = True
        else:
            peer.keep(self)

    def _shut(self) -> None:
        """End the connection for all who have it open."""
        # by the descriptor that is there: none may be left for a copy
        with contextlib.suppress(OSError, ValueError):
            shared = socket.socket(fileno=self._transport.get_extra_info("socket").fileno())
            try:
                shared.shutdown(socket.SHUT_RDWR)
            finally:
                shared.detach()

    def _cut(self) -> None:
        if self._is_lent or self._is_shared or (self._loan is not None and self._loan.reader is not Reader.OWN):
            # whoever has it too may not know yet; this ends it for all
            self._is_lent = False
            self._shut()
        super()._cut()
