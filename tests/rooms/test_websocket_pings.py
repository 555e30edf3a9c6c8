"""Clients of WebSockets are pinged, and those that do not answer are ended, on every lane."""

import asyncio
import ssl
from typing import Any

import pytest
import websockets

from servd.proxy import hypercorn_lane
from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, hello, wait_until
from tests.rooms.http2_client import Http2Client, Http2WebSocket
from tests.rooms.test_hypercorn_lane import shout
from tests.rooms.test_websockets import HEAD, Talker, opened

LIMITS = Limits(ws_ping_interval_s=2, ws_ping_timeout_s=3)
PING = b"\x89\0"
GOODBYE = b"\x88\x18" + (1011).to_bytes(2, "big") + b"keepalive ping timeout"
Tls = tuple[ssl.SSLContext, ssl.SSLContext]


def turn(room: Room, seconds: int = 1) -> None:
    """Let so many seconds pass."""
    for _ in range(seconds):
        room.lane.turn()


def connection_of(room: Room) -> Any:
    """The lane's one connection."""
    lane: Any = room.lane
    (connection,) = lane._lane.connections
    return connection


class Listener:
    """A handler that notes what becomes of it."""

    def __init__(self) -> None:
        self.begun = 0
        self.code = 0

    async def __call__(self, exchange: HttpExchange) -> None:
        if exchange.scope["type"] == "http":
            await hello(exchange)
            return
        self.begun += 1
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        while (message := await exchange.receive())["type"] != "websocket.disconnect":
            pass
        self.code = message["code"]


async def silent(room: Room, lane: str, tls: Tls) -> tuple[Any, Any]:
    """A WebSocket whose client is there and never says a word: what reads its next bytes, and its connection."""
    if lane == "HTTP/2":
        client = await Http2Client(room.port).__aenter__()
        stream_id = Http2WebSocket(client, "/").stream_id
        await client.head(stream_id)

        async def read(size: int) -> bytes:
            await wait_until(lambda: len(client.bodies[stream_id]) >= size)
            got, client.bodies[stream_id] = bytes(client.bodies[stream_id]), bytearray()
            return got

        return read, client
    if lane == "TLS":
        reader, writer = await asyncio.open_connection("localhost", room.port, ssl=tls[1])
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
    writer.write(HEAD + b"\r\n")
    await reader.readuntil(b"\r\n\r\n")
    return reader.readexactly, writer


@pytest.mark.parametrize("lane", ["HTTP/1.1", "TLS", "HTTP/2"])
async def test_a_client_without_a_sign_of_life_is_told_and_ended(
    lane: str, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypercorn_lane, "_AFTER_END_S", 0.05)
    handler = Listener()
    async with Room(hand_over=True, limits=LIMITS, tls=tls[0] if lane == "TLS" else None) as room:
        addresses = [room.replica(handler), room.replica(handler)]
        room.route(*addresses)
        read, connection = await silent(room, lane, tls)
        turn(room, 2)
        assert await read(len(PING)) == PING
        turn(room, 2)
        assert not handler.code
        turn(room)
        assert await read(len(GOODBYE)) == GOODBYE
        await wait_until(lambda: handler.code == 1006 and not any(room.servers[each].ongoing for each in addresses))
        assert handler.begun == 1, "nobody is asked to do it again"
        if lane == "HTTP/2":
            assert (await connection.get("/"))[0] == 200, "only the stream has ended"
            connection.abort()
        else:
            connection.transport.abort()
        await wait_until(lambda: room.lane.connections == 0)


@pytest.mark.slow
@pytest.mark.parametrize("sign", ["pong", "message"])
async def test_whoever_answers_stays(sign: str) -> None:
    async with Room(hand_over=True, limits=Limits(ws_ping_interval_s=1, ws_ping_timeout_s=2)) as room:
        room.route(room.replica(shout))
        url = f"ws://127.0.0.1:{room.port}/"
        if sign == "pong":
            async with websockets.connect(url, ping_interval=None) as socket:
                (websocket,) = connection_of(room).websockets.values()
                for _ in range(20):
                    turn(room)
                    await wait_until(lambda: not websocket._heartbeat._is_asked)
                await socket.send("still there")
                assert await socket.recv() == "STILL THERE"
            return
        _, writer = await opened(room)
        (websocket,) = connection_of(room).websockets.values()
        for _ in range(20):
            turn(room, 2)
            assert websocket._heartbeat._is_asked
            writer.write(b"\x81\x80\0\0\0\0")
            await wait_until(lambda: not websocket._heartbeat._is_asked)
        writer.transport.abort()


@pytest.mark.slow
async def test_a_client_whose_messages_are_not_taken_stays() -> None:
    heard: list[str] = []
    go_on = asyncio.Event()

    async def slow(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        await go_on.wait()
        while (message := await exchange.receive())["type"] != "websocket.disconnect":
            heard.append(message["text"])

    async with Room(hand_over=True, limits=LIMITS) as room:
        room.route(room.replica(slow))
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/", ping_interval=None) as socket:
            sending = asyncio.create_task(_send_all(socket, 100))
            await wait_until(lambda: connection_of(room).is_held_up)
            (websocket,) = connection_of(room).websockets.values()
            turn(room, 50)
            assert not websocket._heartbeat._is_over
            go_on.set()
            await sending
            await wait_until(lambda: len(heard) == 100)


async def _send_all(socket: Any, count: int) -> None:
    for _ in range(count):
        await socket.send("x" * 50_000)


@pytest.mark.slow
@pytest.mark.parametrize("is_http2", [False, True])
@pytest.mark.parametrize("reads", [False, True])
async def test_a_reader_stays_as_long_as_it_takes_something(
    reads: bool, is_http2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypercorn_lane, "_AFTER_END_S", 0.05)
    talker = Talker(60_000)
    async with Room(hand_over=True, limits=LIMITS) as room:
        address = room.replica(talker)
        room.route(address)
        if is_http2:
            client = await Http2Client(room.port).__aenter__()
            client.reads = False
            stream_id = Http2WebSocket(client, "/").stream_id
            await client.head(stream_id)
            writer = client.writer

            async def take() -> None:
                for each in (stream_id, None):
                    client.h2.increment_flow_control_window(10_000, each)
                client.flush()
                await asyncio.sleep(0.001)
        else:
            reader, writer = await opened(room, limit=1)

            async def take() -> None:
                assert await reader.read(65536)
                await asyncio.sleep(0.001)

        (websocket,) = connection_of(room).websockets.values()
        last = -1
        while last != talker.sent:
            # until everything that can be full is
            last = talker.sent
            await asyncio.sleep(0.1)
        for _ in range(10):
            async with asyncio.timeout(5):
                while reads and websocket._find_unsent() in (0, websocket._unsent_bytes):
                    await take()
            turn(room)
        if reads:
            assert room.servers[address].ongoing == 1
            writer.transport.abort()
        await wait_until(lambda: room.servers[address].ongoing == 0)
        await wait_until(lambda: room.lane.connections == (is_http2 and not reads))
        writer.transport.abort()


async def test_pings_can_be_off() -> None:
    async with Room(hand_over=True, limits=Limits(ws_ping_interval_s=0)) as room:
        room.route(room.replica(shout))
        reader, writer = await opened(room)
        await reader.readuntil(b"\r\n\r\n")
        turn(room, 100)
        # "hi", masked with zeros
        writer.write(b"\x81\x82\0\0\0\0hi")
        assert await reader.readexactly(4) == b"\x81\x02HI"
        writer.transport.abort()
