"""Bodies of any size cost bounded memory, whoever is slow."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from servd.calls.pickling import dumps, loads
from servd.calls.request_context import NO_REQUEST
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until

MIB = 1024 * 1024
PIECE = b"x" * 256 * 1024


def rss() -> int:
    """Memory of this process, which plays all parts here."""
    return int(psutil.Process().memory_info().rss)


async def send_all(exchange: HttpExchange, pieces: int, piece: bytes) -> None:
    await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(pieces):
        await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
    await exchange.send({"type": "http.response.body", "body": b""})


async def count(exchange: HttpExchange) -> None:
    """Answers how long the body was."""
    size = 0
    while True:
        message = await exchange.receive()
        size += len(message["body"])
        if not message["more_body"]:
            break
    exchange.finish(200, [], b"%d" % size)


@pytest.mark.parametrize("size", [64 * MIB, pytest.param(1024 * MIB, marks=pytest.mark.long)])
@pytest.mark.parametrize("is_http2", [False, True])
async def test_large_uploads_and_downloads_in_constant_memory(size: int, is_http2: bool) -> None:
    async def serve(exchange: HttpExchange) -> None:
        if exchange.scope["method"] == "POST":
            await count(exchange)
        else:
            await send_all(exchange, size // len(PIECE), PIECE)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // len(PIECE)):
            yield PIECE

    async with Room(hand_over=True) as room:
        room.route(room.replica(serve))
        url = f"http://127.0.0.1:{room.port}/"
        async with httpx.AsyncClient(http1=not is_http2, http2=is_http2, timeout=300) as client:
            await client.get(f"{url}-/healthz")
            before, got, most = rss(), 0, 0
            async with client.stream("GET", url) as response:
                async for data in response.aiter_raw():
                    got += len(data)
                    if got % (8 * MIB) < len(data):
                        most = max(most, rss())
            assert got == size
            assert (await client.post(url, content=pieces())).text == str(size)
            assert max(most, rss()) - before < 40 * MIB


@pytest.mark.parametrize("size", [MIB, 3 * MIB])
async def test_handlers_get_large_bodies_as_bytes(size: int) -> None:
    kinds: set[type] = set()

    async def serve(exchange: HttpExchange) -> None:
        more = True
        while more:
            message = await exchange.receive()
            kinds.add(type(message["body"]))
            more = message["more_body"]
        exchange.finish(200, [], b"")

    async with Room() as room:
        room.route(room.replica(serve))
        assert (await room.get(method="POST", body=b"x" * size)).startswith(b"HTTP/1.1 200")
    assert kinds == {bytes}


async def until_nothing_moves(transport: Any, produced: Callable[[], int]) -> None:
    """Return when neither the producer nor the proxy's buffer goes on; the buffer stays small meanwhile."""
    last = -1
    while last != (now := produced() + transport.get_write_buffer_size()):
        last = now
        await asyncio.sleep(0.05)
        assert transport.get_write_buffer_size() < 2 * MIB


def peak_rss_since(before: int) -> int:
    """How far memory rose over this at its highest since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 - before


def forget_peak() -> int:
    """Let the kernel measure the highest memory anew; gives what is in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return rss()


async def test_arrays_are_copied_at_most_once_at_each_end() -> None:
    size = 128 * MIB
    kept: list[Any] = []

    async def keep(array: Any) -> int:
        kept.append(array)
        return int(array[-1])

    async with Room() as room:
        room.route(room.replica(methods={"keep": keep}))
        array = np.ones(size, dtype=np.uint8)
        parts = dumps(((array,), {}))
        del array
        before = forget_peak()
        assert loads(await room.caller.submit_call("app_Echo", "keep", parts, NO_REQUEST)) == 1
        # what came is there once, as the socket delivered it
        assert peak_rss_since(before) < size * 1.3
        assert not kept.pop().flags.writeable


async def test_large_whole_bodies_are_never_copied_as_a_whole() -> None:
    size = 64 * MIB
    body = b"x" * size
    headers = [(b"content-length", b"1"), (b"x-kind", b"large")]

    async def give(exchange: HttpExchange) -> None:
        await exchange.answer(200, headers, body)

    async with Room() as room:
        address = room.replica(give)
        room.route(address)
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        before = forget_peak()
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert f"content-length: {size}\r\n" in head
        assert head.count("content-length") == 1
        assert "x-kind: large" in head
        got = 0
        while data := await reader.read(MIB):
            got += len(data)
        writer.close()
        assert got == size
        # some pieces of it at a time; the one copy is the handler's own
        assert peak_rss_since(before) < size / 4
        await wait_until(lambda: room.servers[address].ongoing == 0)


@pytest.mark.parametrize("request_line", [b"HEAD / HTTP/1.1", b"GET / HTTP/1.0"])
async def test_large_whole_bodies_for_other_clients(request_line: bytes) -> None:
    size = 3 * MIB

    async def give(exchange: HttpExchange) -> None:
        await exchange.answer(200, [], b"x" * size)

    async with Room() as room:
        room.route(room.replica(give))
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(request_line + b"\r\nhost: x\r\nconnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert b"content-length: %d" % size in head
        assert len(body) == (0 if request_line.startswith(b"HEAD") else size)


async def test_headers_may_be_pairs_of_any_kind() -> None:
    headers: Any = ([b"x-fruit", b"mango"],)

    async def give(exchange: HttpExchange) -> None:
        exchange.finish(200, headers, b"")

    async with Room() as room:
        room.route(room.replica(give))
        assert b"x-fruit: mango\r\n" in await room.get()


async def stop_reading(serve: Callable[[HttpExchange], Awaitable[None]], produced: Callable[[], int]) -> None:
    """Read one byte of an answer and no more until nothing moves, then go; the slot is free again."""
    async with Room() as room:
        address = room.replica(serve)
        room.route(address)
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port, limit=1)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.read(1)
        (connection,) = room.listener.connections
        transport: Any = connection._transport
        await wait_until(lambda: connection._is_write_paused or connection._is_lent)
        await until_nothing_moves(transport, produced)
        writer.transport.abort()
        await wait_until(lambda: room.servers[address].ongoing == 0)


async def test_a_reader_that_stops_in_a_large_whole_body_costs_less_than_2_mib() -> None:
    async def give(exchange: HttpExchange) -> None:
        await exchange.answer(200, [], b"x" * 64 * MIB)

    await stop_reading(give, lambda: 0)


@pytest.mark.parametrize("piece_bytes", [1000, 65536, 48 * MIB])
async def test_a_reader_that_stops_costs_less_than_2_mib(piece_bytes: int) -> None:
    produced = 0

    async def endless(exchange: HttpExchange) -> None:
        nonlocal produced
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        piece = b"x" * piece_bytes
        while True:
            await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
            produced += piece_bytes

    await stop_reading(endless, lambda: produced)
    # what was produced and neither reached the kernel nor the proxy's buffer waits in between
    assert produced < 24 * MIB


async def test_an_http2_reader_that_is_slow_costs_less_than_2_mib() -> None:
    async def endless(exchange: HttpExchange) -> None:
        await send_all(exchange, 200, PIECE)

    async with Room(hand_over=True) as room:
        room.route(room.replica(endless))
        async with (
            httpx.AsyncClient(http1=False, http2=True) as client,
            client.stream("GET", f"http://127.0.0.1:{room.port}/") as response,
        ):
            got = 0
            async for data in response.aiter_raw():
                got += len(data)
                lane: Any = room.lane._lane
                (connection,) = lane.connections
                waiting = sum(len(buffer.buffer) for buffer in connection.protocol.protocol.stream_buffers.values())
                assert waiting + connection.writer.transport.get_write_buffer_size() < 2 * MIB
            assert got == 200 * len(PIECE)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\ncontent-length: %d\r\n" % (9 * MIB)])
async def test_a_handler_that_completes_without_its_client_waits_for_nobody(sent: bytes) -> None:
    completed = asyncio.Event()

    async def serve(exchange: HttpExchange) -> None:
        if exchange.scope["method"] == "POST":
            while (await exchange.receive())["type"] == "http.request":
                pass
        await send_all(exchange, 100, PIECE)
        completed.set()

    async with Room() as room:
        address = room.replica(serve)
        room.servers[address].cancel_on_disconnect = False
        room.route(address)
        _, writer = await asyncio.open_connection("127.0.0.1", room.port, limit=1)
        writer.write(sent + b"host: x\r\n\r\n")
        if sent.startswith(b"POST"):
            writer.write(b"x" * 2 * MIB)
        await wait_until(lambda: room.servers[address].ongoing == 1)
        writer.transport.abort()
        await wait_until(lambda: room.servers[address].ongoing == 0)
        assert completed.is_set()


async def test_a_stream_that_completes_without_its_caller_waits_for_nobody() -> None:
    produced = 0

    async def items() -> AsyncIterator[bytes]:
        nonlocal produced
        for _ in range(100):
            produced += 1
            yield PIECE

    async with Room() as room:
        address = room.replica(methods={"items": items})
        room.servers[address].cancel_on_disconnect = False
        room.route(address)
        ticket = room.caller.submit_call("app_Echo", "items", dumps(((), {})), NO_REQUEST, stream=True)
        await anext(aiter(ticket))
        ticket.cancel()
        await wait_until(lambda: room.servers[address].ongoing == 0)
        assert produced == 100
