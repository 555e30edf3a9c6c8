"""Clients that send while their connection ends: no answer is lost in a reset, and no request that has come."""

import asyncio
import select
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from servd.proxy.client_host import received_bytes
from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, make_certificate, wait_until

pytestmark = pytest.mark.slow

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LONGER_THAN_A_SECOND, PIECE_S = 14, 0.1
"""Pieces of an upload, and how long its client takes for each."""


async def early(exchange: HttpExchange) -> None:
    """Answers without a look at the body."""
    exchange.finish(401, [], b"who are you?")


@pytest.fixture
async def client() -> AsyncIterator[socket.socket]:
    with socket.socket() as found:
        yield found


def connect(client: socket.socket, room: Room) -> None:
    client.setblocking(True)
    client.connect(("127.0.0.1", room.port))
    client.setblocking(False)


async def received(client: socket.socket) -> bytes:
    """All that comes, to the end of the connection."""
    got, loop = b"", asyncio.get_running_loop()
    async with asyncio.timeout(10):
        while piece := await loop.sock_recv(client, 65536):
            got += piece
    return got


@pytest.mark.parametrize("why", ["too large", "answered early", "no route", "TLS"])
async def test_a_slow_upload_that_is_refused_hears_so_once_it_has_sent_all(why: str, tmp_path: Path) -> None:
    server = tls = None
    if why == "TLS":
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        files = make_certificate(tmp_path, "senders")
        server.load_cert_chain(*files)
        tls = ssl.create_default_context(cafile=str(files[0]))
    limits = Limits(body_bytes=4_000_000 if why == "too large" else 0)
    async with Room(limits=limits, tls=server) as room:
        room.route(room.replica(early), prefix="/app" if why == "no route" else "/")
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port, ssl=tls)
        piece = b"x" * 400_000
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (LONGER_THAN_A_SECOND * len(piece)))
        loop = asyncio.get_running_loop()
        for _ in range(LONGER_THAN_A_SECOND):
            writer.write(piece)
            # as most clients: who cannot write does not look for an answer
            await writer.drain()
            due = loop.time() + PIECE_S
            await wait_until(lambda due=due: loop.time() >= due)  # type: ignore[misc]
        async with asyncio.timeout(10):
            got = await reader.read()
        status = {"too large": b"413", "no route": b"404"}.get(why, b"401")
        assert got.startswith(b"HTTP/1.1 " + status), got
        assert b"connection: close\r\n" in got
        writer.close()
        await writer.wait_closed()


async def test_an_upload_that_is_refused_at_once_is_read_on() -> None:
    is_over = asyncio.Event()

    async def busy(exchange: HttpExchange) -> None:
        await is_over.wait()
        exchange.finish(200, [], b"")

    async with Room() as room:
        address = room.replica(busy, limit=1)
        room.route(address, max_queued_requests=0)
        first = asyncio.create_task(room.get("/"))
        await wait_until(lambda: room.servers[address].ongoing == 1)
        # from here on the proxy knows that nobody takes more
        assert (await room.get("/")).startswith(b"HTTP/1.1 503")
        # it is heard of when more of a body has come than is held whole
        size = 40_000_000
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        async with asyncio.timeout(10):
            for _ in range(size // 1_000_000):
                writer.write(b"x" * 1_000_000)
                await writer.drain()
            got = await reader.read()
        assert got.startswith(b"HTTP/1.1 503"), got
        writer.close()
        await wait_until(lambda: len(room.listener.connections) == 1)
        is_over.set()
        assert (await first).startswith(b"HTTP/1.1 200")


async def test_a_connection_ends_with_its_client_and_not_later() -> None:
    async with Room(limits=Limits(body_bytes=1000)) as room:
        room.route(room.replica(early))
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n")
        async with asyncio.timeout(0.5):
            assert (await reader.read()).startswith(b"HTTP/1.1 413")
        writer.close()
        await wait_until(lambda: not room.listener.connections, 0.5)


async def test_what_is_pipelined_behind_the_last_answer_takes_nothing_of_it(client: socket.socket) -> None:
    body = b"x" * 3_000_000

    async def last(exchange: HttpExchange) -> None:
        exchange.finish(200, [(b"connection", b"close")], body)

    async with Room() as room:
        room.route(room.replica(last))
        connect(client, room)
        loop = asyncio.get_running_loop()
        # more than is read at a time: some of it is with the kernel when the answer has left
        sending = loop.create_task(loop.sock_sendall(client, GET * 20_000))
        await loop.run_in_executor(None, select.select, [client], [], [], 10)
        # it reads only when the other side has done all that it will
        (connection,) = room.listener.connections
        await wait_until(lambda: connection._is_deaf)
        got = await received(client)
        assert got.count(b"HTTP/1.1 200") == 1
        assert got.endswith(body)
        sending.cancel()


@pytest.mark.parametrize("why", ["drain", "idle"])
async def test_a_request_that_has_come_when_its_connection_would_end_is_answered(
    why: str, client: socket.socket
) -> None:
    async with Room(limits=Limits(idle_s=2)) as room:
        room.route(room.replica(early))
        connect(client, room)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, GET)
        assert (await loop.sock_recv(client, 65536)).endswith(b"who are you?")
        if why == "drain":
            room.listener.drain()
        room.listener.turn()
        # it is there and nobody has read it: the loop is busy with this
        client.send(GET)
        for _ in range(3):
            room.listener.turn()
        async with asyncio.timeout(5):
            got = await loop.sock_recv(client, 65536)
        assert got.endswith(b"who are you?")
        if why == "drain":
            assert b"connection: close\r\n" in got
            assert await received(client) == b""
        for _ in range(5):
            room.listener.turn()
        assert await received(client) == b""


async def test_who_asks_on_before_it_hears_of_a_drain_is_not_reset(client: socket.socket) -> None:
    async with Room() as room:
        room.route(room.replica(early))
        connect(client, room)
        loop = asyncio.get_running_loop()
        room.listener.drain()
        await loop.sock_sendall(client, GET)
        await wait_until(lambda: bool(room.listener.connections))
        (connection,) = room.listener.connections
        await wait_until(lambda: connection._is_deaf)
        # it pipelines, and looks for answers later
        for count in range(2, 6):
            await loop.sock_sendall(client, GET)
            sock = connection._transport.get_extra_info("socket")
            await wait_until(lambda count=count, sock=sock: received_bytes(sock) >= count * len(GET))  # type: ignore[misc]
        got = await received(client)
        assert got.count(b"HTTP/1.1 401") == 1
        assert b"connection: close\r\n" in got
        client.close()
        await wait_until(lambda: not room.listener.connections, 0.5)
