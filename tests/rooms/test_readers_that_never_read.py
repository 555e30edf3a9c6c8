"""A client that asks and does not read is answered as far as it reads, and costs memory with a bound."""

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from servd.proxy.http1 import HttpConnection
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, make_certificate, until_still, wait_until

pytestmark = pytest.mark.slow

KIB = 1024
MIB = 1024 * KIB


async def ask_without_reading(
    room: Room, data: bytes, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client with little room for answers, that reads only when its reader is asked."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", room.port))
    reader, writer = await asyncio.open_connection(
        sock=sock, limit=1000, ssl=tls, server_hostname="127.0.0.1" if tls is not None else None
    )
    writer.write(data)
    return reader, writer


async def until_nothing_moves(room: Room, begun: list[str]) -> HttpConnection:
    """Return when the proxy begins nothing and writes nothing more."""
    await wait_until(lambda: len(room.listener.connections) == 1)
    (connection,) = room.listener.connections
    assert isinstance(connection, HttpConnection)
    await until_still(lambda: (len(begun), connection._transport.get_write_buffer_size()))
    return connection


WAYS = {
    "whole": (900 * KIB, b"GET /whole/%d HTTP/1.1\r\nhost: x\r\n\r\n"),
    "whole, to another method": (900 * KIB, b"PUT /whole/%d HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\na"),
    "whole, with TLS": (900 * KIB, b"GET /whole/%d HTTP/1.1\r\nhost: x\r\n\r\n"),
    "small": (40 * KIB, b"GET /whole/%d HTTP/1.1\r\nhost: x\r\n\r\n"),
    "pieces": (900 * KIB, b"GET /pieces/%d HTTP/1.1\r\nhost: x\r\n\r\n"),
    "no such path": (0, b"GET /-/routes HTTP/1.1\r\nhost: x\r\nx-number: %d\r\n\r\n"),
    "wish that is ignored": (
        40 * KIB,
        b"GET /whole/%d HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n",
    ),
}


@pytest.mark.parametrize("way", WAYS)
async def test_pipelined_requests_wait_for_a_client_that_does_not_read(way: str, tmp_path: Path) -> None:
    size, request = WAYS[way]
    server = client = None
    if "TLS" in way:
        certificate, key = make_certificate(tmp_path, "reader")
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(certificate, key)
        client = ssl.create_default_context(cafile=str(certificate))
    count = 40 if size > 100 * KIB else 600
    begun: list[str] = []

    async def serve(exchange: HttpExchange) -> None:
        begun.append(exchange.scope["path"])
        body = b"x" * (size - 5) + b"|end|"
        if "pieces" in exchange.scope["path"]:
            await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
            for start in range(0, size, 90 * KIB):
                piece = {"type": "http.response.body", "body": body[start : start + 90 * KIB], "more_body": True}
                await exchange.send(piece)
            await exchange.send({"type": "http.response.body", "body": b""})
        else:
            exchange.finish(200, (), body)

    async with Room(tls=server) as room:
        prefix = "/" if size else "/" + "a" * 30_000
        room.route(room.replica(serve), prefix=prefix)
        data = b"".join(request % number for number in range(count))
        reader, writer = await ask_without_reading(room, data + b"GET /last HTTP/1.0\r\n\r\n", client)
        connection = await until_nothing_moves(room, begun)
        assert connection._transport.get_write_buffer_size() < 2 * MIB
        # the kernel takes some MB, whatever is asked of it
        assert len(begun) * size < 16 * MIB
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
        got = 0
        async with asyncio.timeout(60):
            tail = b""
            while piece := await reader.read(MIB):
                got += (tail + piece).count(b"HTTP/1.1 ") - tail.count(b"HTTP/1.1 ")
                tail = piece[-8:]
        writer.close()
        assert got == count + 1
        numbers = [int(path.rsplit("/", 1)[1]) for path in begun if path != "/last"]
        assert numbers == (list(range(count)) if size else [])


async def test_what_was_read_and_not_parsed_goes_to_the_other_lane() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica())
        # more than is parsed at a time
        filler = (b"GET /a HTTP/1.1\r\nhost: x\r\na: " + b"a" * 4000 + b"\r\n\r\n") * 40
        handshake = (
            b"GET /b HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        got = await room.raw(filler + handshake + b"x" * 1000, timeout_s=30)
        assert got.count(b"HTTP/1.1 ") == 41
