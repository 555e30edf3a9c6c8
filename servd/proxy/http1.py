"""The HTTP/1.1 lane: an asyncio protocol on httptools that talks to the forwarder directly."""

import asyncio
from typing import Any, cast

import httptools

from servd.proxy.body_stream import BodyStream
from servd.proxy.forwarder import CLIENT_GONE, Target
from servd.proxy.http1_order import CONTINUE, HttpOrder
from servd.proxy.limits import WHOLE_BODY_BYTES
from servd.proxy.listener import Listener
from servd.records import FRAME_BYTES, HTTP, STREAMED_BODY, Outbox
from servd.request_router import IDEMPOTENT_METHODS

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SPECIAL = frozenset(
    (
        b"connection",
        b"content-length",
        b"expect",
        b"serve_multiplexed_model_id",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
        b"x-request-timeout-seconds",
    )
)
_METHODS = {name.encode(): name for name in ("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH")}
_KNOWN_UPGRADES = frozenset((b"websocket", b"h2c"))
_NOTHING: dict[bytes, bytes] = {}


class HttpConnection(HttpOrder):
    """One client connection: one request at a time is under way, pipelined ones wait."""

    __slots__ = (
        "_extra",
        "_flags",
        "_head_bytes",
        "_head_limit",
        "_headers",
        "_is_large_read",
        "_is_timed",
        "_is_upgrade",
        "_origin",
        "_parser",
        "_rest",
        "_special",
        "_tail",
        "_url",
        "_whole_bytes",
    )

    _headers: list[tuple[bytes, bytes]]
    _special: dict[bytes, bytes]
    _url: bytes
    _is_upgrade: bool
    _head_bytes: int

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._parser: Any = httptools.HttpRequestParser(self)
        self._rest = b""
        self._tail: tuple[Any, ...] = ()
        self._flags = 0
        self._whole_bytes = min(self._forwarder.limits.body_bytes or WHOLE_BODY_BYTES, WHOLE_BODY_BYTES)
        self._head_limit = self._forwarder.limits.head_bytes
        self._is_timed = self._forwarder.limits.server_timing
        self._is_large_read = False
        self._forget_message()

    def __repr__(self) -> str:
        return f"HttpConnection({'active' if self.is_active else 'idle'}, backlog={len(self._backlog)})"

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's
        self._transport = cast(asyncio.Transport, transport)
        self._origin = self._make_origin("1.1")
        self._listener.connections.add(self)
        if len(self._listener.connections) > self._forwarder.limits.connections:
            self._refuse(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._listener.connections.discard(self)
        self._is_deaf = self._is_unready = True
        self._backlog.clear()
        if self.is_active:
            self._forwarder.caller.cancel(self)
            self._note(CLIENT_GONE)
        self._end_request()

    def data_received(self, data: bytes) -> None:
        if self._is_unready:
            data = self._look_at_start(data)
            if not data:
                return
        if len(data) > self._head_limit:
            self._is_usual = False
            self._is_large_read = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._on_upgrade(data[upgrade.args[0] :])
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            self._refuse(400, f"bad request: {error}")
        if self._url:
            self._on_partial(len(data))

    # --- httptools ------------------------------------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._headers.append((name, value))
        if name in _SPECIAL:
            self._is_usual = False
            if self._special is _NOTHING:
                self._special = {}
            known = self._special.get(name)
            self._special[name] = value if known is None else known + b", " + value

    def on_headers_complete(self) -> None:
        if not self._is_usual:
            self._is_in_body = True
            self._check_head()

    def on_body(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._is_usual = False
        if self._is_streaming:
            assert self._stream is not None
            if self._is_over_limit(self._stream.received + len(data)):
                return
            self._stream.feed(data)
            if self._stream.is_full:
                self._pause_reading()
            return
        if not self._body:
            self._body = data
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += data
        if len(self._body) > self._whole_bytes:
            self._on_large_body()

    def on_message_complete(self) -> None:
        parser = self._parser
        if not self._is_usual or self.is_active or self._has_next or not parser.should_keep_alive():
            self._complete()
            return
        # most requests: none of the headers that concern the proxy, no body, a path seen before. A shortcut through `_start`
        url = self._url
        forwarder = self._forwarder
        target = forwarder.usual_targets.get(url)
        method = _METHODS.get(parser.get_method())
        if target is None or method is None or self._listener.is_draining:
            self._complete()
            return
        self._url = b""
        headers, self._headers = self._headers, []
        self._method = method
        self.is_active = self.is_plain = self._keep_alive = True
        self._is_http10 = False
        self._labels = target.labels
        self._began = forwarder.journal.now()
        self.is_idempotent = method in IDEMPOTENT_METHODS
        self.model_id = ""
        self._request_id = request_id = forwarder.request_id(None)
        self._tail = (
            method,
            target.path,
            target.query,
            headers,
            b"",
            request_id.decode(),
            target.prefix,
            self._origin,
            None,
        )
        forwarder.caller.submit(self, target.router)

    def _complete(self) -> None:
        if self._is_deaf or self._is_upgrade:
            return
        if self._is_streaming:
            assert self._stream is not None
            self._is_streaming = False
            self._stream.close()
            self._forget_message()
            return
        parser = self._parser
        keep_alive = parser.should_keep_alive()
        special = self._special
        is_http10 = (not keep_alive or special is not _NOTHING) and parser.get_http_version() != "1.1"
        if is_http10 and parser.get_http_version() != "1.0":
            self._refuse(400, "bad request: unknown HTTP version")
            return
        method, url, headers, body = parser.get_method(), self._url, self._headers, self._body
        # at once: the answer may be there before `_start` returns
        self._url = b""
        self._headers = []
        self._body = b""
        self._special = _NOTHING
        self._is_in_body = False
        self._is_usual = True
        self._head_bytes = self._head_tick = 0
        if self.is_active or self._backlog:
            self._backlog.append((method, url, headers, body, special, keep_alive, is_http10))
            self._has_next = True
            self._pause_reading()
        else:
            self._start(method, url, headers, body, special, keep_alive, is_http10)

    # --- requests -------------------------------------------------------------------------------------------------

    def record(self, call_id: int, flags: int, outbox: Outbox) -> tuple[Any, ...]:
        tail = self._tail
        if len(tail[4]) >= FRAME_BYTES:
            tail = (*tail[:4], outbox.attach(tail[4]), *tail[5:])
        if self._timer is not None:
            left = max(0.0, self._timer.when() - self._loop.time())
            tail = (*tail[:8], (left, self.model_id, ()))
        if self._is_timed:
            self._sent_at = self._forwarder.journal.now()
        return (HTTP, call_id, flags | self._flags, *tail)

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
            path, query = _unusual_target(url)
        forwarder = self._forwarder
        target = forwarder.targets.get(path) or forwarder.resolve(path)
        name = _METHODS.get(method) or method.decode("latin-1")
        self.is_active = True
        self.has_begun = False
        self._method = name
        self._keep_alive = keep_alive
        self._is_http10 = is_http10
        self._began = forwarder.journal.now()
        is_plain = keep_alive and not is_http10 and name != "HEAD" and not self._listener.is_draining
        self.is_plain = is_plain and not self._is_timed
        self.is_idempotent = name in IDEMPOTENT_METHODS
        extra = None
        if special is _NOTHING:
            self._request_id = request_id = forwarder.request_id(None)
            self.model_id = ""
        else:
            self._request_id = request_id = forwarder.request_id(special.get(b"x-request-id"))
            self.model_id = special.get(b"serve_multiplexed_model_id", b"").decode("latin-1")
            if self.model_id:
                extra = (None, self.model_id, ())
        if target is None:
            self._labels = forwarder.labels_of_unrouted(path)
            self.answer(forwarder.answer_unrouted(path))
            return
        self._labels = target.labels
        if target.limit_s is not None or special is not _NOTHING:
            self._limit(target, special)
        elif url not in forwarder.usual_targets:
            forwarder.remember_url(url, path, query, target)
        source = self._make_origin("1.0") if is_http10 else self._origin
        self._tail = (name, path, query, headers, body, request_id.decode(), target.prefix, source, extra)
        forwarder.caller.submit(self, target.router)

    def _limit(self, target: Target, special: dict[bytes, bytes]) -> None:
        limit_s = self._forwarder.time_limit(target, special.get(b"x-request-timeout-seconds"))
        if limit_s is not None:
            self.start_timer(limit_s)

    def _on_large_body(self) -> None:
        if self._is_over_limit(len(self._body)) or len(self._body) <= WHOLE_BODY_BYTES:
            return
        if self.is_active or self._backlog:
            self._has_next = True
            self._pause_reading()
        else:
            self._start_stream()

    def _start_stream(self) -> None:
        body, self._body = bytes(self._body), b""
        self._is_streaming = True
        self._flags = STREAMED_BODY
        self._stream = stream = BodyStream(self, self._resume_reading)
        keep_alive = self._parser.should_keep_alive()
        is_http10 = self._parser.get_http_version() == "1.0"
        stream.feed(body)
        method = self._parser.get_method()
        self._start(method, self._url, self._headers, b"", self._special, keep_alive, is_http10)
        self.is_plain = False
        if stream.is_full:
            self._pause_reading()

    def _check_head(self) -> None:
        special = self._special
        if self._is_large_read or self._head_bytes:
            self._is_large_read = False
            size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
            if size > self._forwarder.limits.head_bytes:
                self._refuse(431, "the request's head is too large")
                return
        if b"transfer-encoding" in special and self._parser.get_http_version() == "1.0":
            self._refuse(400, "bad request: Transfer-Encoding in HTTP/1.0")
            return
        if self._is_over_limit(int(special.get(b"content-length", b"0"))):
            return
        if special.get(b"upgrade", b"").lower() in _KNOWN_UPGRADES and self._listener.hand_over is not None:
            self._is_upgrade = bool(self._parser.should_upgrade())
        if self.is_active or self._backlog:
            self._owes_continue = special.get(b"expect", b"").lower() == b"100-continue"
            return
        if special.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(CONTINUE)
        target = self._forwarder.resolve(self._url.partition(b"?")[0])
        if target is not None and (b"content-length" in special or b"transfer-encoding" in special):
            self._limit(target, special)

    # --- order and connection -------------------------------------------------------------------------------------

    def _forget_message(self) -> None:
        self._url = b""
        self._headers = []
        self._body = b""
        self._special = _NOTHING
        self._is_in_body = False
        self._is_upgrade = False
        self._is_usual = True
        self._head_bytes = self._head_tick = 0
        self._flags = 0

    def _on_partial(self, size: int) -> None:
        self._tick = self._listener.tick
        self._is_usual = False
        if not self._is_in_body:
            self._head_bytes += size
            self._head_tick = self._head_tick or self._tick or 1
            if self._head_bytes > self._forwarder.limits.head_bytes:
                self._refuse(431, "the request's head is too large")

    def _look_at_start(self, data: bytes) -> bytes:
        if self._is_deaf:
            return b""
        data = self._rest + data
        self._rest = b""
        if data.startswith(_PREFACE[: len(data)]) and self._listener.hand_over is not None:
            if len(data) < len(_PREFACE):
                self._rest = data
            else:
                self._hand_over(data)
            return b""
        if data.startswith(_PREFACE) and self._listener.hand_over is not None:
            self._hand_over(data)
            return b""
        self._is_unready = False
        return data

    def _on_upgrade(self, rest: bytes) -> None:
        if not self._is_upgrade:
            # not one we know: the wish is ignored, and the parser would swallow what follows
            self._parser = httptools.HttpRequestParser(self)
            if rest:
                self.data_received(rest)
            return
        head = b"".join(b"%b: %b\r\n" % pair for pair in self._headers)
        self._upgrade = b"%b %b HTTP/1.1\r\n%b\r\n" % (self._parser.get_method(), self._url, head) + rest
        self._forget_message()
        if self.is_active or self._backlog:
            self._has_next = True
            self._pause_reading()
        else:
            self._hand_over(self._upgrade)


def _unusual_target(url: bytes) -> tuple[bytes, bytes]:
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        # asterisk and authority forms have no path: nothing is routed there
        return url, b""
    return parsed.path or b"/", parsed.query or b""
