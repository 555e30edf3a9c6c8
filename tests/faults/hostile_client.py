"""Clients of HTTP/1.1, HTTP/2 and WebSockets that read nothing, or only what lets them send more."""

import base64
import contextlib
import select
import socket
import struct
import zlib
from types import TracebackType
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.settings

_STUCK_S = 0.25
_PATIENCE_S = 30.0
_LARGE_WINDOW = 2**31 - 1


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame of HTTP/2 (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


class RawClient:
    """One connection with little room for what comes."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(_PATIENCE_S)
        self._socket.connect(("127.0.0.1", port))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def push(self, data: bytes) -> bool:
        """Send as much as is taken; False once it takes no more."""
        self._socket.settimeout(_STUCK_S)
        view = memoryview(data)
        try:
            while view:
                view = view[self._socket.send(view) :]
        except OSError:
            return False
        return True

    def read_some(self, limit_s: float = 2.0) -> bytes:
        """What comes next, b"" for nothing in time."""
        self._socket.settimeout(limit_s)
        try:
            return self._socket.recv(65536)
        except OSError:
            return b""

    def close(self) -> None:
        """Go without a word."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


class Http2Attacker(RawClient):
    """HTTP/2 by prior knowledge. window: of each stream for answers."""

    def __init__(self, port: int, window: int = _LARGE_WINDOW) -> None:
        super().__init__(port)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self._h2.increment_flow_control_window(_LARGE_WINDOW - 65_535)
        self.push_all()
        # the server's settings say how many streams there may be
        self._hear(2.0)

    def ask(
        self, path: str, method: str = "GET", *, end: bool = True, pairs: list[tuple[str, str]] | None = None
    ) -> int:
        """Word a request; gives its stream."""
        stream_id = self._h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", "x"), (":path", path)]
        if method == "CONNECT":
            head.insert(1, (":protocol", "websocket"))
            end = False
        self._h2.send_headers(stream_id, [*head, *(pairs or [])], end_stream=end)
        return stream_id

    def take_back(self, stream_id: int) -> None:
        """Reset a stream."""
        self._h2.reset_stream(stream_id, 8)

    def push_all(self, more: bytes = b"") -> None:
        """Send what was worded, and this."""
        self.push(self._h2.data_to_send() + more)

    def upload(self, sizes: dict[int, int], *, end: bool, piece: int, content: bytes = b"x") -> None:
        """Send bodies as the windows open, frames of so many bytes, until they open no more."""
        self.push_all()
        block = (content * (piece // len(content) + 1))[: piece - piece % len(content)] if piece > 1 else content[:1]
        while sizes:
            has_sent = False
            for stream_id in list(sizes):
                for _ in range(max(1, 2000 // len(block)) if piece == 1 else 1):
                    try:
                        room = self._h2.local_flow_control_window(stream_id)
                        size = min(len(block), sizes[stream_id])
                        size -= size % len(content)
                        if size <= 0:
                            if end:
                                self._h2.end_stream(stream_id)
                            del sizes[stream_id]
                            break
                        if room < size:
                            break
                        self._h2.send_data(stream_id, block[:size])
                    except h2.exceptions.ProtocolError:
                        # the server has ended it
                        del sizes[stream_id]
                        break
                    sizes[stream_id] -= size
                    has_sent = True
            self.push_all()
            if not self._hear(0.0 if has_sent else _STUCK_S) and not has_sent:
                return

    def upload_each(self, bodies: dict[int, bytes], *, end: bool) -> None:
        """Send each stream's body as the windows open, until they open no more."""
        self.push_all()
        left = {stream_id: memoryview(body) for stream_id, body in bodies.items()}
        while left:
            has_sent = False
            for stream_id, body in list(left.items()):
                try:
                    size = min(len(body), self._h2.local_flow_control_window(stream_id), 16_000)
                    if size > 0:
                        self._h2.send_data(stream_id, bytes(body[:size]), end_stream=end and size == len(body))
                        left[stream_id] = body[size:]
                        has_sent = True
                    if size == len(body):
                        del left[stream_id]
                except h2.exceptions.ProtocolError:
                    # the server has ended it
                    del left[stream_id]
            self.push_all()
            if not self._hear(0.0 if has_sent else _STUCK_S) and not has_sent:
                return

    def _hear(self, limit_s: float) -> bool:
        heard = False
        while select.select([self._socket], [], [], 0.0 if heard else limit_s)[0]:
            data = self.read_some()
            if not data:
                return heard
            try:
                events: list[Any] = self._h2.receive_data(data)
            except h2.exceptions.ProtocolError:
                return heard
            heard = heard or any(
                isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged) for event in events
            )
        return heard


class WebSocketAttacker(RawClient):
    """A WebSocket of HTTP/1.1. extensions: that it offers."""

    def __init__(self, port: int, path: str, extensions: str = "") -> None:
        super().__init__(port)
        lines = [
            f"GET {path} HTTP/1.1",
            "host: x",
            "connection: upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            f"sec-websocket-key: {base64.b64encode(b'0' * 16).decode()}",
            *([f"sec-websocket-extensions: {extensions}"] if extensions else []),
            "",
            "",
        ]
        self.push("\r\n".join(lines).encode())
        head = b""
        self._socket.settimeout(_PATIENCE_S)
        while b"\r\n\r\n" not in head and (byte := self._socket.recv(1)):
            head += byte
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert (b"permessage-deflate" in head) == bool(extensions), head

    @staticmethod
    def frame(kind: int, payload: bytes, *, is_last: bool = True, is_compressed: bool = False) -> bytes:
        """One frame of a client (RFC 6455, 5.2), masked with nothing."""
        first = (0x80 if is_last else 0) | (0x40 if is_compressed else 0) | kind
        size = len(payload)
        if size < 126:
            head = bytes([first, 0x80 | size])
        elif size < 65_536:
            head = bytes([first, 0xFE]) + size.to_bytes(2, "big")
        else:
            head = bytes([first, 0xFF]) + size.to_bytes(8, "big")
        return head + b"\0\0\0\0" + payload

    @classmethod
    def bomb(cls) -> bytes:
        """A message of 15 MiB in some kB."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(b"x" * (15 * 2**20)) + packer.flush(zlib.Z_SYNC_FLUSH)
        return cls.frame(2, packed[:-4], is_compressed=True)
