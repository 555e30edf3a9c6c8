"""A client of HTTP/2 that may misbehave: frames by hand where a decent client has no say."""

import asyncio
import ssl
from collections import defaultdict
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, TextMessage

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LIMIT_S = 10.0


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


class Http2Client:
    """One connection. Use with `async with`. upgrade: the path that HTTP/1.1 asks for, with these lines in its head.

    Attributes:
        headers, bodies: of responses so far, by stream. interim: statuses that came before those.
        ended, reset: streams that ended, and that the server reset, with its code.
        is_over: the server has said goodbye or closed. goodbye: the code that it said.
        reads: whether data frames are acknowledged, which opens the windows again.
    """

    def __init__(
        self,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        upgrade: str = "",
        window: int = 0,
        lines: str = "",
    ) -> None:
        self._lines = lines
        self._port = port
        self._tls = tls
        self._upgrade = upgrade
        self._window = window
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.headers: dict[int, dict[str, str]] = {}
        self.bodies: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.interim: defaultdict[int, list[str]] = defaultdict(list)
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.is_over = False
        self.goodbye: int | None = None
        self.reads = True
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Http2Client":
        host = "localhost" if self._tls is not None else None
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._tls, server_hostname=host
        )
        rest = b""
        if self._upgrade:
            settings = self.h2.initiate_upgrade_connection()
            assert settings is not None
            head = f"GET {self._upgrade} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
            head += self._lines
            self.writer.write(head.encode() + b"http2-settings: " + settings + b"\r\n\r\n")
            answer = await self.reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 101"), answer
        else:
            self.h2.initiate_connection()
        if self._window:
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: self._window})
        self.flush(rest)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        if self._reading is not None:
            self._reading.cancel()
        self.writer.transport.abort()

    def flush(self, more: bytes = b"") -> None:
        """Send what waits, and these bytes behind it."""
        self.writer.write(self.h2.data_to_send() + more)

    def ask(self, path: str, method: str = "GET", *, end: bool = True, **headers: str) -> int:
        """Send the head of a request; gives its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        pairs = [(":method", method), (":scheme", "http"), (":authority", "x"), (":path", path)]
        pairs += [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.h2.send_headers(stream_id, pairs, end_stream=end)
        self.flush()
        return stream_id

    async def send(self, stream_id: int, data: bytes, *, end: bool = True) -> None:
        """Send a body as the windows open; returns early when the stream is over."""
        while data and stream_id not in self.ended and stream_id not in self.reset and not self.is_over:
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            if room <= 0:
                await self._wait()
                continue
            self.h2.send_data(stream_id, data[:room])
            data = data[room:]
            self.flush()
            await self.writer.drain()
        if end and not data:
            self.h2.end_stream(stream_id)
            self.flush()

    async def answer(self, stream_id: int) -> tuple[int, bytes]:
        """Status and body of a whole response; status 0 = none came."""
        while stream_id not in self.ended and stream_id not in self.reset and not self.is_over:
            await self._wait()
        return int(self.headers.get(stream_id, {}).get(":status", 0)), bytes(self.bodies[stream_id])

    async def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        return await self.answer(self.ask(path, **headers))

    async def head(self, stream_id: int) -> dict[str, str]:
        """Headers of a response, once they are there."""
        while stream_id not in self.headers:
            assert stream_id not in self.reset
            assert not self.is_over
            await self._wait()
        return self.headers[stream_id]

    async def _wait(self) -> None:
        self._news.clear()
        async with asyncio.timeout(LIMIT_S):
            await self._news.wait()

    async def _read(self) -> None:
        try:
            while data := await self.reader.read(65536):
                for event in self.h2.receive_data(data):
                    self._take(event)
                self.flush()
                self._news.set()
        except (ConnectionError, h2.exceptions.ProtocolError):
            pass
        self.is_over = True
        self._news.set()

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.headers[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.InformationalResponseReceived):
            self.interim[event.stream_id].append(dict(event.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] += event.data
            if self.reads:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.reset[event.stream_id] = int(event.error_code)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.is_over = True
            self.goodbye = int(event.error_code or 0)


class Http2WebSocket:
    """A WebSocket over one stream of an HTTP/2 connection (RFC 8441)."""

    def __init__(self, client: Http2Client, path: str, **headers: str) -> None:
        self._client = client
        self._frames = Connection(ConnectionType.CLIENT)
        self.stream_id = client.h2.get_next_available_stream_id()
        pairs = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":authority", "x")]
        pairs += [(":path", path), ("sec-websocket-version", "13")]
        pairs += [(name.replace("_", "-"), value) for name, value in headers.items()]
        client.h2.send_headers(self.stream_id, pairs)
        client.flush()

    async def send(self, text: str) -> None:
        """Send a text message."""
        await self._client.send(self.stream_id, self._frames.send(TextMessage(text)), end=False)

    async def close(self, code: int = 1000) -> None:
        """Say goodbye."""
        await self._client.send(self.stream_id, self._frames.send(CloseConnection(code)), end=False)

    async def receive(self) -> str | int:
        """The next message, or the code of the other side's goodbye."""
        text = ""
        client = self._client
        while True:
            data, client.bodies[self.stream_id] = bytes(client.bodies[self.stream_id]), bytearray()
            self._frames.receive_data(data)
            for event in self._frames.events():
                if isinstance(event, CloseConnection):
                    return int(event.code)
                if isinstance(event, Message):
                    text += str(event.data)
                    if event.message_finished:
                        return text
            assert not client.is_over
            assert self.stream_id not in client.reset
            await client._wait()
