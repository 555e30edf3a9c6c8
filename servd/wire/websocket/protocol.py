"""The protocol of a WebSocket, the server's end, without I/O: bytes of the client become messages, messages become bytes. Pure.

How it works: `websockets` keeps the protocol. What most clients send, frames that are a whole message each, takes a shorter way
past it: the library needs several times as long for one. Everything else (parts of messages, pings, farewells, compression,
whatever is against the rules) is the library's to judge, frame by frame, so that messages wait here as bytes until somebody takes
them.
"""

import logging
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from websockets.datastructures import Headers
from websockets.exceptions import WebSocketException
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, Protocol, Side
from websockets.server import ServerProtocol
from websockets.utils import accept_key

try:
    from websockets.speedups import apply_mask
except ImportError:
    # no wheel, and no compiler where it was installed
    from websockets.utils import apply_mask

MESSAGE_BYTES = 16 * 1024 * 1024
"""A larger message ends the WebSocket."""
ABNORMAL = 1006
"""What a handler hears where the client said no farewell."""

_TEXT, _BINARY = 0x81, 0x82
_WHOLE = (_TEXT, _BINARY)
_MASKED, _LENGTH = 0x80, 0x7F
_JOINED_BYTES = 16 * 1024
"""Up to this size a message and its head are put together: a copy costs less than a second piece."""
_FRAMES_AT_ONCE = 64
_REASON_BYTES = 123

# each end of a connection would be a line in the log
_logger = logging.getLogger("servd.websockets")
_logger.setLevel(logging.WARNING)

Message = dict[str, Any]
Piece = bytes | memoryview


class Agreed(NamedTuple):
    """What was agreed on with a client. headers: of the answer to its handshake. extensions: of the library."""

    headers: list[tuple[bytes, bytes]]
    extensions: Sequence[Any]


def agree(headers: Iterable[tuple[bytes, bytes]], subprotocol: str | None) -> Agreed:
    """Answer a handshake, which is a right one.

    Args:
        headers: of the request, names in lower case.
        subprotocol: that the application chose, None = none.
    """
    asked = Headers()
    key = ""
    for name, value in headers:
        if name == b"sec-websocket-key":
            key = value.decode("latin-1")
        elif name == b"sec-websocket-extensions":
            asked["sec-websocket-extensions"] = value.decode("latin-1")
    answer = [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
    answer.append((b"sec-websocket-accept", accept_key(key).encode()))
    extensions: Sequence[Any] = ()
    if "sec-websocket-extensions" in asked:
        # small windows: a kilobyte or two of compression are not worth 300 KB a connection
        deflate = ServerPerMessageDeflateFactory(
            server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
        )
        try:
            said, extensions = ServerProtocol(extensions=[deflate], logger=_logger).process_extensions(asked)
        except WebSocketException:
            # nobody has to take what is offered
            said = None
        if said is not None:
            answer.append((b"sec-websocket-extensions", said.encode()))
    if subprotocol is not None:
        answer.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
    return Agreed(answer, extensions)


class WebSocketProtocol:
    """One WebSocket whose handshake is over.

    Args:
        extensions: as agreed on.
        max_bytes: of a message of the client, uncompressed.

    Attributes:
        is_ended: the client's farewell has come, or it has broken the rules: nothing of it is read any more.
        is_interrupted: `next_message` has gone through many frames that are none, and there may be more: ask again, later.
        farewell: code and reason of the client's, None before and where it had none.
        told_off: code and reason with which a client that broke the rules is told so, None before and where the application had
            said farewell by then.
    """

    __slots__ = (
        "_at",
        "_data",
        "_is_partial",
        "_is_text",
        "_library",
        "_max_bytes",
        "_parts",
        "farewell",
        "is_ended",
        "is_interrupted",
        "told_off",
    )

    def __init__(self, extensions: Sequence[Any] = (), max_bytes: int = MESSAGE_BYTES) -> None:
        self._library = Protocol(Side.SERVER, state=OPEN, max_size=max_bytes, logger=_logger)
        self._library.extensions = list(extensions)
        self._max_bytes = max_bytes
        self._data: bytes | bytearray = b""
        self._at = 0
        self._parts = bytearray()
        self._is_partial = self._is_text = self.is_ended = self.is_interrupted = False
        self.farewell: tuple[int, str] | None = None
        self.told_off: tuple[int, str] | None = None

    def __repr__(self) -> str:
        return (
            f"WebSocketProtocol({'ended' if self.is_ended else self._library.state.name}, {self.unread_bytes} unread)"
        )

    @property
    def unread_bytes(self) -> int:
        """What was fed and no message has been made of."""
        return len(self._data) - self._at

    @property
    def can_send(self) -> bool:
        """Neither side has said farewell, or been told off."""
        return self._library.state is OPEN

    def feed(self, data: bytes) -> None:
        """What the client sent; ask for the messages next."""
        if self._at == len(self._data):
            self._data = data
        elif type(self._data) is bytes:
            # not joined again and again: a large message comes in many pieces
            self._data = bytearray(memoryview(self._data)[self._at :])
            self._data += data
        else:
            del self._data[: self._at]  # type: ignore[union-attr]
            self._data += data
        self._at = 0

    def next_message(self) -> Message | None:
        """The next message of the client, as ASGI has it; None = there is none yet, or none any more."""
        left = _FRAMES_AT_ONCE
        self.is_interrupted = False
        while not self.is_ended:
            data, at = self._data, self._at
            have = len(data) - at
            if have < 2:
                return None
            first, size = data[at], data[at + 1]
            start = at + 6
            is_masked, size = size & _MASKED, size & _LENGTH
            if size >= 126:
                start += 2 if size == 126 else 8
                if have < start - at - 4:
                    return None
                size = int.from_bytes(data[at + 2 : start - 4], "big")
            end = start + size
            if not is_masked or size > self._max_bytes:
                # against the rules; not all of it may ever come
                end = len(data)
            elif end > len(data):
                return None
            self._at = end
            if first in _WHOLE and is_masked and size <= self._max_bytes and not self._is_partial:
                message = self._whole(first, data, start, end)
            else:
                message = self._judge(bytes(memoryview(data)[at:end]))
                left -= 1
            if message is not None:
                return message
            if not left:
                self.is_interrupted = True
                return None
        self._data, self._at = b"", 0
        return None

    def _whole(self, first: int, data: bytes | bytearray, start: int, end: int) -> Message | None:
        with memoryview(data) as view:
            body = apply_mask(view[start:end], data[start - 4 : start])
        return self._message(first == _TEXT, body)

    def _message(self, is_text: bool, body: bytes) -> Message | None:
        if not is_text:
            return {"type": "websocket.receive", "bytes": body}
        try:
            return {"type": "websocket.receive", "text": body.decode()}
        except UnicodeDecodeError:
            self._fail(1007, "a text message is no UTF-8")
            return None

    def _fail(self, code: int, reason: str) -> None:
        self.is_ended = True
        if self.can_send:
            self.told_off = code, reason
        self._library.fail(code, reason)

    def _judge(self, frame: bytes) -> Message | None:
        library = self._library
        was_open = self.can_send
        library.receive_data(frame)
        message = None
        for event in library.events_received():
            assert isinstance(event, Frame)
            if event.opcode is Opcode.CLOSE:
                close = library.close_rcvd
                self.is_ended = True
                self.farewell = (1005, "") if close is None else (int(close.code), close.reason)
            elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                message = self._add(event)
        if library.close_expected() and self.farewell is None and library.parser_exc is not None:
            self.is_ended = True
            if was_open and (said := library.close_sent) is not None:
                self.told_off = int(said.code), said.reason
        return message

    def _add(self, frame: Frame) -> Message | None:
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
            if frame.fin:
                return self._message(self._is_text, bytes(frame.data))
        self._parts += frame.data
        self._is_partial = not frame.fin
        if not frame.fin:
            return None
        body, self._parts = bytes(self._parts), bytearray()
        return self._message(self._is_text, body)

    def answers(self) -> list[Piece]:
        """What is to be written in answer to what came: pongs, a farewell. Ask once the messages were taken."""
        return [piece for piece in self._library.data_to_send() if piece]

    def text(self, data: bytes) -> list[Piece]:
        """What is to be written for a message, in UTF-8."""
        return self._framed(_TEXT, data)

    def binary(self, data: bytes) -> list[Piece]:
        """What is to be written for a message."""
        return self._framed(_BINARY, data)

    def _framed(self, first: int, body: bytes) -> list[Piece]:
        library = self._library
        if library.extensions:
            library.send_text(body) if first == _TEXT else library.send_binary(body)
            return self.answers()
        size = len(body)
        if size < 126:
            return [b"%c%c%b" % (first, size, body)]
        head = struct.pack("!BBH", first, 126, size) if size < 65536 else struct.pack("!BBQ", first, 127, size)
        return [head + body] if size <= _JOINED_BYTES else [head, memoryview(body)]

    def ping(self) -> list[Piece]:
        """What asks the client for a sign of life."""
        self._library.send_ping(b"")
        return self.answers()

    def close(self, code: int, reason: str = "") -> list[Piece]:
        """What says farewell, if nobody has.

        Raises:
            ValueError: a server may not say this code.
        """
        if self.can_send:
            # half a character at the end is dropped
            reason = reason.encode(errors="replace")[:_REASON_BYTES].decode(errors="ignore")
            try:
                self._library.send_close(None if code == 1005 else code, "" if code == 1005 else reason)
            except WebSocketException as error:
                raise ValueError(f"a WebSocket cannot be closed with {code}: {error}") from None
        return self.answers()
