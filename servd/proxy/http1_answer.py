"""The answering half of an HTTP/1.1 connection: whole and streamed responses, failures, time limits."""

import asyncio

from servd.calls.outgoing import Outgoing
from servd.observability.head_traces import RESPONSE, TracedId
from servd.observability.journal import NOWHERE
from servd.proxy.body_stream import BodyStream
from servd.proxy.forwarder import CLIENT_GONE, answer_failure, answer_timeout
from servd.proxy.limits import MUTE_S
from servd.proxy.listener import Listener
from servd.proxy.parting import part
from servd.proxy.probes import Answer
from servd.wire.http_answers import WITHOUT_CONTENT, framing, has_content, status_line
from servd.wire.records import CREDIT_BYTES

_GRANT_BYTES = CREDIT_BYTES // 4
_WRITE_APART_BYTES = 64 * 1024
_LENGTH_LINES = [b"\r\ncontent-length: %d\r\n\r\n" % size for size in range(2048)]
_STATUS_LINE = {status: status_line(status) for status in range(100, 600)}
_CLOSE = b"connection: close\r\n"
_KEEP = b"connection: keep-alive\r\n"


class HttpAnswering(asyncio.Protocol, Outgoing):
    """Writes the response of the request that is under way.

    Attributes:
        is_active: a request is under way.
        is_plain: HTTP/1.1, keep-alive, not HEAD: what most requests are.
    """

    __slots__ = (
        "_began",
        "_body_left",
        "_client_ip",
        "_forwarder",
        "_granted",
        "_has_next",
        "_is_chunked",
        "_is_deaf",
        "_is_http10",
        "_is_mute",
        "_is_timed",
        "_is_unready",
        "_is_watched",
        "_is_write_paused",
        "_journal",
        "_keep_alive",
        "_labels",
        "_limit_s",
        "_listener",
        "_loop",
        "_method",
        "_now",
        "_path",
        "_peer_ip",
        "_request_id",
        "_sent_at",
        "_sent_bytes",
        "_status",
        "_stream",
        "_tick",
        "_timer",
        "_transport",
        "is_active",
        "is_plain",
    )

    _transport: asyncio.Transport

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._forwarder = listener.forwarder
        self._loop = listener.forwarder.loop
        self._journal = listener.forwarder.journal
        self._now = self._journal.now
        self._is_timed = listener.forwarder.limits.server_timing
        # whether somebody wants to know more of this request; it may go on saying so of the next one
        self._is_watched = self._is_timed
        self.peer = None
        self.model_id = ""
        self.is_active = False
        self.is_plain = False
        self.has_begun = False
        self._keep_alive = True
        self._is_http10 = False
        self._method = ""
        self._request_id = b""
        self._path = b""
        self._client_ip = self._peer_ip = ""
        self._sent_bytes = 0
        self._labels = NOWHERE
        self._began = self._sent_at = 0.0
        self._status = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stream: BodyStream | None = None
        self._limit_s = 0.0
        self._granted = 0
        self._body_left: int | None = None
        self._is_chunked = self._is_mute = False
        self._is_deaf = False
        self._is_unready = True
        self._has_next = False
        self._is_write_paused = False
        self._tick = listener.tick

    def on_response(self, status: int, block: bytes, body: bytes) -> None:
        transport = self._transport
        if transport.is_closing():
            return
        if self._is_watched:
            block = self._watched(block)
        size = len(body)
        if not self.is_plain or status < 200 or status in WITHOUT_CONTENT:
            status = self._write_unusual(status, block, body)
        elif size < 2048:
            transport.write(
                b"".join(
                    (
                        _STATUS_LINE.get(status) or status_line(status),
                        block,
                        self._forwarder.tail,
                        b"x-request-id: ",
                        self._request_id,
                        _LENGTH_LINES[size],
                        body,
                    )
                )
            )
        else:
            self._write(self._head(status, block + b"content-length: %d\r\n" % size), body)
        journal = self._journal
        if journal.is_on or type(self._request_id) is TracedId:
            peer = self.peer
            journal.noted.extend(
                (
                    self._labels,
                    self._method,
                    status,
                    self._began,
                    self._now(),
                    self._request_id,
                    self._path,
                    size,
                    self._client_ip,
                    "" if peer is None else peer.replica_id,
                )
            )
        self._finish()

    def on_head(self, status: int, block: bytes) -> None:
        if self._transport.is_closing():
            return
        self.has_begun = True
        self._granted = self._sent_bytes = 0
        if status < 0:
            status = -status
            self._keep_alive = False
        self._status = status
        how = framing(self._method, status, self._version, block, None)
        block, self._body_left, self._is_chunked = how.block, how.content_bytes, how.is_chunked
        self._is_mute = not has_content(self._method, status)
        if how.ends_connection:
            self._keep_alive = False
        if self._is_watched:
            block = self._watched(block)
        self._transport.write(self._head(status, block))
        if self._is_mute:
            self._loop.call_later(MUTE_S, self._end_mute, self.call_id)

    def _end_mute(self, call_id: int) -> None:
        is_same = self.is_active and self.has_begun and self._is_mute and self.call_id == call_id
        if is_same and not self._transport.is_closing() and not self._outlives_client():
            self._forwarder.caller.cancel(self)
            self.on_end(None)

    def _outlives_client(self) -> bool:
        raise NotImplementedError

    def on_piece(self, data: bytes) -> None:
        transport = self._transport
        if transport.is_closing():
            if self.peer is not None:
                # of a request that goes on without its client: nobody shall wait for a reader
                self.peer.grant(self, len(data))
            return
        size = len(data)
        self._sent_bytes += size
        if self._is_chunked:
            self._write(b"%x\r\n" % size, data, b"\r\n")
        elif self._body_left is None:
            transport.write(data)
        elif not self._is_mute:
            # more than was declared would be read as the next response
            self._body_left -= size
            if self._body_left < 0:
                transport.close()
                return
            transport.write(data)
        self._granted += size
        if not self._is_write_paused:
            self._grant()

    def on_end(self, error: str | None) -> None:
        if self._transport.is_closing():
            return
        self._note(self._status if self.has_begun else 500)
        if error is not None or not self.has_begun or (self._body_left or 0) > 0:
            self._end_request()
            self._cut()
            return
        if self._is_chunked:
            self._transport.write(b"0\r\n\r\n")
        # one that began before a drain has not told its client, who may send the next request already
        if not self._keep_alive:
            self._close_after()
        self._finish()

    def on_credit(self, size: int) -> None:
        if self._stream is not None:
            self._stream.add_credit(size)

    def on_failure(self, error: Exception) -> None:
        if self._transport.is_closing():
            return
        if self.has_begun:
            self._note(self._status)
            self._end_request()
            self._cut()
        else:
            self.answer(answer_failure(error))

    def answer(self, answer: Answer) -> None:
        """Answer the request that is under way. Where the client has gone, it ends: no replica may know of it."""
        if self._transport.is_closing():
            self._note(CLIENT_GONE)
            self._end_request()
        else:
            self.on_response(*answer)

    def pause_writing(self) -> None:
        # what comes next waits until the client has taken what it has
        self._is_write_paused = self._has_next = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._grant()
        if not self.is_active:
            self._loop.call_soon(self._go_on)

    def start_timer(self, limit_s: float) -> None:
        """Answer 408 when the request is not answered in so many seconds from now."""
        if self._timer is None:
            self._limit_s = limit_s
            self._timer = self._loop.call_later(limit_s, self._on_time_out)

    def _find_who_answers(self) -> None:
        """Before this answers by itself: the replica does not from now on, or has begun to."""

    def _cut(self) -> None:
        """End the connection in the midst of an answer."""
        self._transport.close()

    def _note(self, status: int) -> None:
        """The request has ended."""
        journal = self._journal
        if journal.is_on or type(self._request_id) is TracedId:
            replica_id = "" if self.peer is None else self.peer.replica_id
            about = (self._path, self._sent_bytes if self.has_begun else 0, self._client_ip, replica_id)
            journal.note((self._labels, self._method, status), self._began, self._request_id, *about)

    def _watched(self, block: bytes) -> bytes:
        """Header lines with the times of the request and its place in a trace, as far as somebody wants to know."""
        if self._is_timed:
            sent_at, self._sent_at = self._sent_at, 0.0
            block = self._forwarder.timed(block, self._began, sent_at)
        rid = self._request_id
        return b"%b%b: %b\r\n" % (block, RESPONSE, rid.response) if type(rid) is TracedId else block

    def _write(self, *pieces: bytes) -> None:
        if len(pieces[1]) < _WRITE_APART_BYTES:
            self._transport.write(b"".join(pieces))
        else:
            for piece in pieces:
                self._transport.write(piece)

    @property
    def _version(self) -> str:
        return "1.0" if self._is_http10 else "1.1"

    def _head(self, status: int, block: bytes) -> bytes:
        line = b""
        if not self._keep_alive or self._listener.is_draining:
            self._keep_alive = False
            line = _CLOSE
        elif self._is_http10:
            line = _KEEP
        parts = (
            status_line(status),
            block,
            self._forwarder.tail,
            line,
            b"x-request-id: ",
            self._request_id,
            b"\r\n\r\n",
        )
        return b"".join(parts)

    def _write_unusual(self, status: int, block: bytes, body: bytes) -> int:
        if status < 0:
            status = -status
            self._keep_alive = False
        if self._stream is not None and not self._stream.is_complete:
            self._keep_alive = False
        how = framing(self._method, status, self._version, block, len(body))
        self._write(self._head(status, how.block), body if how.content_bytes else b"")
        if not self._keep_alive or self._listener.is_draining:
            self._close_after()
        return status

    def _finish(self) -> None:
        self.is_active = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tick = self._listener.tick
        if self._stream is not None:
            if not self._stream.is_complete:
                self._close_after()
            elif self._stream.is_full:
                # nobody takes what is left of it, and behind it nothing was read
                self._has_next = True
            self._leave_body()
        if self._has_next and not self._is_deaf:
            # a turn later: many pipelined requests answered at once would go deeper and deeper
            self._loop.call_soon(self._go_on)

    def _end_request(self) -> None:
        self.is_active = False
        self._leave_body()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _leave_body(self) -> None:
        """The request whose body streams is over, whether it was whole or not."""
        self._stream = None

    def _go_on(self) -> None:
        raise NotImplementedError

    def _close_after(self) -> None:
        if self._is_deaf:
            return
        self._is_deaf = self._is_unready = True
        # one that is told in a drain may have sent the next request already
        if self._is_more_to_come() or self._listener.is_draining:
            part(self._transport, self._loop)
            self._resume_reading()
        else:
            self._transport.close()

    def _is_more_to_come(self) -> bool:
        """Whether the client is sending, as far as anybody can tell."""
        raise NotImplementedError

    def _resume_reading(self) -> None:
        raise NotImplementedError

    def _grant(self) -> None:
        if self._granted >= _GRANT_BYTES or (self._granted and not self._is_write_paused):
            if self.peer is not None and self.is_active:
                self.peer.grant(self, self._granted)
            self._granted = 0

    def _on_time_out(self) -> None:
        self._timer = None
        if self.is_active:
            if self._stream is not None and not self._stream.is_complete:
                stage = "reading the body"
            else:
                stage = "waiting for a replica" if self.peer is None else "in the handler"
            self._find_who_answers()
            self._forwarder.caller.cancel(self)
            if self._transport.is_closing():
                return
            if self.has_begun:
                self._note(self._status)
                self._end_request()
                self._cut()
                return
        else:
            stage = "reading the body"
            self.is_active = True
            self._method, self._path, self._labels, self.peer = "-", b"-", NOWHERE, None
            self._client_ip = self._peer_ip
            self._began = self._now() - self._limit_s
            self._keep_alive = self.is_plain = False
        self.answer(answer_timeout(self._limit_s, stage))
