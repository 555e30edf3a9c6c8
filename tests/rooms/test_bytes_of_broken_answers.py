"""How many bytes are noted of a body that a replica wrote itself, and that ended early."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from servd.proxy.http1_answer import HttpAnswering
from servd.proxy.http1_websocket import WebSocketConnection
from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until
from tests.rooms.test_handed_websockets import closed, connect, echo
from tests.rooms.test_lending import HEAD, MIB, Client, ongoing
from tests.rooms.test_lent_with_request import peers, warm, wrote

__all__ = ["wrote"]

_HEAD_BYTES = 400
"""The head and what frames chunks count too, where a replica had no time to tell."""
_LARGE = bytes(64 * MIB)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Status and bytes of each request that ended early."""
    seen: list[tuple[int, int]] = []
    note = HttpAnswering._note

    def count(connection: HttpAnswering, status: int) -> None:
        seen.append((status, connection._sent_bytes if connection.has_begun else 0))
        note(connection, status)

    # over HttpLending, which adds what it knows before
    monkeypatch.setattr(HttpAnswering, "_note", count)
    return seen


async def handle(exchange: HttpExchange) -> None:
    """Three pieces, then it hangs (`sized`, `chunks`), or one that it gives up in the midst (`cut`, `torn`)."""
    kind = exchange.scope["path"].strip("/").partition("/")[0]
    if kind == "whole":
        await exchange.answer(200, [], bytes(MIB))
        return
    sizes = [(b"content-length", b"%d" % len(_LARGE))] if kind in {"sized", "cut"} else []
    await exchange.send({"type": "http.response.start", "status": 201, "headers": sizes})
    if kind in {"torn", "cut"}:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await exchange.send({"type": "http.response.body", "body": _LARGE, "more_body": True})
        return
    for _ in range(3):
        await exchange.send({"type": "http.response.body", "body": bytes(70_000), "more_body": True})
    await asyncio.Event().wait()


async def end(room: Room, client: Client, ends_by: str) -> None:
    if ends_by == "leaving":
        client.socket.close()
        return
    if ends_by == "resetting":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.socket.close()
        return
    if ends_by == "death":
        (peer,) = [peer for peer in peers(room) if peer.pending]
        peer.link._lose("its connection ended")
    await client.rest()
    client.socket.close()


@pytest.mark.parametrize("kind", ["sized", "chunks"])
@pytest.mark.parametrize("ends_by", ["limit", "death", "leaving", "resetting"])
@pytest.mark.parametrize("comes_with_request", [False, True])
async def test_what_was_written(
    noted: list[tuple[int, int]], request: pytest.FixtureRequest, kind: str, ends_by: str, comes_with_request: bool
) -> None:
    if comes_with_request:
        request.getfixturevalue("wrote")
    async with Room(limits=Limits(request_s=0.5 if ends_by == "limit" else 0.0), hand_over=True) as room:
        room.route(room.replica(handle))
        if comes_with_request:
            await warm(room)
        client = Client(room)
        # what was written to this connection before does not count
        await client.send(HEAD % "whole")
        await client.answer()
        noted.clear()
        await client.send(HEAD % kind)
        await client._take(210_000)
        await end(room, client, ends_by)
        await wait_until(lambda: bool(noted) and ongoing(room) == 0)
        ((status, size),) = noted
        # the status of an answer that a dead replica wrote is not known
        assert status in ({499} if ends_by in {"leaving", "resetting"} else {201, 200})
        assert 210_000 <= size <= 210_000 + _HEAD_BYTES
        if kind == "sized" and not comes_with_request:
            assert size == 210_000


@pytest.mark.parametrize("kind", ["torn", "cut"])
@pytest.mark.parametrize("comes_with_request", [False, True])
async def test_a_piece_that_its_handler_gave_up(
    noted: list[tuple[int, int]], request: pytest.FixtureRequest, kind: str, comes_with_request: bool
) -> None:
    if comes_with_request:
        request.getfixturevalue("wrote")
    async with Room(hand_over=True) as room:
        room.route(room.replica(handle))
        if comes_with_request:
            await warm(room)
        client = Client(room)
        noted.clear()
        await client.send(HEAD % kind)
        await wait_until(lambda: bool(noted))
        got = await client.rest()
        head, _, body = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 201 ")
        if kind == "torn":
            body = body.partition(b"\r\n")[2]
        assert noted == [(201, len(body))]
        assert MIB < len(body) < len(_LARGE)
        client.socket.close()


async def test_a_websocket_whose_replica_dies(noted: list[tuple[int, int]]) -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(echo))
        async with connect(room, compression=None) as client:
            for _ in range(10):
                await client.send("x" * 1000)
                await client.recv()
            (connection,) = room.listener.connections
            assert isinstance(connection, WebSocketConnection)
            assert connection.peer is not None
            connection.peer.link._lose("its connection ended")
            assert (await closed(client))[0] == 1006
        await wait_until(lambda: not room.listener.connections)
        ((status, size),) = noted
        assert status == 101
        assert 10_000 < size <= 10_000 + 10 * 4
