"""HTTP/2 as its own clients speak it: upgrades, WebSockets inside it, streams that stop, reset and lie."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes

from servd.observability.access_log import AccessLog
from servd.observability.journal import Journal
from servd.observability.log_file import LogFile
from servd.proxy.hypercorn.http2 import LaneHttp2
from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until
from tests.rooms.http2_client import PREFACE, Http2Client, Http2WebSocket, frame
from tests.rooms.test_http1_lane import echo, split
from tests.rooms.test_hypercorn_lane import shout


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended connections leave nobody much time."""
    monkeypatch.setattr("servd.proxy.hypercorn.lane._AFTER_END_S", 0.05)


def is_at_rest(room: Room) -> bool:
    """No request runs, no connection is open."""
    return not (any(s.ongoing for s in room.servers.values()) or room.lane.connections or room.listener.connections)


async def test_more_requests_than_hypercorn_allows_on_one_connection() -> None:
    async with Room(hand_over=True) as room:
        async with Http2Client(room.port) as client:
            for _ in range(21):
                streams = [client.ask("/-/healthz") for _ in range(50)]
                assert [await client.answer(stream) for stream in streams] == [(200, b"success")] * 50


async def test_h2c_upgrade() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica())
        async with Http2Client(room.port, upgrade="/first") as client:
            assert await client.answer(1) == (200, b"GET /first")
            assert await client.get("/second") == (200, b"GET /second")
        await wait_until(lambda: is_at_rest(room))


async def test_large_answers_beside_each_other_take_few_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, writes = [], 0
    send, flush = H2Connection.send_data, LaneHttp2._flush

    def count_frame(self: Any, stream_id: int, data: bytes, **how: Any) -> None:
        frames.append(len(data))
        send(self, stream_id, data, **how)

    async def count_write(self: LaneHttp2) -> None:
        nonlocal writes
        writes += 1
        await flush(self)

    async with Room(hand_over=True) as room:

        async def large(exchange: HttpExchange) -> None:
            await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
            await exchange.send({"type": "http.response.body", "body": bytes(2**20), "more_body": False})

        room.route(room.replica(large))
        async with Http2Client(room.port, window=2**22) as client:
            client.h2.increment_flow_control_window(2**24)
            monkeypatch.setattr(LaneHttp2, "_flush", count_write)
            monkeypatch.setattr(H2Connection, "send_data", count_frame)
            got = await asyncio.gather(*(client.get("/") for _ in range(10)))
    assert got == [(200, bytes(2**20))] * 10
    assert len(frames) < 1.3 * sum(frames) / 2**14
    assert writes < 0.9 * len(frames)


async def test_trailers_are_dropped_and_lengths_are_checked() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(echo))
        async with Http2Client(room.port) as client:
            stream = client.ask("/", "POST", end=False)
            await client.send(stream, b"abc", end=False)
            client.h2.send_headers(stream, [("x-trailer", "1")], end_stream=True)
            client.flush()
            assert await client.answer(stream) == (200, b"abc")
            # a length that lies is the end of its stream at least, and no request with another body than was told
            liar = client.ask("/", "POST", end=False, content_length="5")
            client.h2.send_data(liar, b"abc", end_stream=True)
            client.flush()
            assert (await client.answer(liar))[0] in (0, 400)
        await wait_until(lambda: is_at_rest(room))


async def test_websocket_over_http2() -> None:
    async with Room(hand_over=True) as room:
        address = room.replica(shout)
        room.route(address, prefix="/chat")
        async with Http2Client(room.port) as client:
            await client.get("/-/healthz")
            sockets = [Http2WebSocket(client, "/chat", sec_websocket_protocol="v1") for _ in range(3)]
            for number, socket in enumerate(sockets):
                assert (await client.head(socket.stream_id))[":status"] == "200"
                assert client.headers[socket.stream_id]["sec-websocket-protocol"] == "v1"
                await socket.send(f"hello {number}")
            assert [await socket.receive() for socket in sockets] == ["HELLO 0", "HELLO 1", "HELLO 2"]
            assert (await client.get("/chat/x"))[0] == 200
            await sockets[0].send("bye")
            assert await sockets[0].receive() == 4001
            await sockets[1].close()
            assert await sockets[1].receive() == 1000
            client.h2.reset_stream(sockets[2].stream_id)
            client.flush()
            await wait_until(lambda: room.servers[address].ongoing == 0)
            nowhere = Http2WebSocket(client, "/nowhere")
            assert (await client.head(nowhere.stream_id))[":status"] == "404"
            assert (await client.get("/-/healthz"))[0] == 200
        await wait_until(lambda: is_at_rest(room))


async def test_websockets_over_http2_are_told_of_a_restart() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(shout))
        async with Http2Client(room.port) as client:
            await client.get("/-/healthz")
            socket = Http2WebSocket(client, "/")
            await client.head(socket.stream_id)
            room.lane.drain(10.0)
            assert await socket.receive() == 1012
            await wait_until(lambda: is_at_rest(room))


async def test_a_body_goes_on_after_its_answer() -> None:
    # browsers show no answer before they have sent all
    async def refuse(exchange: HttpExchange) -> None:
        await exchange.send({"type": "http.response.start", "status": 413, "headers": []})
        await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})

    async with Room(hand_over=True) as room:
        room.route(room.replica(refuse))
        async with Http2Client(room.port) as client:
            for _ in range(10):
                stream = client.ask("/", "POST", end=False)
                for _ in range(30):
                    await wait_until(lambda: client.h2.local_flow_control_window(stream) > 0)  # noqa: B023
                    while room_bytes := client.h2.local_flow_control_window(stream):
                        client.h2.send_data(stream, b"x" * min(room_bytes, 16_000))
                    client.flush()
                client.h2.end_stream(stream)
                client.flush()
                assert (await client.answer(stream))[0] == 413


@pytest.mark.parametrize("ends", ["reset", "close", "abort"])
@pytest.mark.parametrize("kind", ["GET", "body", "stream", "websocket"])
async def test_cancellation_reaches_the_handler(ends: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = asyncio.Event()
    monkeypatch.setattr("servd.proxy.websocket_form.GOODBYE_S", 0.02)

    async def forever(exchange: HttpExchange) -> None:
        try:
            if kind == "stream":
                await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
                await exchange.send({"type": "http.response.body", "body": b"x", "more_body": True})
            if kind == "websocket":
                await exchange.send({"type": "websocket.accept"})
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with Room(hand_over=True) as room:
        address = room.replica(forever)
        room.route(address)
        async with Http2Client(room.port) as client:
            await client.get("/-/healthz")
            is_websocket = kind == "websocket"
            stream = Http2WebSocket(client, "/").stream_id if is_websocket else client.ask("/", end=kind != "body")
            if kind == "body":
                await client.send(stream, b"x" * 1_080_000, end=False)
            if kind in ("stream", "websocket"):
                await client.head(stream)
            await wait_until(lambda: room.servers[address].ongoing == 1)
            if ends == "reset":
                client.h2.reset_stream(stream)
                client.flush()
            elif ends == "close":
                client.writer.close()
            else:
                client.abort()
            async with asyncio.timeout(5):
                await cancelled.wait()
            await wait_until(lambda: room.servers[address].ongoing == 0)
            if ends == "reset":
                assert (await client.get("/-/healthz"))[0] == 200
        await wait_until(lambda: is_at_rest(room))


async def test_a_body_that_nobody_reads_does_not_hold_up_other_streams() -> None:
    go_on = asyncio.Event()

    async def deaf(exchange: HttpExchange) -> None:
        if exchange.scope["method"] == "POST":
            await go_on.wait()
        await echo(exchange)

    async with Room(hand_over=True) as room:
        room.route(room.replica(deaf))
        async with Http2Client(room.port) as client:
            await client.get("/")
            stalled = client.ask("/", "POST", end=False)
            sending = asyncio.create_task(client.send(stalled, b"x" * 8_000_000))
            await wait_until(lambda: client.h2.local_flow_control_window(stalled) <= 0)
            async with asyncio.timeout(3):
                assert (await client.get("/"))[0] == 200
                small = client.ask("/", "PUT", end=False)
                await client.send(small, b"y" * 200_000)
                assert await client.answer(small) == (200, b"y" * 200_000)
            go_on.set()
            await sending
            status, body = await client.answer(stalled)
            assert (status, len(body)) == (200, 8_000_000)


def connection_of(room: Room) -> Any:
    """The only connection of the lane."""
    (connection,) = room.lane._lane.connections
    return connection


async def test_heads_that_do_not_fit_together_are_to_be_sent_again() -> None:
    go_on = asyncio.Event()

    async def late(exchange: HttpExchange) -> None:
        await go_on.wait()
        await echo(exchange)

    async with Room(hand_over=True) as room:
        room.route(room.replica(late))
        async with Http2Client(room.port) as client:
            await client.get("/-/healthz")
            pairs = {f"x-{number}": "y" for number in range(600)}
            streams = [client.ask("/", **pairs) for _ in range(20)]
            await wait_until(lambda: len(client.reset) > 5)
            assert set(client.reset.values()) == {ErrorCodes.REFUSED_STREAM}
            go_on.set()
            statuses = [(await client.answer(stream))[0] for stream in streams]
            assert 5 < statuses.count(200) == 20 - len(client.reset)
            assert connection_of(room).protocol.protocol._heads_bytes == 0


async def test_a_client_has_no_say_in_the_size_of_tables() -> None:
    async with Room(hand_over=True) as room:
        async with Http2Client(room.port) as client:
            await client.get("/-/healthz")
            connection = connection_of(room).protocol.protocol.connection
            # SETTINGS_HEADER_TABLE_SIZE
            sizes = (frame(4, 0, 0, b"\0\1" + size.to_bytes(4, "big")) for size in (100, 2**31, 50, 2**31))
            client.flush(b"".join(sizes) * 100)
            await wait_until(lambda: connection.encoder.table_size_changes == [50, 4096])
            client.h2.decoder.max_allowed_table_size = 2**31
            assert (await client.get("/-/healthz"))[0] == 200
            assert connection.encoder.header_table.maxsize == 4096


async def test_a_body_that_stops_is_ended() -> None:
    async with Room(hand_over=True, limits=Limits(idle_s=0.2)) as room:
        room.route(room.replica(echo))
        async with Http2Client(room.port) as client:
            stream = client.ask("/", "POST", end=False)
            await client.send(stream, b"x", end=False)
            large = client.ask("/", "POST", end=False)
            await client.send(large, b"x" * 1_200_000, end=False)
            assert (await client.answer(stream))[0] == 408
            assert (await client.answer(large))[0] == 408
        await wait_until(lambda: is_at_rest(room))


def setting(number: int, value: int) -> bytes:
    return frame(4, 0, 0, number.to_bytes(2, "big") + value.to_bytes(4, "big"))


HEADS = {"too many": [("a", "b")] * 4000, "too large": [("a", "b" * 100_000)], "large path": []}
HOSTILE = {
    "not even a settings frame": b"\x00" * 100,
    "frame too large": frame(0, 0, 1, b"x" * 20_000),
    "data on an idle stream": frame(0, 0, 1, b"x"),
    "data on stream 0": frame(0, 0, 0, b"x"),
    "even stream": frame(1, 5, 2, b"\x82"),
    "headers that are no HPACK": frame(1, 5, 1, b"\xff" * 30),
    "headers without a path": frame(1, 5, 1, b"\x82\x87"),
    "connect without a place": frame(1, 5, 1, b"\x02\x07CONNECT"),
    "continuation alone": frame(9, 4, 1, b"\x82"),
    "continuation without end": frame(1, 1, 1, b"\x82") + frame(9, 0, 1, b"") * 5000,
    "window of nothing": frame(8, 0, 0, b"\0" * 4),
    "window over the edge": frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "priority of itself": frame(1, 5, 1, b"\x82\x87\x84") + frame(2, 0, 1, b"\0\0\0\x01\x05"),
    "priority of many": b"".join(frame(2, 0, n, b"\0\0\0\0\x05") for n in range(1, 6001, 2)),
    "priority in a circle": frame(2, 0, 3, b"\0\0\0\x05\x05") + frame(2, 0, 5, b"\0\0\0\x03\x05"),
    "settings that are none": setting(5, 1) + setting(2, 7),
    "settings window over the edge": setting(4, 2**31),
    "many settings": frame(4, 0, 0) * 20_000,
    "many pings": frame(6, 0, 0, b"12345678") * 20_000,
    "reset of an idle stream": frame(3, 0, 1, b"\0\0\0\x08"),
    "goodbye": frame(7, 0, 0, b"\0" * 8),
    "push": frame(5, 4, 1, b"\0\0\0\x02\x82"),
    "unknown frames": frame(77, 255, 1, b"x" * 100) * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_frames_harm_nobody_else(name: str, caplog: pytest.LogCaptureFixture) -> None:
    # thousands of frames are read, by a busy host, for longer than the other client may pause
    idle_s = 2.0 if len(HOSTILE[name]) > 100_000 else 0.3
    async with Room(hand_over=True, limits=Limits(idle_s=idle_s)) as room:
        room.route(room.replica(echo))
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        async with Http2Client(room.port) as other:
            writer.write(PREFACE + frame(4, 0, 0) + HOSTILE[name])
            stream = other.ask("/", "POST", end=False)
            await other.send(stream, b"unharmed")
            assert await other.answer(stream) == (200, b"unharmed")
            async with asyncio.timeout(10):
                try:
                    while await reader.read(65536):
                        pass
                except ConnectionError:
                    pass
        writer.close()
        await wait_until(lambda: is_at_rest(room))
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


@pytest.mark.parametrize(
    ("status", "head"),
    [
        (501, {":method": "CONNECT", ":authority": "x:443"}),
        (501, {":method": "CONNECT", ":protocol": "connect-udp", ":scheme": "http", ":authority": "x", ":path": "/"}),
        (400, {":method": "GET", ":scheme": "http", ":authority": "x", ":path": "/\u00e9"}),
    ],
)
async def test_odd_requests_are_refused_alone(
    status: int, head: dict[str, str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    # a proxy in front sends requests of many clients over one connection
    async with Room(hand_over=True) as room:
        room.route(room.replica(echo))
        log = AccessLog(LogFile(tmp_path / "x.log"), "http_proxy", "here", ("http1.py", 7))
        journal = room.forwarder.journal = Journal(asyncio.get_running_loop(), log)
        async with Http2Client(room.port) as client:
            neighbour = client.ask("/", "POST", end=False)
            client.h2.config.validate_outbound_headers = False
            stream = client.h2.get_next_available_stream_id()
            pairs = [*head.items(), ("x-request-id", "mine"), ("x-forwarded-for", "192.0.2.7")]
            client.h2.send_headers(stream, pairs, end_stream=False)
            client.flush()
            assert (await client.answer(stream))[0] == status
            assert client.headers[stream]["x-request-id"] == "mine"
            client.h2.end_stream(stream)
            await client.send(neighbour, b"unharmed")
            assert await client.answer(neighbour) == (200, b"unharmed")
        await wait_until(lambda: is_at_rest(room))
        journal.settle()
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
    (line,) = [line for line in (tmp_path / "x.log").read_text().splitlines() if " mine " in line]
    assert f" {head[':method']} {head.get(':path', '-')} {status} " in line, line
    assert line.endswith(" 0B 192.0.2.7 -"), line


@pytest.mark.parametrize("name", HEADS)
async def test_heads_over_the_limit(name: str) -> None:
    async with Room(hand_over=True, limits=Limits(idle_s=0.5)) as room:
        room.route(room.replica(echo))
        async with Http2Client(room.port) as client:
            await client.get("/-/healthz")
            stream = client.h2.get_next_available_stream_id()
            path = "/" + "a" * (100_000 if name == "large path" else 0)
            pairs = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", path), *HEADS[name]]
            client.h2.send_headers(stream, pairs, end_stream=True)
            client.flush()
            status, _ = await client.answer(stream)
            assert status in (0, 414, 431)
            assert client.is_over
        assert split(await room.get("/"))[0] == 200
        await wait_until(lambda: is_at_rest(room))


async def test_streams_that_are_reset_at_once_cost_nothing() -> None:
    async with Room(hand_over=True) as room:
        address = room.replica(lambda _: asyncio.Event().wait(), limit=5)
        room.route(address)
        async with Http2Client(room.port) as client:
            await client.get("/-/healthz")
            for _ in range(900):
                client.h2.reset_stream(client.ask("/"), error_code=8)
                client.flush()
            assert (await client.get("/-/healthz"))[0] == 200
            await wait_until(lambda: room.servers[address].ongoing == 0)
            assert not room.caller.queued()
        await wait_until(lambda: is_at_rest(room))


async def test_a_client_that_takes_most_requests_back_is_sent_away() -> None:
    async with Room(hand_over=True) as room:
        address = room.replica(lambda _: asyncio.Event().wait(), limit=5)
        room.route(address)
        async with Http2Client(room.port) as client, Http2Client(room.port) as other:
            for _ in range(1200):
                client.h2.reset_stream(client.ask("/"), error_code=8)
                client.flush()
            await wait_until(lambda: client.is_over)
            assert client.goodbye == ErrorCodes.ENHANCE_YOUR_CALM
            assert (await other.get("/-/healthz"))[0] == 200
        await wait_until(lambda: is_at_rest(room))


@pytest.mark.parametrize("serve", [shout, None])
async def test_websocket_clients_that_leave_while_nobody_reads_free_their_slot(
    serve: Callable[[HttpExchange], Awaitable[None]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servd.proxy.websocket_form.GOODBYE_S", 0.02)

    async def deaf(exchange: HttpExchange) -> None:
        await exchange.send({"type": "websocket.accept"})
        await asyncio.Event().wait()

    async with Room(hand_over=True) as room:
        address = room.replica(serve or deaf)
        room.route(address)
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(
            b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        message = b"\x81\xfe\xea\x60\0\0\0\0" + b"x" * 60_000
        try:
            async with asyncio.timeout(0.5):
                while True:
                    writer.write(message)
                    await writer.drain()
        except TimeoutError:
            pass
        # only a reset can be seen by a side that does not read
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

        def is_over() -> bool:
            room.lane.turn()
            return is_at_rest(room)

        await wait_until(is_over, 8)
