"""Clients of WebSockets are pinged, and those that do not answer are ended, on every lane."""

import asyncio
import ssl
from typing import Any

import pytest
import websockets

from servd.proxy.hypercorn import lane as hypercorn_lane
from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from servd.wire.websocket.heartbeat import Heartbeat
from tests.fakes import Room, hello, until_still, wait_until
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
        for exchange in room.handed():
            wire = exchange._wire
            assert wire is not None
            wire.turn()


@pytest.fixture(autouse=True)
def no_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes by `turn` alone, and farewells are not waited for long."""
    monkeypatch.setattr("servd.wire.websocket.connection._TURN_S", 3600.0)
    monkeypatch.setattr("servd.wire.websocket.connection._FAREWELL_S", 0.05)


def heartbeat_of(room: Room) -> Heartbeat:
    """That of the one WebSocket."""
    if handed := room.handed():
        assert handed[0]._wire is not None
        return handed[0]._wire._heartbeat
    (websocket,) = connection_of(room).websockets.values()
    found: Heartbeat = websocket._heartbeat
    return found


def connection_of(room: Room) -> Any:
    """The lane's one connection."""
    lane: Any = room.lane
    (connection,) = lane._lane.connections
    return connection


class Listener:
    """A handler that notes what becomes of it."""

    def __init__(self) -> None:
        self.begun = 0
        self.code, self.reason = 0, ""

    async def __call__(self, exchange: HttpExchange) -> None:
        if exchange.scope["type"] == "http":
            await hello(exchange)
            return
        self.begun += 1
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        while (message := await exchange.receive())["type"] != "websocket.disconnect":
            pass
        self.code, self.reason = message["code"], message["reason"]


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


@pytest.mark.parametrize("lane", ["handed over", "HTTP/1.1", "TLS", "HTTP/2"])
async def test_a_client_without_a_sign_of_life_is_told_and_ended(
    lane: str, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypercorn_lane, "_AFTER_END_S", 0.05)
    handler = Listener()
    own = tls[0] if lane == "TLS" else None
    async with Room(hand_over=True, limits=LIMITS, tls=own, takes_websockets=lane == "handed over") as room:
        addresses = [room.replica(handler), room.replica(handler)]
        room.route(*addresses)
        read, connection = await silent(room, lane, tls)
        await wait_until(lambda: all(exchange.is_handed for exchange in room.handed()))
        turn(room, 2)
        assert await read(len(PING)) == PING
        turn(room, 2)
        assert not handler.code
        turn(room)
        assert await read(len(GOODBYE)) == GOODBYE
        await wait_until(lambda: handler.code == 1011 and not any(room.servers[each].ongoing for each in addresses))
        assert handler.reason == "keepalive ping timeout"
        assert handler.begun == 1, "nobody is asked to do it again"
        if lane == "HTTP/2":
            assert (await connection.get("/"))[0] == 200, "only the stream has ended"
            connection.abort()
        else:
            connection.transport.abort()
        await wait_until(lambda: room.websockets == 0)


@pytest.mark.slow
@pytest.mark.parametrize("sign", ["pong", "message"])
async def test_whoever_answers_stays(sign: str, is_handed: bool) -> None:
    limits = Limits(ws_ping_interval_s=1, ws_ping_timeout_s=2)
    async with Room(hand_over=True, limits=limits, takes_websockets=is_handed) as room:
        room.route(room.replica(shout))
        url = f"ws://127.0.0.1:{room.port}/"
        if sign == "pong":
            async with websockets.connect(url, ping_interval=None) as socket:
                await wait_until(lambda: not is_handed or room.handed()[0].is_handed)
                heartbeat = heartbeat_of(room)
                for _ in range(20):
                    turn(room)
                    await wait_until(lambda: not heartbeat._is_asked)
                await socket.send("still there")
                assert await socket.recv() == "STILL THERE"
            return
        _, writer = await opened(room)
        await wait_until(lambda: not is_handed or room.handed()[0].is_handed)
        heartbeat = heartbeat_of(room)
        for _ in range(20):
            turn(room, 2)
            assert heartbeat._is_asked
            writer.write(b"\x81\x80\0\0\0\0")
            await wait_until(lambda: not heartbeat._is_asked)
        writer.transport.abort()


@pytest.mark.slow
async def test_a_client_whose_messages_are_not_taken_stays(is_handed: bool) -> None:
    heard: list[str] = []
    go_on = asyncio.Event()

    async def slow(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        await go_on.wait()
        while (message := await exchange.receive())["type"] != "websocket.disconnect":
            heard.append(message["text"])

    async with Room(hand_over=True, limits=LIMITS, takes_websockets=is_handed) as room:
        room.route(room.replica(slow))
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/", ping_interval=None) as socket:
            sending = asyncio.create_task(_send_all(socket, 100))
            await wait_until(lambda: is_held_up(room, is_handed))
            turn(room, 50)
            assert not heartbeat_of(room)._is_over
            go_on.set()
            await sending
            await wait_until(lambda: len(heard) == 100)


def is_held_up(room: Room, is_handed: bool) -> bool:
    if not is_handed:
        return bool(connection_of(room).is_held_up)
    wire = room.handed()[0]._wire
    return wire is not None and wire._is_held


async def _send_all(socket: Any, count: int) -> None:
    for _ in range(count):
        await socket.send("x" * 50_000)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["Hypercorn", "HTTP/2", "handed over"])
@pytest.mark.parametrize("reads", [False, True])
async def test_a_reader_stays_as_long_as_it_takes_something(
    reads: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypercorn_lane, "_AFTER_END_S", 0.05)
    talker = Talker(60_000)
    is_http2, is_handed = way == "HTTP/2", way == "handed over"
    async with Room(hand_over=True, limits=LIMITS, takes_websockets=is_handed) as room:
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

        await until_still(lambda: talker.sent)
        for _ in range(10):
            async with asyncio.timeout(5):
                while reads and not has_moved(room):
                    await take()
            turn(room)
        if reads:
            assert room.servers[address].ongoing == 1
            writer.transport.abort()
        await wait_until(lambda: room.servers[address].ongoing == 0)
        await wait_until(lambda: room.websockets == (is_http2 and not reads))
        writer.transport.abort()


def has_moved(room: Room) -> bool:
    """Whether the client has taken something since the last turn, and has something left to take."""
    if handed := room.handed():
        wire = handed[0]._wire
        assert wire is not None
        return wire._unsent_bytes not in (0, wire._unsent_then)
    (websocket,) = connection_of(room).websockets.values()
    return websocket._find_unsent() not in (0, websocket._unsent_bytes)


async def test_pings_can_be_off(is_handed: bool) -> None:
    async with Room(hand_over=True, limits=Limits(ws_ping_interval_s=0), takes_websockets=is_handed) as room:
        room.route(room.replica(shout))
        reader, writer = await opened(room)
        await reader.readuntil(b"\r\n\r\n")
        await wait_until(lambda: not is_handed or room.handed()[0].is_handed)
        turn(room, 100)
        # "hi", masked with zeros
        writer.write(b"\x81\x82\0\0\0\0hi")
        assert await reader.readexactly(4) == b"\x81\x02HI"
        writer.transport.abort()
