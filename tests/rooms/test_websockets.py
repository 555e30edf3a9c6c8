"""WebSockets under abuse: slow readers, endless messages, clients that leave, more of them than allowed."""

import asyncio
import zlib
from typing import Any

import psutil
import pytest
import websockets

from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, hello, until_still, wait_until
from tests.rooms.http2_client import Http2Client, Http2WebSocket
from tests.rooms.test_http1_lane import split
from tests.rooms.test_hypercorn_lane import shout

MIB = 1024 * 1024
HEAD = (
    b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def rss() -> int:
    """Memory of this process, which plays all parts here."""
    return int(psutil.Process().memory_info().rss)


async def opened(room: Room, *headers: bytes, limit: int = 65536) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket that was accepted, as bare streams."""
    reader, writer = await asyncio.open_connection("127.0.0.1", room.port, limit=limit)
    writer.write(HEAD + b"".join(line + b"\r\n" for line in headers) + b"\r\n")
    assert await reader.read(1) == b"H"
    return reader, writer


class Talker:
    """A handler that sends without end."""

    def __init__(self, message_bytes: int) -> None:
        self.sent = 0
        self.error: Exception | None = None
        self._message = "x" * message_bytes

    async def __call__(self, exchange: HttpExchange) -> None:
        await exchange.send({"type": "websocket.accept"})
        try:
            while True:
                await exchange.send({"type": "websocket.send", "text": self._message})
                self.sent += len(self._message)
        except Exception as error:
            self.error = error
            raise


@pytest.mark.parametrize("way", ["Hypercorn", "HTTP/2", "handed over"])
@pytest.mark.parametrize("message_bytes", [100, 65536, MIB - 1])
async def test_a_reader_that_is_slow_costs_less_than_2_mib(message_bytes: int, way: str) -> None:
    talker = Talker(message_bytes)
    is_http2 = way == "HTTP/2"
    async with Room(hand_over=True, takes_websockets=way == "handed over") as room:
        address = room.replica(talker)
        room.route(address)
        if is_http2:
            client = await Http2Client(room.port).__aenter__()
            client.reads = False
            await client.head(Http2WebSocket(client, "/").stream_id)
            writer = client.writer
        else:
            _, writer = await opened(room, limit=1)
        await until_still(lambda: talker.sent)
        assert _waiting_bytes(room, way) < 2 * MIB
        # what is neither there nor in the kernel's buffers (some MiB on loopback) waits between replica and proxy
        assert talker.sent < (3 * MIB if is_http2 else 24 * MIB)
        writer.transport.abort()
        await wait_until(lambda: room.servers[address].ongoing == 0)
        assert isinstance(talker.error, OSError), "as ASGI has it"


def _waiting_bytes(room: Room, way: str) -> int:
    if way == "handed over":
        (exchange,) = room.handed()
        assert exchange._wire is not None
        return exchange._wire._unsent_bytes
    lane: Any = room.lane._lane
    (connection,) = lane.connections
    waiting = int(connection.writer.transport.get_write_buffer_size())
    if way == "HTTP/2":
        waiting += sum(len(buffer.buffer) for buffer in connection.protocol.protocol.stream_buffers.values())
    return waiting


@pytest.mark.parametrize("how", ["in one frame", "in pieces", "compressed"])
async def test_endless_messages_are_ended_and_cost_no_memory(how: str, is_handed: bool) -> None:
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        address = room.replica(shout)
        room.route(address)
        headers = [b"sec-websocket-extensions: permessage-deflate"] if how == "compressed" else []
        _, writer = await opened(room, *headers)
        before = most = rss()
        if how == "in one frame":
            head, piece = b"\x81\xff" + (200 * MIB).to_bytes(8, "big") + b"\0\0\0\0", b"x" * MIB
        elif how == "in pieces":
            head, piece = b"\x01\x80\0\0\0\0", b"\x00\xff" + MIB.to_bytes(8, "big") + b"\0\0\0\0" + b"x" * MIB
        else:
            packer = zlib.compressobj(wbits=-15)
            data = packer.compress(b"x" * 32 * MIB) + packer.flush(zlib.Z_SYNC_FLUSH)
            head, piece = b"\x41\x80\0\0\0\0", b"\x00\xff" + len(data).to_bytes(8, "big") + b"\0\0\0\0" + data
        try:
            writer.write(head)
            for _ in range(190):
                writer.write(piece)
                await writer.drain()
                most = max(most, rss())
        except ConnectionError:
            pass
        writer.close()
        await wait_until(lambda: room.servers[address].ongoing == 0 and not room.websockets)
        assert most - before < 160 * MIB


@pytest.mark.parametrize("piece", [b"x" * 100_000, "\N{EURO SIGN}" * 50_000, "small"], ids=["bytes", "text", "small"])
async def test_the_replica_puts_messages_together(piece: bytes | str, is_handed: bool) -> None:
    got: list[dict[str, Any]] = []

    async def keep(exchange: HttpExchange) -> None:
        await exchange.send({"type": "websocket.accept"})
        await exchange.receive()
        while (message := await exchange.receive())["type"] == "websocket.receive":
            got.append(message)
            await exchange.send({"type": "websocket.send", "text": "heard"})

    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        address = room.replica(keep)
        room.route(address)
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/", max_size=None) as socket:
            for count in (50, 1, 3):
                await socket.send([piece] * count)
                assert await socket.recv() == "heard"
        whole = [(message.get("bytes") if isinstance(piece, bytes) else message.get("text")) for message in got]
        assert whole == [piece * count for count in (50, 1, 3)]
        assert not any("more" in message for message in got)
        if is_handed:
            return
        # one that never ends waits where it will be used
        _, writer = await opened(room)
        writer.write(b"\x02\x80\0\0\0\0" + (b"\x00\xff" + MIB.to_bytes(8, "big") + b"\0\0\0\0" + b"x" * MIB) * 10)
        await writer.drain()
        await wait_until(lambda: room.lane._lane is not None and len(room.lane._lane.connections) == 1)
        (connection,) = room.lane._lane.connections
        await wait_until(lambda: bool(connection.websockets))
        (held,) = connection.websockets.values()
        await wait_until(lambda: held.buffer.length > 9 * MIB)
        assert len(held.buffer.value.getvalue() if held.buffer.value is not None else b"") < 128 * 1024
        writer.close()
        await wait_until(lambda: room.servers[address].ongoing == 0)


async def test_a_message_that_is_too_large_is_told_so(is_handed: bool) -> None:
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(shout))
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/", max_size=None) as socket:
            sending = asyncio.create_task(socket.send("x" * (17 * MIB)))
            with pytest.raises(websockets.ConnectionClosedError) as closed:
                await socket.recv()
            await asyncio.wait([sending])
            sending.exception()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_handlers_that_only_send_end_when_their_client_has_left(is_handed: bool) -> None:
    ended = asyncio.Event()

    async def tick(exchange: HttpExchange) -> None:
        await exchange.send({"type": "websocket.accept"})
        try:
            while True:
                await exchange.send({"type": "websocket.send", "text": "tick"})
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        address = room.replica(tick)
        room.route(address)
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/") as socket:
            assert await socket.recv() == "tick"
        async with asyncio.timeout(3):
            await ended.wait()
        await wait_until(lambda: room.servers[address].ongoing == 0)


async def test_handlers_may_say_goodbye_to_clients_that_have_left(is_handed: bool) -> None:
    async def polite(exchange: HttpExchange) -> None:
        await exchange.send({"type": "websocket.accept"})
        while (await exchange.receive())["type"] != "websocket.disconnect":
            pass
        assert (await exchange.receive())["type"] == "websocket.disconnect"
        await exchange.send({"type": "websocket.close"})
        done.set()

    done = asyncio.Event()
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(polite))
        await (await websockets.connect(f"ws://127.0.0.1:{room.port}/")).close()
        async with asyncio.timeout(3):
            await done.wait()


async def test_messages_sent_before_the_goodbye_arrive(is_handed: bool) -> None:
    heard: list[str] = []
    go_on = asyncio.Event()

    async def late(exchange: HttpExchange) -> None:
        await exchange.send({"type": "websocket.accept"})
        await go_on.wait()
        while (message := await exchange.receive())["type"] != "websocket.disconnect":
            heard.append(message.get("text", ""))

    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        address = room.replica(late)
        room.route(address)
        socket = await websockets.connect(f"ws://127.0.0.1:{room.port}/")
        for number in range(100):
            await socket.send(f"{number} {'x' * 5000}")
        await socket.close()
        go_on.set()
        await wait_until(lambda: room.servers[address].ongoing == 0)
        assert [text.split()[0] for text in heard if text] == [str(number) for number in range(100)]


async def test_handed_over_connections_count_against_the_cap() -> None:
    async with Room(hand_over=True, limits=Limits(connections=2)) as room:
        room.route(room.replica(hello))
        async with Http2Client(room.port) as client:
            await client.get("/")
            async with Http2Client(room.port) as other:
                await other.get("/")
                status, headers, _ = split(await room.raw(b""))
                assert (status, headers["retry-after"]) == (503, "1")
                assert (await client.get("/"))[0] == 200
            await wait_until(lambda: room.lane.connections == 1)
            assert split(await room.get("/"))[0] == 200
