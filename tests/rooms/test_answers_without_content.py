"""A stream whose client gets its head alone, of HEAD say, holds neither its connection nor its slot for long."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from servd.observability.journal import Journal
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until
from tests.rooms.http2_client import Http2Client

pytestmark = pytest.mark.slow

ASK = {
    "HEAD": b"HEAD %b HTTP/1.1\r\nhost: x\r\n%b\r\n",
    "GET": b"GET %b HTTP/1.1\r\nhost: x\r\n%b\r\n",
}
LANES = ["HTTP/1.1", "HTTP/2"]
SHORT_S, PIECE_S = 0.2, 0.01


class Handler:
    """Streams for ever, or for a moment, or until it is told; a path of a status streams with that one."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.ended: list[str] = []
        self.pieces = 0

    async def __call__(self, exchange: HttpExchange) -> None:
        path = exchange.scope["path"]
        if path == "/next":
            exchange.finish(200, [], b"next")
            return
        status = int(path[1:]) if path[1:].isdigit() else 200
        await exchange.send({"type": "http.response.start", "status": status, "headers": []})
        try:
            for _ in range(3 if path == "/short" else 10**9):
                await exchange.send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
                self.pieces += 1
                await asyncio.sleep(PIECE_S)
                if self.go_on.is_set():
                    break
            await exchange.send({"type": "http.response.body", "body": b""})
            self.ended.append(f"{path} whole")
        except asyncio.CancelledError:
            self.ended.append(f"{path} cancelled")
            raise


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
async def room(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    for module in ("http1_answer", "http_form"):
        monkeypatch.setattr(f"servd.proxy.{module}.MUTE_S", SHORT_S)
    async with Room(hand_over=True) as made:
        made.route(made.replica(handler))
        yield made


async def ask_twice(room: Room, lane: str, method: str, path: str, line: str = "") -> None:
    """Ask for a path and then for the next, which is to be answered, with one connection."""
    async with asyncio.timeout(5):
        if lane == "HTTP/2":
            async with Http2Client(room.port) as client:
                stream = client.ask(path, method, **({"x_request_disconnect_disabled": "?1"} if line else {}))
                assert (await client.answer(stream))[1] == b""
                assert client.headers[stream][":status"] == (path[1:] if path[1:].isdigit() else "200")
                assert await client.get("/next") == (200, b"next")
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(ASK[method] % (path.encode(), line.encode()))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ASK["GET"] % (b"/next", b"connection: close\r\n"))
        assert (await reader.read()).endswith(b"\r\n\r\nnext")
        writer.close()


@pytest.mark.parametrize(("method", "path"), [("HEAD", "/endless"), ("GET", "/204"), ("GET", "/304")])
@pytest.mark.parametrize("lane", LANES)
async def test_what_never_ends_is_ended(room: Room, handler: Handler, lane: str, method: str, path: str) -> None:
    journal = room.forwarder.journal = Journal(asyncio.get_running_loop())
    await ask_twice(room, lane, method, path)
    await wait_until(lambda: handler.ended == [f"{path} cancelled"])
    await wait_until(lambda: not any(server.ongoing for server in room.servers.values()))
    await wait_until(lambda: bool(journal.series()))
    # nobody has left
    status = int(path[1:]) if path[1:].isdigit() else 200
    assert {found for _, _, found in journal.series()} == {200, status}


@pytest.mark.parametrize("lane", LANES)
async def test_what_ends_soon_ends_by_itself(room: Room, handler: Handler, lane: str) -> None:
    await ask_twice(room, lane, "HEAD", "/short")
    await wait_until(lambda: handler.ended == ["/short whole"])


async def test_what_shall_be_served_to_its_end_is(room: Room, handler: Handler) -> None:
    asking = asyncio.create_task(ask_twice(room, "HTTP/2", "HEAD", "/endless", "x-request-disconnect-disabled: ?1\r\n"))
    # at least three times as long as others may go on
    await wait_until(lambda: handler.pieces > 3 * SHORT_S / PIECE_S)
    assert not handler.ended
    handler.go_on.set()
    await asking
    await wait_until(lambda: handler.ended == ["/endless whole"])
