"""Kinds of cases of Autobahn's test suite, which runs on Python 2 only, over real connections."""

import asyncio
import os
from typing import Any

import pytest
import websockets
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from tests.core.test_websocket_protocol import CLOSE, CONT, PING, TEXT, WRONG, frame
from tests.fakes import Room, wait_until
from tests.rooms.test_handed_websockets import echo
from tests.rooms.test_websockets import HEAD

KIB, MIB = 1024, 1024 * 1024
LIMIT_S = 60.0


@pytest.fixture
def room_options(is_handed: bool) -> dict[str, Any]:
    return {"hand_over": True, "takes_websockets": is_handed}


async def exchanged(room: Room, data: bytes, piece: int) -> bytes:
    """What comes back for these bytes behind a message that was echoed, sent in such pieces, to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
    try:
        writer.write(HEAD + b"\r\n" + frame(TEXT, b"before"))
        await reader.readuntil(b"before")
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])
            # whoever gets a piece shall have looked at it before the next
            await asyncio.sleep(0)
        async with asyncio.timeout(LIMIT_S):
            return await reader.read()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("piece", [10_000, 1])
async def test_what_is_against_the_rules(piece: int) -> None:
    async with Room(hand_over=True) as room:
        address = room.replica(echo)
        room.route(address)
        for what, data in WRONG.items():
            got = await exchanged(room, data, piece)
            if what == "a part behind the last one" and piece == 1:
                assert got.startswith(b"\x81\x02ab"), what
                got = got[4:]
            assert got[:1] + got[2:4] == b"\x88" + (1002).to_bytes(2, "big"), what
        await wait_until(lambda: not room.servers[address].ongoing and not room.websockets)


@pytest.mark.parametrize("piece", [10_000, 1])
async def test_farewells_and_what_is_behind_them(piece: int) -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(echo))
        data = frame(PING, b"p") + frame(TEXT, b"a", fin=False) + frame(PING, b"q")
        farewell = frame(CLOSE, (4321).to_bytes(2, "big")) + frame(TEXT, b"late") + frame(PING, b"late")
        got = await exchanged(room, data + frame(CONT, b"b") + farewell, piece)
        # the message was taken; whether its echo is faster than the answer to the farewell is a matter of pieces
        assert got.replace(b"\x81\x02ab", b"") == b"\x8a\x01p\x8a\x01q\x88\x02" + (4321).to_bytes(2, "big")


async def back_and_forth(socket: Any, messages: list[str | bytes], parts: int = 0) -> None:
    for message in messages:
        if parts:
            await socket.send([message[at : at + parts] for at in range(0, len(message), parts)])
        else:
            await socket.send(message)
        async with asyncio.timeout(LIMIT_S):
            assert await socket.recv() == message


def of_size(size: int) -> list[str | bytes]:
    return ["*" * size, os.urandom(size)]


@pytest.mark.long
@pytest.mark.parametrize("size", [64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB])
@pytest.mark.parametrize("parts", [0, 64 * KIB, MIB])
async def test_large_messages(room_options: dict[str, Any], size: int, parts: int) -> None:
    async with Room(**room_options) as room:
        room.route(room.replica(echo))
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/", max_size=None, compression=None) as socket:
            await back_and_forth(socket, of_size(size), parts)


@pytest.mark.long
@pytest.mark.parametrize("parts", [64, 256, KIB, 4 * KIB])
async def test_a_large_message_in_small_parts(room_options: dict[str, Any], parts: int) -> None:
    async with Room(**room_options) as room:
        room.route(room.replica(echo))
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/", max_size=None, compression=None) as socket:
            await back_and_forth(socket, of_size(MIB if parts >= 256 else 128 * KIB), parts)


@pytest.mark.long
@pytest.mark.parametrize("size", [0, 16, 64, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB])
async def test_a_thousand_messages(room_options: dict[str, Any], size: int) -> None:
    async with Room(**room_options) as room:
        room.route(room.replica(echo))
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/", compression=None) as socket:
            await back_and_forth(socket, of_size(size) * 500)


@pytest.mark.long
@pytest.mark.parametrize("size", [16, KIB, 8 * KIB, 128 * KIB])
@pytest.mark.parametrize(
    "offer",
    [
        {},
        {"client_no_context_takeover": True},
        {"server_no_context_takeover": True},
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
        {"client_max_window_bits": 9, "server_max_window_bits": 9},
        {"client_max_window_bits": 15},
        {"client_max_window_bits": 9, "server_max_window_bits": 9, "server_no_context_takeover": True},
    ],
)
async def test_compression(room_options: dict[str, Any], offer: dict[str, Any], size: int) -> None:
    text = ('{"name": "value \N{EURO SIGN}", "list": [1, 2, 3]}' * (size // 30 + 1))[:size]
    async with Room(**room_options) as room:
        room.route(room.replica(echo))
        factory = ClientPerMessageDeflateFactory(**offer)
        async with websockets.connect(
            f"ws://127.0.0.1:{room.port}/", compression=None, extensions=[factory], max_size=None
        ) as socket:
            assert socket.response is not None
            assert "permessage-deflate" in socket.response.headers["sec-websocket-extensions"]
            await back_and_forth(socket, [text, text.encode()] * 100)
            await back_and_forth(socket, [text, text.encode()] * 5, max(size // 3, 1))
