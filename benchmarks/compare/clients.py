"""Load that wrk cannot make: large bodies, WebSocket messages, handle calls."""

import asyncio
import http.client
import json
import time
from typing import cast

import uvloop

from benchmarks.compare.cases import Case
from benchmarks.compare.running_system import request
from benchmarks.compare.systems import Endpoint
from benchmarks.compare.wrk import Load, LoadError

LIMIT_S = 60.0
MASK = b"\x11\x22\x33\x44"
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def of_times(taken: list[float], seconds: float) -> Load:
    """Sums up how long each request took, in seconds.

    Raises:
        LoadError: there is none.
    """
    if not taken:
        raise LoadError("nothing was answered")
    taken.sort()
    return Load(len(taken), seconds, 1000 * taken[len(taken) // 2], 1000 * taken[len(taken) * 99 // 100])


def transfer(case: Case, endpoint: Endpoint, seconds: float) -> Load:
    """Move the large body over one connection, again and again."""
    return _transfers(endpoint, seconds, *request(case, endpoint), int(case.answer))


def _transfers(
    endpoint: Endpoint, seconds: float, method: str, body: bytes | None, headers: dict[str, str], size: int
) -> Load:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=LIMIT_S)
    room = memoryview(bytearray(1 << 20))
    taken: list[float] = []
    began = now = time.perf_counter()
    try:
        while now < began + seconds:
            sent = now
            connection.request(method, endpoint.path, body, headers)
            response = connection.getresponse()
            got, start = 0, b""
            while count := response.readinto(room):
                start = start or bytes(room[:20])
                got += count
            is_whole = got == size or start.startswith(b"%d" % size)
            if response.status != 200 or not is_whole:
                raise LoadError(f"status {response.status}, {got} bytes")
            now = time.perf_counter()
            taken.append(now - sent)
    except (OSError, http.client.HTTPException) as error:
        raise LoadError(f"{type(error).__name__}: {error}") from None
    finally:
        connection.close()
    return of_times(taken, now - began)


def calls(endpoint: Endpoint, in_flight: int, seconds: float) -> Load:
    """The application calls its other deployment through a handle, and says how fast it went."""
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=LIMIT_S)
    try:
        connection.request("GET", f"{endpoint.path}?in_flight={in_flight}&seconds={seconds}")
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise LoadError(f"{type(error).__name__}: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise LoadError(f"status {response.status}: {text[:200]!r}")
    found = json.loads(text)
    return Load(found["calls"], found["calls"] / found["calls_per_s"], found["p50_ms"], found["p99_ms"])


def _head(size: int, masked: int) -> bytes:
    """The begin of the frame of a text."""
    if size < 126:
        return bytes([0x81, masked | size])
    if size < 65536:
        return bytes([0x81, masked | 126]) + size.to_bytes(2, "big")
    return bytes([0x81, masked | 127]) + size.to_bytes(8, "big")


class Messenger(asyncio.Protocol):
    """One WebSocket that has one message under way."""

    def __init__(
        self, size: int, endpoint: Endpoint, until: float, taken: list[float], done: "asyncio.Future[None]"
    ) -> None:
        self._endpoint, self._until, self._taken, self._done = endpoint, until, taken, done
        text = (b"0123456789abcdef" * (size // 16 + 1))[:size]
        self._message = _head(size, 0x80) + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(text))
        self._echo = _head(size, 0) + text
        self._is_open = False
        self._buffer = bytearray()
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self._transport.write(UPGRADE.format(path=self._endpoint.path, port=self._endpoint.port).encode())

    def data_received(self, data: bytes) -> None:
        """Count an echo and send the next message."""
        self._buffer += data
        if not self._is_open:
            head, end, _ = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._fail(f"no upgrade: {head[:60]!r}")
                return
            self._is_open = True
        elif len(self._buffer) < len(self._echo):
            return
        elif self._buffer == self._echo:
            self._taken.append(time.perf_counter() - self._sent)
        else:
            self._fail(f"no echo: {self._buffer[:60]!r}")
            return
        self._buffer.clear()
        self._sent = time.perf_counter()
        if self._sent < self._until:
            self._transport.write(self._message)
        elif not self._done.done():
            self._done.set_result(None)

    def _fail(self, fault: str) -> None:
        if not self._done.done():
            self._done.set_exception(LoadError(fault))

    def connection_lost(self, error: Exception | None) -> None:
        """Tell, if it was too early."""
        self._fail(f"the connection was closed: {error}")


def websocket(size: int, endpoint: Endpoint, connections: int, seconds: float) -> Load:
    """Echo messages of so many bytes over so many WebSockets."""

    async def load() -> Load:
        loop = asyncio.get_running_loop()
        taken: list[float] = []
        began = time.perf_counter()
        ends = [loop.create_future() for _ in range(connections)]
        transports = []
        for end in ends:
            transport, _ = await loop.create_connection(
                lambda end=end: Messenger(size, endpoint, began + seconds, taken, end),  # type: ignore[misc]
                "127.0.0.1",
                endpoint.port,
            )
            transports.append(transport)
        try:
            async with asyncio.timeout(LIMIT_S):
                await asyncio.gather(*ends)
        except (TimeoutError, OSError) as error:
            raise LoadError(f"{type(error).__name__}: {error}") from None
        finally:
            for transport in transports:
                transport.abort()
        return of_times(taken, time.perf_counter() - began)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load())
