"""WebSockets are the same to handlers and clients whoever speaks to the client: the replica, or the proxy (TLS and HTTP/2)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets

from servd.replica.exchange import HttpExchange
from tests.fakes import Room

BOTH = pytest.mark.parametrize("is_handed", [True, False], ids=["handed over", "through the proxy"])
LIMIT_S = 5


async def outcome_of(exchange: HttpExchange, message: dict[str, Any]) -> str:
    try:
        await exchange.send(message)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "sent"


async def said(is_handed: bool, message: dict[str, Any]) -> tuple[str, list[Any]]:
    """What a handler hears that says this, and what its client hears before a farewell."""
    heard = asyncio.Future[str]()

    async def serve(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        heard.set_result(await outcome_of(exchange, message))
        await exchange.send({"type": "websocket.close", "code": 4000})

    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(serve))
        async with asyncio.timeout(LIMIT_S), websockets.connect(f"ws://127.0.0.1:{room.port}/") as client:
            got = [data async for data in without_error(client)]
            return await heard, [*got, client.close_code]


async def without_error(client: Any) -> AsyncIterator[Any]:
    try:
        async for data in client:
            yield data
    except websockets.ConnectionClosedError:
        pass


@BOTH
@pytest.mark.parametrize(
    ("message", "outcome", "got"),
    [
        ({"text": "a"}, "sent", ["a"]),
        ({"text": "a", "bytes": None}, "sent", ["a"]),
        ({"text": None, "bytes": b"a"}, "sent", [b"a"]),
        ({"bytes": bytearray(b"a")}, "sent", [b"a"]),
        ({"bytes": memoryview(b"a")}, "sent", [b"a"]),
        ({"text": ""}, "sent", [""]),
        ({"text": None}, "TypeError: a message of a WebSocket has text, a str, or bytes; got NoneType", []),
        ({"text": 5}, "TypeError: a message of a WebSocket has text, a str, or bytes; got int", []),
        ({"bytes": 5}, "TypeError: a message of a WebSocket has text, a str, or bytes; got int", []),
        ({"bytes": "a"}, "TypeError: a message of a WebSocket has text, a str, or bytes; got str", []),
        ({}, "TypeError: a message of a WebSocket has text, a str, or bytes; got NoneType", []),
    ],
)
async def test_what_a_handler_says(
    is_handed: bool, message: dict[str, Any], outcome: str, got: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert await said(is_handed, {"type": "websocket.send", **message}) == (outcome, [*got, 4000])
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@BOTH
@pytest.mark.parametrize("code", [0, 999, 1004, 1006, 1015, 2999, 5000, 70_000])
async def test_codes_that_nobody_may_say(is_handed: bool, code: int) -> None:
    outcome, got = await said(is_handed, {"type": "websocket.close", "code": code})
    assert outcome.startswith(f"ValueError: a WebSocket cannot be closed with {code}")
    assert got == [4000]


@BOTH
async def test_a_message_has_the_kind_that_it_is(is_handed: bool) -> None:
    found = list[dict[str, Any]]()

    async def serve(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        for _ in range(3):
            found.append(await exchange.receive())
        await exchange.send({"type": "websocket.close"})

    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(serve))
        async with asyncio.timeout(LIMIT_S), websockets.connect(f"ws://127.0.0.1:{room.port}/") as client:
            for data in ("a", b"b", ""):
                await client.send(data)
            await client.wait_closed()
    # a handler that asks for text is to find none in bytes
    assert [set(message) - {"type"} for message in found] == [{"text"}, {"bytes"}, {"text"}]


@BOTH
async def test_pings_amid_the_parts_of_a_packed_message(is_handed: bool) -> None:
    async def serve(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        while (message := await exchange.receive())["type"] == "websocket.receive":
            await exchange.send({"type": "websocket.send", "text": message["text"]})

    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(serve))
        async with asyncio.timeout(LIMIT_S), websockets.connect(f"ws://127.0.0.1:{room.port}/") as client:
            assert client.protocol.extensions

            async def parts() -> AsyncIterator[str]:
                for part in ("one, ", "two, ", "three"):
                    yield part
                    await client.ping()

            for _ in range(3):
                await client.send(parts())
                assert await client.recv() == "one, two, three"
                await client.ping()
                await client.send("whole")
                assert await client.recv() == "whole"
