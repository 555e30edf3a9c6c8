"""What the handler of a WebSocket hears of its end is what the client was told, in each lane."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import websockets
from wsproto.events import CloseConnection

from servd.proxy.hypercorn import lane as hypercorn_lane
from servd.replica.exchange import HttpExchange
from tests.core.test_websocket_protocol import BINARY, CLOSE, CONT, TEXT, frame
from tests.fakes import Room, hello, wait_until
from tests.rooms.http2_client import Http2Client, Http2WebSocket
from tests.rooms.test_websockets import HEAD

MIB = 1024 * 1024
BREACHES = {
    "no mask": (frame(TEXT, b"a", mask=b""), 1002),
    "a part of nothing": (frame(CONT, b"a"), 1002),
    "a farewell without a whole code": (frame(CLOSE, b"\x03"), 1002),
    "no UTF-8": (frame(TEXT, b"\xff"), 1007),
    "no UTF-8 in parts": (frame(TEXT, b"a", fin=False) + frame(CONT, b"\xff"), 1007),
    "too large": (frame(BINARY, b"x" * (17 * MIB)), 1009),
    "too large in parts": (frame(BINARY, b"x" * MIB, fin=False) + frame(CONT, b"x" * MIB, fin=False) * 16, 1009),
}
Tls = tuple[ssl.SSLContext, ssl.SSLContext]


class Listener:
    """A handler that echoes, and notes what it hears of the end."""

    def __init__(self) -> None:
        self.ends: list[dict[str, Any]] = []

    async def __call__(self, exchange: HttpExchange) -> None:
        if exchange.scope["type"] == "http":
            await hello(exchange)
            return
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        while (message := await exchange.receive())["type"] == "websocket.receive":
            await exchange.send({"type": "websocket.send", "text": message["text"]})
        self.ends.append(message)

    @property
    def heard(self) -> list[tuple[int, str]]:
        """Code and reason of each end."""
        return [(end["code"], end["reason"]) for end in self.ends]


@pytest.fixture(autouse=True)
def no_long_farewells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections whose client was told why end soon."""
    monkeypatch.setattr(hypercorn_lane, "_AFTER_END_S", 0.2)
    monkeypatch.setattr("servd.wire.websocket.connection._FAREWELL_S", 0.2)


@asynccontextmanager
async def opened(
    lane: str, tls: Tls, handler: Any
) -> AsyncIterator[tuple[Room, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A WebSocket whose handshake is answered, byte by byte from there on."""
    own = tls[0] if lane == "TLS" else None
    async with Room(hand_over=True, tls=own, takes_websockets=lane == "handed over") as room:
        room.route(room.replica(handler))
        reader, writer = await asyncio.open_connection("localhost", room.port, ssl=tls[1] if own else None)
        writer.write(HEAD + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        yield room, reader, writer


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["handed over", "Hypercorn", "TLS"])
@pytest.mark.parametrize("what", BREACHES)
async def test_a_client_that_breaks_the_rules(what: str, lane: str, tls: Tls) -> None:
    data, code = BREACHES[what]
    handler = Listener()
    async with opened(lane, tls, handler) as (room, reader, writer):
        writer.write(data)
        async with asyncio.timeout(5):
            head = await reader.readexactly(4)
            reason = (await reader.readexactly(head[1] - 2)).decode()
        assert (head[:1], int.from_bytes(head[2:], "big")) == (b"\x88", code)
        await wait_until(lambda: bool(handler.ends))
        writer.transport.abort()
        assert handler.heard == [(code, reason)]
        assert reason
        await wait_until(lambda: room.websockets == 0)


@pytest.mark.slow
@pytest.mark.parametrize("what", BREACHES)
async def test_a_client_of_http2_that_breaks_the_rules(what: str) -> None:
    data, code = BREACHES[what]
    handler = Listener()
    async with Room(hand_over=True) as room:
        room.route(room.replica(handler))
        async with Http2Client(room.port) as client:
            socket = Http2WebSocket(client, "/")
            await client.head(socket.stream_id)
            sending = asyncio.create_task(client.send(socket.stream_id, data, end=False))
            assert await socket.receive() == code
            await wait_until(lambda: bool(handler.ends))
            assert handler.ends[0]["code"] == code
            assert handler.ends[0]["reason"]
            await asyncio.wait([sending])
            sending.exception()
            assert (await client.get("/"))[0] == 200, "only the stream has ended"
        await wait_until(lambda: room.websockets == 0)


@pytest.mark.parametrize("who", ["proxy", "replica"])
async def test_a_drain(who: str, is_handed: bool) -> None:
    handler = Listener()
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        address = room.replica(handler)
        room.route(address)
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/") as socket:
            await socket.send("a")
            assert await socket.recv() == "a"
            if who == "proxy":
                room.listener.drain()
                room.lane.drain(10.0)
            else:
                room.servers[address].drain()
                assert room.servers[address].restart_websockets()
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "")
        await wait_until(lambda: handler.heard == [(1012, "")])


@pytest.mark.parametrize(("code", "heard"), [(1000, 1000), (4321, 4321), (None, 1006)])
async def test_a_client_that_leaves(code: int | None, heard: int, is_handed: bool) -> None:
    handler = Listener()
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(handler))
        socket = await websockets.connect(f"ws://127.0.0.1:{room.port}/")
        if code is None:
            socket.transport.abort()
        else:
            await socket.close(code, "why")
        await wait_until(lambda: bool(handler.ends))
        assert handler.heard == [(heard, "why" if code else "")]


LEAVING = {
    "farewell": ("close", (3000, "why")),
    "farewell and end": ("close, end", (3000, "why")),
    "farewell and reset": ("close, reset", (3000, "why")),
    "end": ("end", (1006, "")),
    "reset": ("reset", (1006, "")),
}


@pytest.mark.parametrize("how", LEAVING)
async def test_how_a_client_of_http2_leaves(how: str) -> None:
    steps, heard = LEAVING[how]
    handler = Listener()
    async with Room(hand_over=True) as room:
        address = room.replica(handler)
        room.route(address)
        async with Http2Client(room.port) as client:
            await client.get("/-/healthz")
            socket = Http2WebSocket(client, "/")
            stream = socket.stream_id
            await client.head(stream)
            if "close" in steps:
                client.h2.send_data(stream, socket._frames.send(CloseConnection(*heard)))
            if "end" in steps:
                client.h2.end_stream(stream)
            if "reset" in steps:
                client.h2.reset_stream(stream)
            client.flush()
            await wait_until(lambda: bool(handler.ends))
            assert handler.heard == [heard]
            if "reset" not in steps:
                # for which it waits, as for the end of a connection
                await wait_until(lambda: stream in client.ended)
            await wait_until(lambda: room.servers[address].ongoing == 0)


async def test_a_reset_is_heard_by_a_handler_that_has_messages_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.proxy.hypercorn.http2._LAST_WORDS_S", 0.05)
    monkeypatch.setattr("servd.proxy.websocket_form.GOODBYE_S", 0.02)

    async def deaf(exchange: HttpExchange) -> None:
        await exchange.send({"type": "websocket.accept"})
        await asyncio.Event().wait()

    async with Room(hand_over=True) as room:
        address = room.replica(deaf)
        room.route(address)
        async with Http2Client(room.port) as client:
            socket = Http2WebSocket(client, "/")
            await client.head(socket.stream_id)
            sending = asyncio.create_task(socket.send("x" * 4_000_000))
            await wait_until(lambda: client.h2.local_flow_control_window(socket.stream_id) <= 0)
            client.h2.reset_stream(socket.stream_id)
            client.flush()
            sending.cancel()
            await wait_until(lambda: room.servers[address].ongoing == 0)


@pytest.mark.parametrize("early", [b"x", None])
async def test_a_client_of_http2_that_does_not_wait_for_the_handshake(early: bytes | None) -> None:
    go_on = asyncio.Event()
    ended = False

    async def late(exchange: HttpExchange) -> None:
        nonlocal ended
        await go_on.wait()
        await exchange.send({"type": "websocket.accept"})
        while (await exchange.receive())["type"] != "websocket.disconnect":
            pass
        ended = True

    async with Room(hand_over=True) as room:
        address = room.replica(late)
        room.route(address)
        async with Http2Client(room.port) as client:
            await client.get("/-/healthz")
            stream = Http2WebSocket(client, "/").stream_id
            await wait_until(lambda: room.servers[address].ongoing == 1)
            if early is None:
                client.h2.end_stream(stream)
            else:
                client.h2.send_data(stream, early)
            client.flush()
            await wait_until(lambda: stream in client.ended or stream in client.reset)
            if early is not None:
                assert client.headers[stream][":status"] == "400"
            await wait_until(lambda: room.servers[address].ongoing == 0)
            assert not ended


@pytest.mark.parametrize("is_answered", [True, False])
@pytest.mark.parametrize("lane", ["handed over", "Hypercorn", "TLS"])
async def test_a_handler_that_says_farewell_to_a_client_that_still_sends(
    lane: str, is_answered: bool, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("servd.proxy.hypercorn.websocket", "servd.wire.websocket.connection"):
        monkeypatch.setattr(f"{place}._FAREWELL_S", 5.0 if is_answered else 0.2)

    async def brief(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        await exchange.receive()
        await exchange.send({"type": "websocket.close", "code": 4001, "reason": "bye"})

    async with opened(lane, tls, brief) as (room, reader, writer):
        writer.write(frame(TEXT, b"a"))
        assert await reader.readexactly(7) == b"\x88\x05\x0f\xa1bye"
        for _ in range(8 if is_answered else 1):
            # a connection that is closed already would be reset
            writer.write(frame(BINARY, b"x" * 1000) + frame(BINARY, b"x" * 100_000))
            await writer.drain()
        if is_answered:
            writer.write(frame(CLOSE, b"\x0f\xa1"))
        assert await reader.read() == b""
        writer.transport.abort()
        await wait_until(lambda: room.websockets == 0)
