"""Every answer that says `connection: close` closes, on every lane, though its client keeps its own half open."""

import asyncio
import ssl
from pathlib import Path

import pytest

from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, make_certificate, turning, wait_until

pytestmark = pytest.mark.slow

KEY = b"sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
VERSION = b"sec-websocket-version: 13\r\n"
WISH = b"host: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
HANDSHAKE = WISH + VERSION + KEY
KINDS = {
    "asked for": (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 200),
    "asked for, piece by piece": (b"GET /pieces HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 200),
    "asked for, without content": (b"HEAD / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 200),
    "asked for, nobody there": (b"GET /-/healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 200),
    "older version": (b"GET / HTTP/1.0\r\n\r\n", 200),
    "older version, piece by piece": (b"GET /pieces HTTP/1.0\r\n\r\n", 200),
    "wanted by the handler": (b"GET /close HTTP/1.1\r\nhost: x\r\n\r\n", 200),
    "no HTTP": (b"hello\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "unknown version": (b"GET / HTTP/1.7\r\nhost: x\r\n\r\n", 400),
    "unknown coding": (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 400),
    "two codings": (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 501),
    "tunnel": (b"CONNECT x:1 HTTP/1.1\r\nhost: x:1\r\n\r\n", 501),
    "large head": (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"a" * 5000 + b"\r\n\r\n", 431),
    "large address": (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
    "large body": (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n", 413),
    "slow head": (b"GET / HTTP/1.1\r\nhost: x\r\n", 408),
    "slow body": (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\na", 408),
    "time limit before the body": (
        b"POST / HTTP/1.1\r\nhost: x\r\nx-request-timeout-seconds: 0.1\r\ncontent-length: 5\r\n\r\n",
        408,
    ),
    "behind another": (b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n", 400),
    "WebSocket without a key": (b"GET / HTTP/1.1\r\n" + WISH + VERSION + b"\r\n", 400),
    "WebSocket without a version": (b"GET / HTTP/1.1\r\n" + WISH + KEY + b"\r\n", 400),
    "WebSocket of another version": (
        b"GET / HTTP/1.1\r\n" + WISH + KEY + b"sec-websocket-version: 8\r\n\r\n",
        400,
    ),
    "WebSocket in HTTP/1.0": (b"GET / HTTP/1.0\r\n" + HANDSHAKE + b"\r\n", 400),
    "WebSocket without a key, and bytes": (b"GET / HTTP/1.1\r\n" + WISH + VERSION + b"\r\n" + b"a" * 500, 400),
    "WebSocket refused by the handler": (b"GET / HTTP/1.1\r\n" + HANDSHAKE + b"\r\n", 403),
    "WebSocket refused with an answer": (b"GET /answer HTTP/1.1\r\n" + HANDSHAKE + b"\r\n", 418),
    "WebSocket refused, and bytes": (b"GET / HTTP/1.1\r\n" + HANDSHAKE + b"\r\n" + b"a" * 500, 403),
    "WebSocket whose handler fails": (b"GET /fail HTTP/1.1\r\n" + HANDSHAKE + b"\r\n", 500),
    "WebSocket past its time limit": (
        b"GET /wait HTTP/1.1\r\nx-request-timeout-seconds: 0.1\r\n" + HANDSHAKE + b"\r\n",
        408,
    ),
    "WebSocket behind a request": (b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\n" + WISH + b"\r\n", 400),
}


async def serve(exchange: HttpExchange) -> None:
    path = exchange.scope["path"]
    if exchange.scope["type"] == "websocket":
        if path == "/fail":
            raise ValueError("no")
        if path == "/wait":
            await asyncio.Event().wait()
        if path == "/answer":
            await exchange.send({"type": "websocket.http.response.start", "status": 418, "headers": []})
            await exchange.send({"type": "websocket.http.response.body", "body": b"no"})
        else:
            await exchange.send({"type": "websocket.close"})
    elif path == "/pieces":
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        await exchange.send({"type": "http.response.body", "body": b"a", "more_body": True})
        await exchange.send({"type": "http.response.body", "body": b"b"})
    else:
        exchange.finish(200, [(b"connection", b"close")] if path == "/close" else [], b"done")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"), "close")


@pytest.mark.parametrize("lane", ["plain", "tls"])
async def test_it_closes(lane: str, certificate: tuple[Path, Path]) -> None:
    server = client = None
    if lane == "tls":
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(*certificate)
        client = ssl.create_default_context(cafile=str(certificate[0]))
    limits = Limits(head_bytes=4000, body_bytes=4000, head_s=2, idle_s=2)
    async with Room(hand_over=True, limits=limits, tls=server) as room:
        room.route(room.replica(serve))

        async def ask(kind: str) -> str:
            data, status = KINDS[kind]
            try:
                got = await room.raw(data, tls=client, timeout_s=10)
            except TimeoutError:
                return f"{kind}: stays open"
            head, _, _ = got[got.rfind(b"HTTP/1.") :].partition(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            if lines[0].split()[1] != b"%d" % status or b"connection: close" not in lines:
                return f"{kind}: {got!r}"
            return ""

        with turning(room, every_s=0.2):
            found = await asyncio.gather(*(ask(kind) for kind in KINDS))
            assert [text for text in found if text] == [], "\n".join(text for text in found if text)
            await wait_until(lambda: not room.listener.connections and not room.lane.connections)


async def test_who_is_one_too_many_is_told_and_closed() -> None:
    async with Room(limits=Limits(connections=0)) as room:
        got = await room.raw(b"")
        assert got.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close\r\n" in got


async def test_a_drain_closes_behind_the_answer() -> None:
    async with Room() as room:
        room.route(room.replica(serve))
        room.listener.drain()
        got = await room.raw(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"connection: close\r\n" in got


async def test_an_answer_that_began_before_a_drain_does_not_close_unsaid() -> None:
    go_on = asyncio.Event()

    async def stream(exchange: HttpExchange) -> None:
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        await exchange.send({"type": "http.response.body", "body": b"a", "more_body": True})
        await go_on.wait()
        await exchange.send({"type": "http.response.body", "body": b"b", "more_body": False})

    async with Room() as room:
        room.route(room.replica(stream))
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"connection: close" not in await reader.readuntil(b"1\r\na\r\n")
        room.listener.drain()
        for _ in range(5):
            room.listener.turn()
        go_on.set()
        # the last line of a head, a request id, may end with a 0
        await reader.readuntil(b"b\r\n0\r\n\r\n")
        # its client, a proxy with kept connections say, may send the next one while it is closed
        room.listener.turn()
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"connection: close" in await reader.readuntil(b"b\r\n0\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
