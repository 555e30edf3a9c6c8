"""What clients of HTTP/2 may do and few do: say farewell while they wait for answers, ask before they send a body."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from servd.replica.exchange import HttpExchange
from tests.fakes import Room, turning, wait_until
from tests.rooms.http2_client import Http2Client, Http2WebSocket, frame

GOAWAY, PING, ACK = 7, 6, 1
WAIT_S = 5
LAST_BYTES = 16_000
UPLOAD_BYTES = 1_200_000


async def size(exchange: HttpExchange) -> None:
    """Answers with the size of the body, `/hold` once it is told to; a WebSocket with what it is sent."""
    if exchange.scope["type"] == "websocket":
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        while (message := await exchange.receive())["type"] == "websocket.receive":
            await exchange.send({"type": "websocket.send", "text": message["text"]})
        return
    found, more = 0, True
    while more:
        message = await exchange.receive()
        found, more = found + len(message["body"]), message["more_body"]
    exchange.finish(200, (), b"%d" % found)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with Room(hand_over=True) as made:
        made.route(made.replica(size))
        yield made


def farewell(code: int = 0) -> bytes:
    """What `session.close()` of Node says at once, also while it waits for answers."""
    return frame(GOAWAY, 0, 0, (0).to_bytes(4, "big") + code.to_bytes(4, "big"))


async def test_who_says_farewell_has_the_answers_to_what_was_begun(room: Room) -> None:
    async with Http2Client(room.port) as client:
        small, large = client.ask("/", "POST", end=False), client.ask("/", "POST", end=False)
        socket = Http2WebSocket(client, "/")
        await client.head(socket.stream_id)
        # what has to be acknowledged, and what comes behind in the same read, is heard too
        client.flush(frame(PING, 0, 0, b"are you?") + farewell() + frame(PING, 0, 0, b"you are!"))
        await client.send(small, b"abc")
        assert await client.answer(small) == (200, b"3")
        await socket.send("hello")
        assert await socket.receive() == "hello"
        # more than the windows have
        await client.send(large, b"x" * 1_000_000)
        assert await client.answer(large) == (200, b"1000000")
        assert room.lane.connections == 1
        await socket.close()
        assert await socket.receive() == 1000
        # nothing is under way any more
        await wait_until(lambda: client.is_over)
        assert client.goodbye == 0
    await wait_until(lambda: not room.lane.connections)


@pytest.mark.parametrize("code", [0, 2], ids=["nothing under way", "something went wrong"])
async def test_a_farewell_that_nothing_is_waited_for_behind_ends_the_connection(room: Room, code: int) -> None:
    async with Http2Client(room.port) as client:
        await client.get("/")
        if code:
            client.ask("/", "POST", end=False)
        client.flush(farewell(code))
        async with asyncio.timeout(WAIT_S):
            await client._reading  # type: ignore[misc]
    await wait_until(lambda: not room.lane.connections)


async def test_who_asks_before_it_sends_a_body_is_told_to(room: Room) -> None:
    async with Http2Client(room.port) as client:
        stream = client.ask("/", "POST", end=False, expect="100-continue")
        await wait_until(lambda: bool(client.interim[stream]))
        await client.send(stream, b"abc")
        assert await client.answer(stream) == (200, b"3")
        assert client.interim[stream] == ["100"]
        # who has nothing to send, or has not waited
        stream = client.ask("/", expect="100-continue")
        assert await client.answer(stream) == (200, b"0")
        assert not client.interim[stream]


@pytest.mark.parametrize(("why", "status"), [("no route", 404), ("unavailable", 503), ("probe", 200)])
async def test_a_body_that_is_not_wanted_is_not_asked_for(room: Room, why: str, status: int) -> None:
    if why == "unavailable":
        room.route(unavailable="it failed to start")
    elif why == "no route":
        room.route(room.replica(size), prefix="/app")
    async with Http2Client(room.port) as client:
        stream = client.ask("/-/healthz" if why == "probe" else "/", "POST", end=False, expect="100-continue")
        assert (await client.answer(stream))[0] == status
        assert not client.interim[stream]


async def test_an_upgrade_may_say_that_it_has_no_body(room: Room) -> None:
    # as `java.net.http` does before Java 19
    async with Http2Client(room.port, upgrade="/", lines="content-length: 0\r\n") as client:
        assert await client.answer(1) == (200, b"0")
        assert await client.get("/") == (200, b"0")


@pytest.mark.parametrize("how", ["in the midst", "too long", "behind the answer", "head"])
async def test_a_malformed_request_ends_alone(how: str) -> None:
    # a proxy in front ends the stream of a client that has left an upload, and has other clients' requests on the connection
    heard = list[str]()

    async def serve(exchange: HttpExchange) -> None:
        if exchange.scope["path"] == "/early":
            exchange.finish(401, [], b"no")
        elif exchange.scope["path"] == "/cut":
            while (message := await exchange.receive())["type"] == "http.request" and message["more_body"]:
                pass
            heard.append(message["type"])
        else:
            await size(exchange)

    async with Room(hand_over=True) as room:
        room.route(room.replica(serve))
        async with Http2Client(room.port) as client:
            client.h2.config.validate_outbound_headers = client.h2.config.normalize_outbound_headers = False
            neighbour = client.ask("/", "POST", end=False)
            # what came with the last frames is given back: together they are more than the window of the connection
            for _ in range(30):
                if how == "head":
                    odd = client.ask("/", "POST", end=False, Upper="case")
                else:
                    path, said, sent = {
                        "in the midst": ("/cut", "3000000", 1000),
                        "too long": ("/cut", "2000", 1000),
                        "behind the answer": ("/early", "3000000", 1_100_000),
                    }[how]
                    odd = client.ask(path, "POST", end=False, content_length=said)
                    await client.send(odd, b"x" * sent, end=False)
                    if path == "/early":
                        await wait_until(lambda: bytes(client.bodies[odd]) == b"no")  # noqa: B023
                    await wait_until(lambda: client.h2.local_flow_control_window(odd) >= LAST_BYTES)  # noqa: B023
                    client.h2.send_data(odd, b"x" * LAST_BYTES, end_stream=True)
                    client.flush()
                # who has its answer is not told
                await wait_until(lambda: odd in client.reset or odd in client.ended or client.is_over)  # noqa: B023
                assert client.reset.get(odd, 1) == 1
                assert not client.is_over
            await client.send(neighbour, b"x" * 1_000_000)
            assert await client.answer(neighbour) == (200, b"1000000")
        await wait_until(lambda: not any(server.ongoing for server in room.servers.values()))
    assert set(heard) <= {"http.disconnect"}


async def uploaded(count: int) -> list[tuple[int, bytes]]:
    """The answers to so many uploads of one connection, of which two run at a time."""
    async with Room(hand_over=True) as room:
        room.route(room.replica(size, limit=2))
        async with Http2Client(room.port) as client:

            async def upload() -> tuple[int, bytes]:
                stream = client.ask("/", "POST", end=False)
                await client.send(stream, b"x" * UPLOAD_BYTES)
                return await client.answer(stream)

            with turning(room, every_s=0.1):
                async with asyncio.timeout(30):
                    return await asyncio.gather(*(upload() for _ in range(count)))


@pytest.mark.slow
async def test_uploads_in_line_do_not_hold_up_those_that_run() -> None:
    # those in line hold more than the window has at first
    assert await uploaded(14) == [(200, b"%d" % UPLOAD_BYTES)] * 14


@pytest.mark.slow
async def test_where_uploads_in_line_hold_all_that_there_may_be_the_last_are_turned_away() -> None:
    found = await uploaded(30)
    statuses = [status for status, _ in found]
    assert set(statuses) == {200, 503}, statuses
    assert statuses[:10] == [200] * 10, statuses
    assert {text for status, text in found if status == 200} == {b"%d" % UPLOAD_BYTES}
