"""What the handler of a WebSocket hears of its end is what the client was told, in each lane."""

import asyncio
import ssl
from typing import Any

import pytest
import websockets

from servd.proxy import hypercorn_lane
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


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["handed over", "Hypercorn", "TLS"])
@pytest.mark.parametrize("what", BREACHES)
async def test_a_client_that_breaks_the_rules(what: str, lane: str, tls: Tls) -> None:
    data, code = BREACHES[what]
    handler = Listener()
    own = tls[0] if lane == "TLS" else None
    async with Room(hand_over=True, tls=own, takes_websockets=lane == "handed over") as room:
        room.route(room.replica(handler))
        reader, writer = await asyncio.open_connection("localhost", room.port, ssl=tls[1] if own else None)
        writer.write(HEAD + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
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
                room.lane.drain()
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
