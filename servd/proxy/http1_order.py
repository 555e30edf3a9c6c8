"""What keeps an HTTP/1.1 connection in order: pipelined requests, refusals, limits of time and size, its end."""

from collections import deque
from typing import Any

from servd.calls.affinity import affinity_of_http
from servd.calls.request_router import IDEMPOTENT_METHODS
from servd.calls.routes.target import unusual_target
from servd.calls.routing_rules import Rule
from servd.calls.traced import note_wait
from servd.observability.head_traces import BEGINS, SAID, TracedId
from servd.observability.journal import NOWHERE
from servd.proxy.client_host import Silence, is_left, is_reset, unread_bytes
from servd.proxy.forwarded_for import HEADERS, NOTHING_SAID, Said, scheme_for, with_host
from servd.proxy.forwarder import METHODS, Target, answer_failure
from servd.proxy.http1_lending import HttpLending
from servd.proxy.limits import WHOLE_BODY_BYTES
from servd.proxy.listener import IDLE_GRACE_TICKS, Listener
from servd.proxy.probes import TEXT, Answer
from servd.wire.records import FRAME_BYTES, HTTP, LENT_BODY, STREAMED_BODY, TRACED, Outbox, origin
from servd.wire.trace_context import TRACEPARENT, TRACESTATE, read_trace, with_trace

NOTHING: dict[bytes, bytes] = {}
"""Stands for "no special headers": never changed."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
_TOO_SLOW = 408, "the request's body took too long"
_LOOK_S = 0.02

# what is kept of a pipelined request: method, url, headers, body, special headers, keep-alive, HTTP/1.0
Parsed = tuple[bytes, bytes, list[tuple[bytes, bytes]], "bytes | bytearray", dict[bytes, bytes], bool, bool]


class HttpOrder(HttpLending):
    """One request at a time is under way; what came behind it waits."""

    __slots__ = (
        "_backlog",
        "_body",
        "_final",
        "_head_tick",
        "_is_in_body",
        "_is_read_paused",
        "_is_streaming",
        "_is_usual",
        "_origin",
        "_owes_continue",
        "_silence",
        "_upgrade",
    )

    is_websocket = False
    _schemes = ("http", "https")
    _is_in_body: bool
    _is_usual: bool
    _head_tick: int
    _url: bytes

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._backlog: deque[Parsed] = deque()
        self._final: Answer | None = None
        self._upgrade: bytes | None = None
        self._is_read_paused = False
        self._is_streaming = False
        self._owes_continue = False
        self._is_half_closed = False
        self._silence = Silence(listener.forwarder.limits.keep_alive)
        self._origin = b""

    def record(self, call_id: int, flags: int, outbox: Outbox) -> tuple[Any, ...]:
        tail = self._tail
        if (stream := self._stream) is not None:
            body = b""
            if self._lend_body(flags):
                flags |= STREAMED_BODY | LENT_BODY
                body = stream.beginning
            elif stream.is_complete:
                # it has come while the request waited
                body = stream.beginning
            else:
                flags |= STREAMED_BODY
            tail = (*tail[:4], body, *tail[5:])
        if len(tail[4]) >= FRAME_BYTES:
            tail = (*tail[:4], outbox.attach(tail[4]), *tail[5:])
        if self._timer is not None:
            left = max(0.0, self._timer.when() - self._loop.time())
            tail = (*tail[:8], (left, self.model_id, ()))
        if self._is_watched:
            self._sent_at = self._now()
            if type(self._request_id) is TracedId:
                flags |= TRACED
                note_wait(self, self._request_id.span)
            else:
                # what a trace has switched on
                self._is_watched = self._is_timed
        if self._target.is_lent_early:
            flags |= self._lend_with_request(call_id, outbox)
        return (HTTP, call_id, flags | self._lends, *tail)

    def affinity(self, rule: Rule) -> str:
        return affinity_of_http(rule, self._tail[3], self._tail[4])

    def is_abandoned(self) -> bool:
        if self._is_half_closed:
            # between two looks
            self._look_for_client()
        return self._transport.is_closing() and not self._wants_to_end()

    def _start(
        self,
        method: bytes,
        url: bytes,
        headers: list[tuple[bytes, bytes]],
        body: bytes | bytearray,
        special: dict[bytes, bytes],
        keep_alive: bool,
        is_http10: bool,
    ) -> None:
        path, _, query = url.partition(b"?")
        if path[:1] != b"/":
            path, query = unusual_target(url)
        forwarder = self._forwarder
        target = forwarder.targets.get(path) or forwarder.resolve(path)
        name = METHODS.get(method) or method.decode("latin-1")
        self.is_active = True
        self.has_begun = False
        self._method = name
        self._path, self._client_ip = path, self._peer_ip
        self._keep_alive = keep_alive
        self._is_http10 = is_http10
        self._began = self._now()
        is_usual = keep_alive and not is_http10 and name != "HEAD"
        self.is_plain = is_usual and self._stream is None and not self._listener.is_draining
        self.is_idempotent = name in IDEMPOTENT_METHODS
        extra = said = None
        if special is NOTHING:
            self._request_id = request_id = forwarder.request_id(None)
            self.model_id = ""
        else:
            if not HEADERS.isdisjoint(special) and forwarder.trusted.trusts(self._client()):
                said = forwarder.trusted.said(special)
            request_id, headers = forwarder.named(special, headers)
            self._request_id = request_id
            self.model_id = special.get(b"serve_multiplexed_model_id", b"").decode("latin-1")
            if self.model_id:
                extra = (None, self.model_id, ())
        if special is not NOTHING and not SAID.isdisjoint(special):
            headers = self._trace(special, headers, target)
            request_id = self._request_id
        if target is None:
            if said is not None and said.client:
                self._client_ip = str(said.client[0])
            self._tail = ()
            self.peer = None
            self._labels = forwarder.labels_of_unrouted(path)
            self.answer(forwarder.answer_unrouted(path, query))
            return
        self._target, self._labels = target, target.labels
        if target.limit_s is not None or special is not NOTHING:
            self._limit(target, special)
        elif url not in forwarder.usual_targets:
            forwarder.remember_url(url, path, query, target)
        source = self._make_origin("1.0") if is_http10 else self._origin
        if said is not None:
            source, headers = self._make_origin("1.0" if is_http10 else "1.1", said), with_host(headers, said.host)
        self._tail = (name, path, query, headers, body, request_id.decode(), target.prefix, source, extra)
        forwarder.caller.submit(self, target.router)

    def _trace(
        self, special: dict[bytes, bytes], headers: list[tuple[bytes, bytes]], target: Target | None
    ) -> list[tuple[bytes, bytes]]:
        """The request may be part of a trace: then its id knows, and its headers say what is above its handler."""
        parent = read_trace(special[TRACEPARENT], special.get(TRACESTATE, b"")) if TRACEPARENT in special else None
        about = (self._request_id, parent, self._method, target)
        traced = self._forwarder.traced(*about, began=self._began, begins=BEGINS in special)
        if traced is None:
            return headers
        self._request_id = traced
        self._is_watched = True
        self.waits_since = 0.0
        return with_trace(headers, traced.trace)

    @property
    def _must_wait(self) -> bool:
        """What the client asks now comes behind something else, or behind answers that it has not taken."""
        return self.is_active or bool(self._backlog) or self._is_write_paused

    def _limit(self, target: Target, special: dict[bytes, bytes]) -> None:
        limit_s = self._forwarder.time_limit(target, special.get(b"x-request-timeout-seconds"))
        if limit_s is not None:
            self.start_timer(limit_s)

    def _start_stream(self) -> None:
        raise NotImplementedError

    def drain(self) -> None:
        """The proxy is to end; what is under way may go on."""

    def check_time(self, tick: int, is_over: bool) -> None:
        """Once a second: end the connection when it is idle or its client too slow."""
        limits = self._forwarder.limits
        if self._is_half_closed or self._is_read_paused:
            # nobody reads, so nobody is told of a reset
            self._look_for_client()
        sock = self._transport.get_extra_info("socket")
        # where nothing is on its way the kernel looks
        if (self.is_active or self._is_write_paused or self._is_deaf) and self._silence.look(sock):
            self._transport.abort()
            return
        if self._is_deaf or self._is_read_paused:
            if self._is_body_slow():
                self._refuse(*_TOO_SLOW)
            return
        if self._head_tick and not self._is_in_body:
            if tick - self._head_tick > limits.head_s:
                self._refuse(408, "the request's head took too long")
        elif self._is_in_body:
            if tick - self._tick > limits.idle_s:
                self._refuse(*_TOO_SLOW)
        elif not self.is_active and tick - self._tick > (IDLE_GRACE_TICKS - 1 if is_over else self._listener.idle_s):
            # a request that has come meanwhile is answered
            self._is_deaf = self._is_unready = not unread_bytes(sock)
            if self._is_deaf:
                self._transport.close()

    def eof_received(self) -> bool:
        """Answer what a client asked before it closed its half of the connection, if it still listens. Once an answer has
        begun, whoever closes is gone.
        """
        self._find_who_answers()
        if self.is_active and self.has_begun:
            self._on_left()
            return True
        if self._is_deaf or self._is_streaming or not (self.is_active or self._backlog):
            return False
        if self._transport.get_extra_info("sslcontext") is not None:
            return False
        self._is_half_closed = self._has_next = True
        if not self._is_http10:
            # who has closed both halves answers with a reset, who listens skips it: nothing else tells them apart
            self._transport.write(_PROCESSING)
        self._loop.call_later(_LOOK_S, self._look_for_client)
        return True

    def _look_for_client(self) -> None:
        sock = self._transport.get_extra_info("socket")
        # behind a request that waits, the end of what the client sends is not read
        is_begun = self.is_active and self.has_begun and self._has_next and not self._is_half_closed
        if self._transport.is_closing():
            return
        if self._is_body_cut(sock) or (is_left(sock) if is_begun else is_reset(sock)):
            self._transport.abort()

    def _go_on(self) -> None:
        if self._is_deaf or self.is_active or self._is_write_paused:
            return
        if self._backlog:
            self._start(*self._backlog.popleft())
            return
        self._has_next = False
        if self._upgrade is not None:
            self._hand_over(self._upgrade)
        elif self._final is not None:
            self._refuse_now(self._final)
        elif self._is_half_closed:
            self._is_deaf = self._is_unready = True
            self._transport.close()
        else:
            if self._owes_continue:
                self._owes_continue = False
                if not self._continue():
                    return
            if len(self._body) > WHOLE_BODY_BYTES:
                self._start_stream()
            self._resume_reading()

    def _refuse(self, status: int, text: str) -> None:
        if self._is_deaf or self._final is not None:
            return
        block = TEXT + b"retry-after: 1\r\n" if status == 503 else TEXT
        self._refuse_with((status, block, text.encode()))

    def _continue(self) -> bool:
        """Ask the client for the body that it holds back, unless the request would be refused all the same."""
        path, _, _ = self._url.partition(b"?")
        if path[:1] != b"/":
            path, _ = unusual_target(self._url)
        target = self._forwarder.resolve(path)
        if target is None:
            self._refuse_with(self._forwarder.answer_unrouted(path, b""))
            return False
        refused = target.router.refused_now()
        if refused is not None:
            self._refuse_with(answer_failure(refused))
            return False
        self._transport.write(CONTINUE)
        return True

    def _refuse_with(self, answer: Answer) -> None:
        self._final = answer
        self._is_usual = False
        if self.is_active and self._is_streaming:
            self._forwarder.caller.cancel(self)
            self._end_span(answer[0])
            self._end_request()
        if self._must_wait:
            self._has_next = True
            self._pause_reading()
        else:
            self._refuse_now(self._final)

    def _end_span(self, status: int) -> None:
        """The span of a request that is refused midway: its refusal is noted under another id."""
        rid = self._request_id
        if type(rid) is TracedId:
            status = self._status if self.has_begun else status
            sent = self._sent_bytes if self.has_begun else 0
            replica_id = "" if self.peer is None else self.peer.replica_id
            about = (self._path, sent, self._client_ip, replica_id)
            rid.end((self._labels, self._method, status, self._began, self._now(), rid, *about))

    def _refuse_now(self, answer: Answer) -> None:
        if self.has_begun and self._is_streaming:
            self._cut()
            return
        self.is_active = True
        self._is_in_body = True
        self._keep_alive = self.is_plain = False
        self._request_id = self._forwarder.request_id(None)
        self._method, self._path, self._client_ip, self.peer = "-", b"-", self._peer_ip, None
        self._labels, self._began, self._sent_at = NOWHERE, self._now(), 0.0
        self.answer(answer)

    def _end_body(self) -> None:
        """The body is whole."""
        assert self._stream is not None
        self._loan = None
        self._is_streaming = False
        self._stream.close()
        self._read_anew()

    def _read_anew(self) -> None:
        raise NotImplementedError

    def _is_more_to_come(self) -> bool:
        return self._is_in_body or bool(self._backlog) or unread_bytes(self._transport.get_extra_info("socket")) > 0

    def _pause_reading(self) -> None:
        # who has had the last answer is read on, whatever was about to stop that
        if not (self._is_read_paused or self._is_deaf or self._transport.is_closing()):
            self._is_read_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._loan is not None and self._loan.is_lent:
            return
        if self._is_read_paused and not self._transport.is_closing():
            self._is_read_paused = False
            self._parse_on()
            if not self._is_read_paused and not self._transport.is_closing():
                self._transport.resume_reading()

    def _parse_on(self) -> None:
        raise NotImplementedError

    def _hand_over(self, data: bytes) -> None:
        self._is_deaf = self._is_unready = True
        # of a request that said how long its body is; whoever serves it has a clock of its own
        self._end_request()
        self._listener.connections.discard(self)
        self._resume_reading()
        assert self._listener.hand_over is not None
        self._listener.hand_over(self._transport, data)

    def _client(self) -> tuple[str, int] | None:
        client = self._transport.get_extra_info("peername")
        return client[:2] if isinstance(client, tuple) else None

    def _make_origin(self, version: str, said: Said = NOTHING_SAID) -> bytes:
        server = self._transport.get_extra_info("sockname")
        client = said.client or self._client()
        self._client_ip = str(client[0]) if client else ""
        return origin(
            client,
            server[:2] if isinstance(server, tuple) else None,
            scheme_for(said.scheme, self._schemes[self._transport.get_extra_info("sslcontext") is not None]),
            version,
            self._forwarder.table.root_path,
        )

    def _is_over_limit(self, body_bytes: int) -> bool:
        limit = self._forwarder.limits.body_bytes
        if limit and body_bytes > limit:
            self._refuse(413, f"the request's body is larger than {limit} bytes")
            return True
        return False
