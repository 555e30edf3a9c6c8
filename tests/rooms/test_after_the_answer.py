"""What a handler hears that goes on to ask when its answer is complete: the end, as ASGI has it, not silence for ever."""

import asyncio
from typing import Any

import pytest

from servd import deployment, ingress
from servd.replica.exchange import HttpExchange
from servd.testing import client
from tests.fakes import Room, wait_until
from tests.rooms.test_websockets import HEAD

MIB = 1024 * 1024
PIECE = {"type": "http.response.body", "more_body": True}
END = {"type": "http.response.body"}
ANSWERS: dict[str, list[dict[str, Any]]] = {
    "whole": [{**END, "body": b"x"}],
    "large": [{**END, "body": b"x" * MIB}],
    "stream": [{**PIECE, "body": b"x"}, END],
    "large stream": [{**PIECE, "body": b"x" * MIB}, {**PIECE, "body": b"x" * MIB}, END],
}


async def heard(exchange: HttpExchange) -> str:
    """What comes behind the request's body."""
    while (message := await exchange.receive())["type"] == "http.request":
        pass
    kind: str = message["type"]
    return kind


class Handler:
    """Answers as it is told, and notes what it hears in the end: asks afterwards, or waits for it beside."""

    def __init__(self, answer: list[dict[str, Any]], *, asks_beside: bool) -> None:
        self._answer = answer
        self._asks_beside = asks_beside
        self.heard: list[str] = []

    async def __call__(self, exchange: HttpExchange) -> None:
        beside = asyncio.create_task(heard(exchange)) if self._asks_beside else None
        # until it waits
        await asyncio.sleep(0)
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        for message in self._answer:
            await exchange.send(message)
        self.heard.append(await (beside or heard(exchange)))
        self.heard.append(await heard(exchange))


@pytest.fixture(params=[0, 10, 3 * MIB])
def body(request: pytest.FixtureRequest) -> bytes:
    """Of the request; the last goes to the replica piece by piece."""
    return b"b" * int(request.param)


@pytest.mark.parametrize("asks_beside", [False, True], ids=["asks then", "asks beside"])
@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_handler_hears_that_its_answer_is_complete(answer: str, asks_beside: bool, body: bytes) -> None:
    handler = Handler(ANSWERS[answer], asks_beside=asks_beside)
    async with Room() as room:
        # of one slot, which it must give back
        room.route(room.replica(handler, limit=1))
        for number in (1, 2):
            assert (await room.get("/", method="POST", body=body)).startswith(b"HTTP/1.1 200 ")
            await wait_until(lambda number=number: len(handler.heard) == 2 * number)  # type: ignore[misc]
    assert handler.heard == ["http.disconnect"] * 4


@pytest.mark.parametrize("is_accepted", [False, True])
@pytest.mark.parametrize("is_handed", [False, True])
async def test_a_handler_hears_that_the_websocket_is_over_which_it_has_closed(
    is_handed: bool, is_accepted: bool
) -> None:
    said: list[str] = []

    async def refuse(exchange: HttpExchange) -> None:
        assert (await exchange.receive())["type"] == "websocket.connect"
        if is_accepted:
            await exchange.send({"type": "websocket.accept"})
        await exchange.send({"type": "websocket.close"})
        said.append((await exchange.receive())["type"])

    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(refuse, limit=1))
        for number in (1, 2):
            # it says farewell by its own leaving
            answer = await room.raw(HEAD + b"\r\n", until=b"\x88\x02\x03\xe8" if is_accepted else None)
            assert answer.startswith(b"HTTP/1.1 %d " % (101 if is_accepted else 403))
            await wait_until(lambda number=number: len(said) == number)  # type: ignore[misc]
    assert said == ["websocket.disconnect"] * 2


@pytest.mark.parametrize("asks_beside", [False, True], ids=["asks then", "asks beside"])
def test_so_does_one_in_a_test_of_its_own(asks_beside: bool) -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def last() -> None:
            while (message := await receive())["type"] == "http.request":
                pass
            told.append(message["type"])

        if scope["type"] != "http":
            return
        beside = asyncio.create_task(last()) if asks_beside else None
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({**END, "body": b"x"})
        async with asyncio.timeout(5):
            await (beside or last())
            await last()

    class Shop:
        """What the application has."""

    with client(deployment(ingress(app)(Shop)).bind()) as shop:
        assert shop.get("/").text == "x"
    assert told == ["http.disconnect"] * 2
