"""Hostile and malformed input on the HTTP/1.1 lane: the right status, nothing smuggled, other connections unharmed."""

import asyncio
import random
import re
import socket
import struct

import pytest

from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until
from tests.rooms.test_http1_lane import echo, split

HOST = b"host: x\r\n"


NEXT = b"GET /next HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
CHUNKED = b"POST /first HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def post(*headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A POST with these header lines and a host."""
    lines = b"".join(line + b"\r\n" for line in headers)
    return b"POST /first HTTP/" + version + b"\r\n" + HOST + lines + b"\r\n" + body


REFUSED = {
    "length twice": (400, post(b"content-length: 3", b"content-length: 3", body=b"abc")),
    "lengths differ": (400, post(b"content-length: 3", b"content-length: 4", body=b"abcd")),
    "length list": (400, post(b"content-length: 3, 3", body=b"abc")),
    "length signed": (400, post(b"content-length: +3", body=b"abc")),
    "length negative": (400, post(b"content-length: -3", body=b"abc")),
    "length hexadecimal": (400, post(b"content-length: 0x3", body=b"abc")),
    "length underscore": (400, post(b"content-length: 1_0", body=b"0123456789")),
    "length spaced": (400, post(b"content-length: 1 0", body=b"0123456789")),
    "length empty": (400, post(b"content-length: ")),
    "length overflow": (400, post(b"content-length: 99999999999999999999999")),
    "length and coding": (400, post(b"content-length: 3", b"transfer-encoding: chunked", body=b"0\r\n\r\n")),
    "coding and length": (400, post(b"transfer-encoding: chunked", b"content-length: 3", body=b"0\r\n\r\n")),
    "coding twice": (400, post(b"transfer-encoding: chunked", b"transfer-encoding: chunked", body=b"0\r\n\r\n")),
    "coding repeated": (400, post(b"transfer-encoding: chunked, chunked", body=b"0\r\n\r\n")),
    "coding behind chunked": (400, post(b"transfer-encoding: chunked, gzip", body=b"0\r\n\r\n")),
    "coding identity": (400, post(b"transfer-encoding: identity", body=b"abc")),
    "coding look-alike": (400, post(b"transfer-encoding: xchunked", body=b"0\r\n\r\n")),
    "coding vertical tab": (400, post(b"transfer-encoding: \x0bchunked", body=b"0\r\n\r\n")),
    "coding quoted": (400, post(b'transfer-encoding: "chunked"', body=b"0\r\n\r\n")),
    "coding unknown": (501, post(b"transfer-encoding: gzip, chunked", body=b"0\r\n\r\n")),
    "coding in 1.0": (400, post(b"transfer-encoding: chunked", body=b"0\r\n\r\n", version=b"1.0")),
    "coding in kept 1.0": (
        400,
        post(b"connection: keep-alive", b"transfer-encoding: chunked", body=b"0\r\n\r\n", version=b"1.0"),
    ),
    "chunk size": (400, CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n"),
    "chunk size 0x": (400, CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk size negative": (400, CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n"),
    "chunk size spaced": (400, CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n"),
    "chunk size overflow": (400, CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "chunk bare line feeds": (400, CHUNKED + b"3\nabc\n0\n\n"),
    "chunk longer than told": (400, CHUNKED + b"3\r\nabcXX0\r\n\r\n"),
    "trailer length": (400, CHUNKED + b"3\r\nabc\r\n0\r\ncontent-length: 9\r\n\r\n"),
    "space before colon": (400, post(b"content-length : 3", body=b"abc")),
    "bare line feeds": (400, b"GET / HTTP/1.1\nhost: x\n\n"),
    "bare carriage return": (400, b"GET / HTTP/1.1\r\nhost: x\ra: b\r\n\r\n"),
    "zero byte in value": (400, post(b"a: b\x00c")),
    "zero byte in name": (400, post(b"a\x00: b")),
    "header without name": (400, post(b": b")),
    "header without colon": (400, post(b"bad header")),
    "folded": (400, post(b"a: b", b" c")),
    "space before first header": (400, b"GET / HTTP/1.1\r\n host: x\r\n\r\n"),
    "control character in path": (400, b"GET /\x01 HTTP/1.1\r\nhost: x\r\n\r\n"),
    "space in path": (400, b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "no host but others": (400, b"GET / HTTP/1.1\r\na: b\r\nc: d\r\n\r\n"),
    "no host with body": (400, b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n"),
    "version 1.2": (400, b"GET / HTTP/1.2\r\nhost: x\r\n\r\n"),
    "version 2.0": (400, b"GET / HTTP/2.0\r\nhost: x\r\n\r\n"),
    "version 0.9": (400, b"GET / HTTP/0.9\r\n\r\n"),
    "no version": (400, b"GET /\r\n\r\n"),
    "lower-case method": (400, b"get / HTTP/1.1\r\nhost: x\r\n\r\n"),
    "unknown method": (400, b"FOO / HTTP/1.1\r\nhost: x\r\n\r\n"),
    "target without slash": (400, b"GET foo HTTP/1.1\r\nhost: x\r\n\r\n"),
    "tunnel": (501, b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "almost a preface": (400, b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
    "long URI": (414, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n"),
    "endless URI": (414, b"GET /" + b"a" * 100_000),
    "large header": (431, post(b"a: " + b"b" * 100_000)),
    "endless header": (431, b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 100_000),
    "many headers": (431, post(*[b"a: b"] * 20_000)),
    "body told too large": (413, post(b"content-length: 3000001")),
    "body told too large, waits": (413, post(b"content-length: 3000001", b"expect: 100-continue")),
    "body chunked too large": (413, CHUNKED + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 50),
    "endless chunk extension": (431, CHUNKED + b"3;" + b"a" * 4_000_000),
    "endless trailer": (431, CHUNKED + b"3\r\nabc\r\n0\r\na: " + b"b" * 4_000_000),
    "many trailers": (431, CHUNKED + b"3\r\nabc\r\n0\r\n" + b"a: b\r\n" * 1_000_000),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_alone_and_never_followed_by_another_answer(name: str) -> None:
    status, data = REFUSED[name]
    async with Room(limits=Limits(body_bytes=3_000_000), hand_over=True) as room:
        room.route(room.replica(echo))
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        other = asyncio.create_task(room.get("/other", method="POST", body=b"unharmed"))
        try:
            # whoever refuses closes before everything is written
            writer.write(data if name.startswith("endless") else data + NEXT)
            async with asyncio.timeout(5):
                answer = await reader.read()
        finally:
            writer.close()
        assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"%d" % status]
        assert split(answer)[1]["connection"] == "close"
        assert split(await other)[2] == b"unharmed"
        await wait_until(lambda: not room.listener.connections)
        # the replica hears a moment later that the proxy gave up
        await wait_until(lambda: room.servers[next(iter(room.servers))].ongoing == 0)


ANSWERED = {
    "unknown upgrade": (post(b"connection: upgrade", b"upgrade: foo", b"content-length: 5", body=b"hello"), b"hello"),
    "unknown upgrade, chunked": (
        post(b"connection: upgrade", b"upgrade: foo", b"transfer-encoding: chunked", body=b"2\r\nhi\r\n0\r\n\r\n"),
        b"hi",
    ),
    "WebSocket with a body": (
        post(b"connection: upgrade", b"upgrade: websocket", b"content-length: 5", body=b"hello"),
        b"hello",
    ),
    "h2c with a body": (
        post(b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABk")[:-2]
        + b"content-length: 5\r\n\r\nhello",
        b"hello",
    ),
    "trailers": (CHUNKED + b"3\r\nabc\r\n0\r\nx-trailer: 1\r\nhost: y\r\nupgrade: websocket\r\n\r\n", b"abc"),
    "chunk extension": (CHUNKED + b"3;a=b\r\nabc\r\n0\r\n\r\n", b"abc"),
    "leading empty lines": (b"\r\n\r\n" + post(b"content-length: 2", body=b"ab"), b"ab"),
    "coding in capitals": (CHUNKED.replace(b"chunked", b"Chunked") + b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "body that looks like a request": (post(b"content-length: %d" % len(NEXT), body=NEXT), NEXT),
}


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("piece", [7, 1_000_000])
async def test_bodies_end_where_they_say(name: str, piece: int) -> None:
    data, body = ANSWERED[name]
    async with Room(hand_over=True) as room:
        seen: list[tuple[str, list[bytes]]] = []

        async def note(exchange: object) -> None:
            scope = exchange.scope  # type: ignore[attr-defined]
            seen.append((scope["path"], [name for name, _ in scope["headers"]]))
            await echo(exchange)  # type: ignore[arg-type]

        room.route(room.replica(note))
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        whole = data + NEXT
        for start in range(0, len(whole), piece):
            writer.write(whole[start : start + piece])
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        assert [path for path, _ in seen] == ["/first", "/next"]
        assert seen[0][1].count(b"host") == 1
        assert b"x-trailer" not in seen[0][1]
        first, _, _ = answer.rpartition(b"HTTP/1.1 200")
        assert first.endswith(b"\r\n\r\n" + body)


async def test_http10_clients_are_not_told_to_continue() -> None:
    async with Room() as room:
        room.route(room.replica(echo))
        data = b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nab"
        assert (await room.raw(data)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("data", [b"GET /", b"GET / HTTP/1.1\r\nhost: x\r\na", CHUNKED, CHUNKED + b"5\r\nab"])
async def test_slow_loris_is_ended(data: bytes) -> None:
    async with Room(limits=Limits(head_s=2, idle_s=3)) as room:
        room.route(room.replica(echo))
        slow = asyncio.create_task(room.raw(data))
        await wait_until(lambda: any(c._head_tick or c._is_in_body for c in room.listener.connections))
        for _ in range(6):
            room.listener.turn()
        assert split(await slow)[0] == 408


async def test_a_client_that_sends_a_byte_of_its_head_now_and_then_is_ended() -> None:
    async with Room(limits=Limits(head_s=3, idle_s=100)) as room:
        room.route(room.replica(echo))
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"GET /")
        await wait_until(lambda: any(c._head_tick for c in room.listener.connections))
        for _ in range(5):
            heard = [c._head_bytes for c in room.listener.connections]
            writer.write(b"a")
            await wait_until(lambda heard=heard: [c._head_bytes for c in room.listener.connections] != heard)  # type: ignore[misc]
            room.listener.turn()
        assert (await reader.read()).startswith(b"HTTP/1.1 408")
        writer.close()


@pytest.mark.parametrize("count", [1, 3])
async def test_half_closed_clients_get_their_answers(count: int) -> None:
    go_on = asyncio.Event()

    async def late(exchange: HttpExchange) -> None:
        await go_on.wait()
        await echo(exchange)

    async with Room() as room:
        address = room.replica(late)
        room.route(address)
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(post(b"content-length: 3", body=b"abc") * count)
        writer.write_eof()
        await wait_until(lambda: room.servers[address].ongoing == 1)
        for _ in range(3):
            room.listener.turn()
        go_on.set()
        async with asyncio.timeout(5):
            answer = await reader.read()
        assert answer.count(b"\r\n\r\nabc") == count
        writer.close()
        await wait_until(lambda: not room.listener.connections)


@pytest.mark.parametrize("ends", ["closes", "resets"])
async def test_clients_that_are_gone_free_their_slot(ends: str) -> None:
    async with Room() as room:
        address = room.replica(lambda _: asyncio.Event().wait())
        room.route(address)
        _, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await wait_until(lambda: room.servers[address].ongoing == 1)
        if ends == "closes":
            writer.close()
        else:
            writer.transport.abort()
        await wait_until(lambda: room.servers[address].ongoing == 0 and not room.listener.connections)


async def test_clients_that_reset_while_nobody_reads_their_body_free_their_slot() -> None:
    async with Room() as room:
        address = room.replica(lambda _: asyncio.Event().wait())
        room.route(address)
        _, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(post(b"content-length: 50000000") + b"x" * 20_000_000)
        await wait_until(lambda: any(c._is_read_paused for c in room.listener.connections))
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

        def is_over() -> bool:
            # once a second, in a proxy
            room.listener.turn()
            return not (room.servers[address].ongoing or room.listener.connections)

        await wait_until(is_over)


PARTS = b"\r\n|\r\n\r\n|\n| |:|\x00|HTTP/1.1|chunked|content-length: 5\r\n|0\r\n\r\n|%|?|upgrade: h2c\r\n".split(b"|")
REQUESTS = [data for _, data in REFUSED.values() if len(data) < 2000] + [data for data, _ in ANSWERED.values()]


def mutated(rng: random.Random, data: bytes) -> bytes:
    """These bytes with a few accidents."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        size = rng.choice([1, 2, 10])
        kind = rng.randrange(4)
        new = (b"", rng.randbytes(size), rng.choice(PARTS), data[at : at + 20])[kind]
        data = data[:at] + new + data[at + (size if kind < 2 else 0) :]
    return data


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.long) for n in range(4, 60))])
async def test_fuzz(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(seed)
    async with Room(limits=Limits(body_bytes=100_000, request_s=5), hand_over=True) as room:
        address = room.replica(echo)
        room.route(address)
        statuses: set[bytes] = set()

        async def attack() -> None:
            data = b"".join(mutated(rng, rng.choice(REQUESTS)) for _ in range(rng.choice([1, 1, 3])))
            reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
            try:
                for start in range(0, len(data), piece := rng.choice([3, 50, 100_000])):
                    writer.write(data[start : start + piece])
                    await asyncio.sleep(0)
                writer.write_eof()
                async with asyncio.timeout(10):
                    answer = await reader.read()
                statuses.update(re.findall(rb"^HTTP/1\.1 (\d+)", answer))
            except (OSError, RuntimeError):
                # closed meanwhile; uvloop says so with a RuntimeError
                pass
            finally:
                writer.close()

        for _ in range(15):
            others = [room.get("/", method="POST", body=b"good") for _ in range(3)]
            good = await asyncio.gather(*others, *(attack() for _ in range(20)))
            assert [split(answer)[2] for answer in good[:3] if answer] == [b"good"] * 3
        await wait_until(lambda: not room.listener.connections and not room.lane.connections, 10)
        await wait_until(lambda: room.servers[address].ongoing == 0)
        assert statuses <= {b"100", b"101", b"102", b"200", b"400", b"404", b"413", b"414", b"431", b"501"}
        assert b"400" in statuses
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
