"""Clients that ask before they send a body (`Expect: 100-continue`), behind requests that are not answered yet: they are told
once, before the answer, or not at all where they did not wait.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until

FIRST = b"GET /app/hold HTTP/1.1\r\nhost: x\r\n\r\n"
ASKING = b"POST /app/size HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n%bcontent-length: %d\r\n\r\n"
LAST = b"GET /app/size HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
UPGRADE = b"upgrade: h2c\r\nconnection: upgrade\r\n"


@pytest.fixture
def go() -> asyncio.Event:
    """Lets what is held answer."""
    return asyncio.Event()


@pytest.fixture
async def room(go: asyncio.Event) -> AsyncIterator[Room]:
    """One with `/app/hold`, and with `/app/size`, which says how long the request's body is."""

    async def serve(exchange: HttpExchange) -> None:
        if exchange.scope["path"] == "/app/hold":
            await go.wait()
        size, more = 0, True
        while more:
            message = await exchange.receive()
            size, more = size + len(message["body"]), message["more_body"]
        exchange.finish(200, (), b"%d" % size)

    async with Room(hand_over=True) as made:
        made.route(made.replica(serve), prefix="/app")
        yield made


async def held(room: Room, behind: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose first request is not answered, and what the client has sent behind it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
    writer.write(FIRST + behind)
    await wait_until(lambda: any(server.admission.running for server in room.servers.values()))
    return reader, writer


async def next_status(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    return int(head.split()[1]), await reader.readexactly(size)


@pytest.mark.parametrize("wish", [b"", UPGRADE], ids=["plain", "with an upgrade that is ignored"])
async def test_who_waits_is_told_once_it_is_its_turn(room: Room, go: asyncio.Event, wish: bytes) -> None:
    reader, writer = await held(room, ASKING % (wish, 3))
    go.set()
    assert await next_status(reader) == (200, b"0")
    assert await next_status(reader) == (100, b"")
    writer.write(b"abc" + LAST)
    assert await next_status(reader) == (200, b"3")
    assert await next_status(reader) == (200, b"0")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@pytest.mark.parametrize("wish", [b"", UPGRADE], ids=["plain", "with an upgrade that is ignored"])
async def test_who_has_not_waited_hears_its_answer_alone(room: Room, go: asyncio.Event, wish: bytes) -> None:
    reader, writer = await held(room, ASKING % (wish, 3) + b"abc")
    go.set()
    assert await next_status(reader) == (200, b"0")
    assert await next_status(reader) == (200, b"3")
    # nothing is owed any more: neither a word to go on, nor the refusal of a request that nobody sent
    writer.write(LAST)
    assert await next_status(reader) == (200, b"0")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
