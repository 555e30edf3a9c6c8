"""A client that leaves an answer in which nothing is being sent frees its slot at once, over every lane."""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import websockets
from starlette.responses import StreamingResponse

from servd.calls.pickling import dumps, loads
from servd.observability.journal import Journal
from servd.proxy.client_host import is_reset
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until
from tests.rooms.http2_client import Http2Client

AT_ONCE_S = 1.0
Tls = tuple[ssl.SSLContext, ssl.SSLContext]


async def idle(exchange: HttpExchange) -> None:
    """Sends one piece, then nothing."""
    await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
    await exchange.send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    await asyncio.Event().wait()


async def starlette_async(exchange: HttpExchange) -> None:
    """As `idle`, with an async generator."""

    async def events() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        await asyncio.Event().wait()

    await StreamingResponse(events())(exchange.scope, exchange.receive, exchange.send)  # type: ignore[arg-type]


def ongoing(room: Room) -> int:
    """Requests that run."""
    return sum(server.ongoing for server in room.servers.values())


async def ask(room: Room, data: bytes, tls: ssl.SSLContext | None = None) -> asyncio.StreamWriter:
    """A client that has seen the first event."""
    host = "localhost" if tls is not None else None
    reader, writer = await asyncio.open_connection("127.0.0.1", room.port, ssl=tls, server_hostname=host)
    writer.write(data)
    async with asyncio.timeout(5):
        await reader.readuntil(b"data: 1")
    return writer


REQUESTS = {
    "HTTP/1.1": b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n",
    "HTTP/1.0": b"GET /a HTTP/1.0\r\n\r\n",
    "another request behind": b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n" * 2,
    "half a request behind": b"GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HT",
    "with a body": b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc",
    "a body that does not end": b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n" + b"x" * 2_000_000,
    "chunks that do not end": b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 30,
}


@pytest.mark.parametrize("ends", ["closes", "closes its half", "resets"])
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("handler", [idle, starlette_async])
async def test_streams_of_http1_in_which_nothing_is_sent(
    name: str, ends: str, handler: Callable[[HttpExchange], Awaitable[None]]
) -> None:
    async with Room() as room:
        room.route(room.replica(handler, limit=2))
        for _ in range(2):
            writer = await ask(room, REQUESTS[name])
            assert ongoing(room) == 1
            if ends == "closes":
                writer.close()
            elif ends == "resets":
                writer.transport.abort()
            else:
                writer.write_eof()
            async with asyncio.timeout(5):
                while ongoing(room) or room.listener.connections:
                    # the proxy's second hand
                    room.listener.turn()
                    await asyncio.sleep(0.01)
            writer.close()


@pytest.mark.parametrize("name", ["HTTP/1.1", "HTTP/1.0"])
async def test_streams_are_ended_without_waiting_for_the_second_hand(name: str) -> None:
    async with Room() as room:
        room.route(room.replica(idle, limit=2))
        writers = [await ask(room, REQUESTS[name]) for _ in range(2)]
        for writer in writers:
            writer.close()
        await wait_until(lambda: ongoing(room) == 0, AT_ONCE_S)


@pytest.mark.parametrize(
    "how", ["HTTP/1.1 TLS", "HTTP/2 closed", "HTTP/2 stream taken back", "WebSocket", "handed over"]
)
async def test_streams_of_other_lanes_in_which_nothing_is_sent(how: str, tls: Tls) -> None:
    async def serve(exchange: HttpExchange) -> None:
        if exchange.scope["type"] == "http":
            await idle(exchange)
            return
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        await exchange.receive()

    own = tls[0] if how.endswith("TLS") else None
    async with Room(hand_over=True, tls=own, takes_websockets=how == "handed over") as room:
        room.route(room.replica(serve, limit=2))
        for _ in range(2):
            if how in ("WebSocket", "handed over"):
                socket = await websockets.connect(f"ws://127.0.0.1:{room.port}/")
                socket.transport.close()
            elif how.startswith("HTTP/2"):
                async with Http2Client(room.port) as client:
                    stream = client.ask("/a")
                    await wait_until(lambda: bytes(client.bodies[stream]) == b"data: 1\n\n")  # noqa: B023
                    if how.endswith("back"):
                        client.h2.reset_stream(stream)
                        client.flush()
                        await wait_until(lambda: ongoing(room) == 0, AT_ONCE_S)
            else:
                writer = await ask(room, REQUESTS["HTTP/1.1"], tls[1])
                writer.transport.abort()
            await wait_until(lambda: ongoing(room) == 0, AT_ONCE_S)


async def test_sync_generators_end_with_their_next_item() -> None:
    go_on, closed = threading.Event(), threading.Event()

    def events() -> Iterator[str]:
        try:
            yield "data: 1\n\n"
            go_on.wait(30)
            yield "data: 2\n\n"
            yield "never asked for"
        finally:
            closed.set()

    async def serve(exchange: HttpExchange) -> None:
        await StreamingResponse(events())(exchange.scope, exchange.receive, exchange.send)  # type: ignore[arg-type]

    async with Room() as room:
        room.route(room.replica(serve, limit=2))
        writer = await ask(room, REQUESTS["HTTP/1.1"])
        writer.close()
        await wait_until(lambda: not room.listener.connections, AT_ONCE_S)
        go_on.set()
        await wait_until(lambda: ongoing(room) == 0, AT_ONCE_S)


async def test_a_handle_stream_behind_an_answer_ends_with_it() -> None:
    ended = asyncio.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with Room() as room:

        async def serve(exchange: HttpExchange) -> None:
            await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
            parts = dumps(((), {}))
            async for item in room.caller.submit_call("app_Echo", "numbers", parts, exchange.context, stream=True):
                body = f"data: {loads(item)}\n\n".encode()
                await exchange.send({"type": "http.response.body", "body": body, "more_body": True})

        room.route(room.replica(serve, {"numbers": numbers}))
        writer = await ask(room, REQUESTS["HTTP/1.1"])
        writer.close()
        async with asyncio.timeout(AT_ONCE_S):
            await ended.wait()
        await wait_until(lambda: ongoing(room) == 0, AT_ONCE_S)


@pytest.mark.parametrize("how", ["HTTP/1.1", "HTTP/2 closed", "HTTP/2 stream taken back"])
async def test_an_answer_that_its_client_has_left_is_noted_as_such(how: str) -> None:
    async with Room(hand_over=True) as room:
        journal = room.forwarder.journal = Journal(asyncio.get_running_loop(), counts=True)
        room.route(room.replica(idle))
        if how == "HTTP/1.1":
            writer = await ask(room, REQUESTS[how])
            writer.transport.abort()
        else:
            async with Http2Client(room.port) as client:
                stream = client.ask("/a")
                await wait_until(lambda: bytes(client.bodies[stream]) == b"data: 1\n\n")
                if how.endswith("back"):
                    client.h2.reset_stream(stream)
                    client.flush()
                    await wait_until(lambda: ongoing(room) == 0, AT_ONCE_S)
        await wait_until(lambda: bool(journal.series()))
        assert [(method, status) for _, method, status in journal.series()] == [("GET", 499)]


GONE_ON = ["HTTP/1.1", "HTTP/2"]


async def leave(room: Room, lane: str, **headers: str) -> None:
    """Ask for `/late`, and leave while the request waits for a slot."""
    if lane == "HTTP/2":
        async with Http2Client(room.port) as client:
            client.ask("/late", **headers)
            await wait_until(lambda: room.caller.queued() == {"app_Echo": 1})
        await wait_until(lambda: not room.lane.connections)
        return
    own = [f"{name.replace('_', '-')}: {value}".encode() for name, value in headers.items()]
    lines = [b"GET /late HTTP/1.1", b"host: x", *own]
    _, writer = await asyncio.open_connection("127.0.0.1", room.port)
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
    await wait_until(lambda: room.caller.queued() == {"app_Echo": 1})
    writer.close()
    # what the proxy writes to find out whether anybody reads is answered with a reset
    (half_closed,) = [one for one in room.listener.connections if "late" in str(one._tail)]
    await wait_until(lambda: half_closed._is_half_closed and is_reset(half_closed._transport.get_extra_info("socket")))


@pytest.mark.parametrize("lane", GONE_ON)
async def test_a_request_whose_client_has_gone_does_not_begin(lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.proxy.http1_order._LOOK_S", 60)
    begun, go_on = list[str](), asyncio.Event()

    async def serve(exchange: HttpExchange) -> None:
        begun.append(exchange.scope["path"])
        await go_on.wait()
        exchange.finish(200, [], b"")

    async with Room(hand_over=True) as room:
        room.route(room.replica(serve, limit=1))
        first = asyncio.create_task(room.get("/first"))
        await wait_until(lambda: begun == ["/first"])
        await leave(room, lane)
        go_on.set()
        await first
        await room.get("/next")
        assert begun == ["/first", "/next"]
        assert not room.caller.queued()


@pytest.mark.parametrize("is_waiting", [True, False], ids=["in line", "in the handler"])
@pytest.mark.parametrize("lane", GONE_ON)
async def test_a_request_that_asks_for_it_is_served_to_its_end(lane: str, is_waiting: bool) -> None:
    served, go_on = list[str](), asyncio.Event()

    async def serve(exchange: HttpExchange) -> None:
        await go_on.wait()
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(40):
            # more than a reader that never reads has credit for
            await exchange.send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await exchange.send({"type": "http.response.body", "body": b""})
        served.append(exchange.scope["path"])

    async with Room(hand_over=True) as room:
        address = room.replica(serve, limit=1)
        room.route(address)
        if is_waiting:
            first = asyncio.create_task(room.get("/first"))
            await wait_until(lambda: ongoing(room) == 1)
            await leave(room, lane, x_request_disconnect_disabled="?1")
            await wait_until(lambda: not any("late" in str(one._tail) for one in room.listener.connections))
            assert room.caller.queued() == {"app_Echo": 1}
            go_on.set()
            await first
        elif lane == "HTTP/2":
            async with Http2Client(room.port) as client:
                client.ask("/late", x_request_disconnect_disabled="?1")
                await wait_until(lambda: ongoing(room) == 1)
            await wait_until(lambda: not room.lane.connections)
        else:
            _, writer = await asyncio.open_connection("127.0.0.1", room.port)
            writer.write(b"GET /late HTTP/1.1\r\nhost: x\r\nX-Request-Disconnect-Disabled: ?1\r\n\r\n")
            await wait_until(lambda: ongoing(room) == 1)
            writer.transport.abort()
            await wait_until(lambda: not room.listener.connections)
        go_on.set()
        await wait_until(lambda: served[-1:] == ["/late"])
        await wait_until(lambda: ongoing(room) == 0)
