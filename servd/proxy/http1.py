"""The HTTP/1.1 lane: an asyncio protocol on httptools that talks to the forwarder directly."""

import asyncio
from typing import Any, cast

import httptools

from servd.calls.request_router import IDEMPOTENT_METHODS
from servd.proxy.body_stream import BodyStream
from servd.proxy.forwarder import CLIENT_GONE, METHODS
from servd.proxy.http1_order import NOTHING, HttpOrder
from servd.proxy.http1_rules import (
    FRAME_BYTES_PER_BYTE,
    FRAME_ROOM,
    SPECIAL,
    has_one_host,
    head_bytes,
    is_other_protocol,
    refusal_of_head,
    refusal_of_size,
    size_of_head,
    without_length,
    without_upgrade,
)
from servd.proxy.limits import WHOLE_BODY_BYTES
from servd.proxy.listener import Listener
from servd.wire.body_loan import BodyLoan

_READ_BYTES = 64 * 1024
"""So much is parsed at a time, unless it is body alone."""
_USUAL_BYTES = 16 * 1024
"""A head that came with so few bytes can't have more headers than may be."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class HttpConnection(HttpOrder):
    """One client connection: one request at a time is under way, pipelined ones wait."""

    __slots__ = (
        "_frame_room",
        "_head_bytes",
        "_head_limit",
        "_headers",
        "_is_large_read",
        "_is_parsing",
        "_is_upgrade",
        "_parser",
        "_rest",
        "_special",
        "_unparsed",
        "_url",
        "_usual_bytes",
        "_whole_bytes",
    )

    _headers: list[tuple[bytes, bytes]]
    _special: dict[bytes, bytes]
    _url: bytes
    _is_upgrade: bool
    _head_bytes: int
    _frame_room: int

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._parser: Any = httptools.HttpRequestParser(self)
        self._rest = self._unparsed = b""
        self._whole_bytes = min(self._forwarder.limits.body_bytes or WHOLE_BODY_BYTES, WHOLE_BODY_BYTES)
        self._head_limit = self._forwarder.limits.head_bytes
        self._usual_bytes = min(self._head_limit, _USUAL_BYTES)
        self._is_large_read = self._is_parsing = False
        self._forget_message()

    def __repr__(self) -> str:
        return f"HttpConnection({'active' if self.is_active else 'idle'}, backlog={len(self._backlog)})"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's
        self._transport = cast(asyncio.Transport, transport)
        self._origin = self._make_origin("1.1")
        self._allow_lending()
        self._peer_ip = self._client_ip
        self._listener.connections.add(self)
        if self._listener.is_overcrowded:
            self._refuse(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._listener.connections.discard(self)
        self._is_deaf = self._is_unready = True
        self._end_sharing()
        self._backlog.clear()
        if self.is_active:
            self._note(CLIENT_GONE)
            if self._wants_to_end():
                return
            self._forwarder.caller.cancel(self)
        self._end_request()
        # it has this connection: see `CallerLink.close`
        self._parser = None

    def data_received(self, data: bytes) -> None:
        if self._is_unready:
            data = self._look_at_start(data)
            if not data:
                return
        if len(data) > self._usual_bytes:
            if len(data) > _READ_BYTES and not self._is_body(len(data)):
                self._unparsed = data
                self._parse_on()
                return
            self._is_usual = False
            self._is_large_read = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._on_upgrade(data[upgrade.args[0] :])
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            self._refuse(400, f"bad request: {error}")
        self._is_large_read = False
        if self._url:
            self._on_partial(len(data))
            if self._is_in_body and not self._must_wait and (left := self._to_lend()) and self._is_body_there(left):
                self._start_stream()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_body:
            # a trailer: it must not be taken for a header
            return
        name = name.lower()
        self._headers.append((name, value))
        if name in SPECIAL:
            self._is_usual = False
            if self._special is NOTHING:
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
        self._frame_room += FRAME_BYTES_PER_BYTE * len(data)
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
        method = METHODS.get(parser.get_method())
        named = dict(self._headers)
        if target is None or method is None or self._listener.is_draining or b"host" not in named:
            self._complete()
            return
        if len(named) != len(self._headers) and not has_one_host(self._headers):
            self._complete()
            return
        self._url = b""
        headers, self._headers = self._headers, []
        self._method, self._path, self._client_ip = method, target.path, self._peer_ip
        self.is_active = self._keep_alive = True
        self.is_plain = method != "HEAD"
        self._is_http10 = False
        self._target, self._labels = target, target.labels
        self._began = self._now()
        self.is_idempotent = method in IDEMPOTENT_METHODS
        self.model_id = ""
        self._request_id = request_id = forwarder.request_id(None)
        if self._special is not NOTHING:
            # nothing but that it begins a trace
            headers = self._trace(self._special, headers, target)
            self._special = NOTHING
        rid = request_id.decode()
        self._tail = (method, target.path, target.query, headers, b"", rid, target.prefix, self._origin, None)
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
        is_http10 = (not keep_alive or special is not NOTHING) and parser.get_http_version() != "1.1"
        if is_http10 and parser.get_http_version() != "1.0":
            self._refuse(400, "bad request: unknown HTTP version")
            return
        method, url, headers, body = parser.get_method(), self._url, self._headers, self._body
        refusal = refusal_of_head(headers, special, is_http10)
        if refusal is not None:
            self._refuse(*refusal)
            return
        if method == b"CONNECT":
            self._refuse(501, "CONNECT is not supported")
            return
        # at once: the answer may be there before `_start` returns
        self._url = b""
        self._headers = []
        self._body = b""
        self._special = NOTHING
        self._is_in_body = False
        # its body came all the same
        self._owes_continue = False
        self._is_usual = not self._is_large_read
        self._head_bytes = self._head_tick = 0
        if self._must_wait:
            self._backlog.append((method, url, headers, body, special, keep_alive, is_http10))
            self._has_next = True
            self._pause_reading()
        else:
            self._start(method, url, headers, body, special, keep_alive, is_http10)

    def _on_large_body(self) -> None:
        if self._is_over_limit(len(self._body)) or len(self._body) <= WHOLE_BODY_BYTES:
            return
        if not self._must_wait and self._to_lend():
            # not in the midst of what the parser has
            return
        if self._must_wait:
            self._has_next = True
            self._pause_reading()
        else:
            self._start_stream()

    def _start_stream(self) -> None:
        if left := self._to_lend():
            self._loan = BodyLoan(left)
            self._body = bytes(self._body) + self._unparsed
            self._unparsed = b""
            self._is_unready = True
        body, self._body = bytes(self._body), b""
        self._is_streaming = True
        self._stream = stream = BodyStream(self, self._resume_reading)
        keep_alive = self._parser.should_keep_alive()
        is_http10 = self._parser.get_http_version() == "1.0"
        stream.feed(body)
        method = self._parser.get_method()
        self._start(method, self._url, self._headers, b"", self._special, keep_alive, is_http10)
        if stream.is_full:
            self._pause_reading()

    def _to_lend(self) -> int:
        if self._is_streaming or self._is_deaf or self._final is not None or self._parser.get_http_version() != "1.1":
            return 0
        target = self._forwarder.targets.get(self._url.partition(b"?")[0])
        # who is refused goes on with the connection where all of the body was read
        if target is None or target.router.refused_now() is not None:
            return 0
        takes = any(c.peer is not None and c.peer.takes_bodies for c in target.router.candidates)
        return self._lendable_bytes(self._parser.get_method().decode()) if takes else 0

    def _read_anew(self) -> None:
        # the parser has not seen the body's end
        self._parser = httptools.HttpRequestParser(self)
        self._forget_message()

    def _check_head(self) -> None:
        special = self._special
        if (self._is_large_read or self._head_bytes) and size_of_head(self._url, self._headers) > self._head_limit:
            self._refuse(*refusal_of_size(len(self._url), self._head_limit))
            return
        is_http10 = self._parser.get_http_version() == "1.0"
        refusal = refusal_of_head(self._headers, special, is_http10)
        if refusal is not None:
            self._refuse(*refusal)
            return
        self._frame_room = FRAME_ROOM + self._head_limit
        if self._is_over_limit(int(special.get(b"content-length", b"0"))):
            return
        # before its body: the parser takes everything behind this head for another protocol
        self._is_upgrade = bool(self._parser.should_upgrade()) and self._parser.get_method() != b"CONNECT"
        is_expecting = not is_http10 and special.get(b"expect", b"").lower() == b"100-continue"
        if self._must_wait:
            self._owes_continue = is_expecting
            self._has_next = self._has_next or is_expecting
            return
        if is_expecting and not self._continue():
            return
        target = self._forwarder.resolve(self._url.partition(b"?")[0])
        if target is not None and (b"content-length" in special or b"transfer-encoding" in special):
            self._limit(target, special)

    def _forget_message(self) -> None:
        self._url = b""
        self._headers = []
        self._body = b""
        self._special = NOTHING
        self._is_in_body = self._owes_continue = False
        self._is_upgrade = False
        self._is_usual = not self._is_large_read
        self._head_bytes = self._head_tick = self._frame_room = 0

    def _on_partial(self, size: int) -> None:
        self._tick = self._listener.tick
        self._is_usual = False
        if not self._is_in_body:
            self._head_bytes += size
            self._head_tick = self._head_tick or self._tick or 1
            if max(self._head_bytes, size_of_head(self._url, self._headers)) > self._head_limit:
                self._refuse(*refusal_of_size(len(self._url), self._head_limit))
        elif b"transfer-encoding" in self._special:
            self._frame_room -= size
            if self._frame_room < 0:
                self._refuse(431, "the chunks and trailers of the request's body are too large")

    def _is_body(self, size: int) -> bool:
        """So much of what comes next is certainly a part of the body that streams."""
        if not self._is_streaming or self._stream is None:
            return False
        return int(self._special.get(b"content-length", b"0")) - self._stream.received >= size

    def _parse_on(self) -> None:
        """Parse what was read but not looked at, until the client should not be read from: small requests cost much more
        memory than their bytes.
        """
        if self._is_parsing:
            return
        self._is_parsing = True
        while self._unparsed and not self._is_read_paused and not self._is_deaf:
            data, self._unparsed = self._unparsed[:_READ_BYTES], self._unparsed[_READ_BYTES:]
            self._is_unready = False
            self.data_received(data)
        self._is_parsing = False
        self._is_unready = self._is_unready or bool(self._unparsed)

    def _look_at_start(self, data: bytes) -> bytes:
        if self._is_deaf:
            return b""
        if self._unparsed:
            self._unparsed += data
            return b""
        if self._loan is not None and not (data := self._take_body(data)):
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
        if self._is_deaf or self._final is not None:
            return
        rest, self._unparsed = rest + self._unparsed, b""
        parser, headers = self._parser, self._headers
        is_other = is_other_protocol(parser.get_method(), self._special) and self._listener.hand_over is not None
        headers = without_length(headers) if is_other else without_upgrade(headers, was_told=not self._owes_continue)
        data = head_bytes(parser.get_method(), self._url, parser.get_http_version(), headers) + rest
        self._forget_message()
        if not is_other:
            # the wish is ignored. The parser took the head for all there is, and its body for something else: once more
            self._parser = httptools.HttpRequestParser(self)
            self._unparsed = data
            self._parse_on()
            return
        self._upgrade = data
        if self._must_wait:
            self._has_next = True
            self._pause_reading()
        else:
            self._hand_over(self._upgrade)
