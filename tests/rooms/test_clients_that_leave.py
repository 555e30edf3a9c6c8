"""A client that leaves an answer in which nothing is being sent frees its slot at once, over every lane."""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import websockets
from starlette.responses import StreamingResponse

from servd.calls.pickling import dumps, loads
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until
from tests.rooms.http2_client import Http2Client

AT_ONCE_S = 1.0
Tls = tuple[ssl.SSLContext, ssl.SSLContext]


async def idle(exchange: HttpExchange) -> None:
    """Sends one piece, then nothing."""
    await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
    await exchange.send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    await asyncio.sleep(60)


async def starlette_async(exchange: HttpExchange) -> None:
    """As `idle`, with an async generator."""

    async def events() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        await asyncio.sleep(60)

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


@pytest.mark.parametrize("how", ["HTTP/1.1 TLS", "HTTP/2 closed", "HTTP/2 stream taken back", "WebSocket"])
async def test_streams_of_other_lanes_in_which_nothing_is_sent(how: str, tls: Tls) -> None:
    async def serve(exchange: HttpExchange) -> None:
        if exchange.scope["type"] == "http":
            await idle(exchange)
            return
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        await exchange.receive()

    async with Room(hand_over=True, tls=tls[0] if how.endswith("TLS") else None) as room:
        room.route(room.replica(serve, limit=2))
        for _ in range(2):
            if how == "WebSocket":
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
            await asyncio.sleep(60)
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
