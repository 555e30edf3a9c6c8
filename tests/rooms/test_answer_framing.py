"""Answers end where their method, status and version say, so that the next one on the connection is understood."""

import asyncio
import http.client
import io
import socket
from typing import Any, cast

import pytest
from h2.errors import ErrorCodes

from servd.proxy.hypercorn.http2 import LaneHttp2
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until
from tests.rooms.http2_client import Http2Client

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
STATUSES = (200, 204, 205, 304, 404, 500)


async def answer(exchange: HttpExchange) -> None:
    """Seven bytes of content with the status that the path names, as a whole or in pieces, with a length or without."""
    _, way, status, *rest = exchange.scope["path"].split("/")
    headers = [(name.encode(), value.encode()) for name, value in (pair.split("=") for pair in rest if pair)]
    if way == "whole":
        exchange.finish(int(status), tuple(headers), b"content")
        return
    await exchange.send({"type": "http.response.start", "status": int(status), "headers": headers})
    for piece in (b"con", b"tent"):
        await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
    await exchange.send({"type": "http.response.body", "body": b""})


async def promise_five_bytes(exchange: HttpExchange) -> None:
    """A head that says so, and nothing after it."""
    await exchange.send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await exchange.send({"type": "http.response.body", "body": b"", "more_body": True})
    await exchange.send({"type": "http.response.body", "body": b""})


class Answers:
    """What one connection brought, read as a client that knows what it asked reads it."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def next(self, method: str) -> http.client.HTTPResponse:
        class Heard:
            def makefile(self, _: str) -> "io.BufferedIOBase":
                return cast(io.BufferedIOBase, kept)

        kept = io.BytesIO(self._file.read())
        kept.close = lambda: None  # type: ignore[method-assign]
        found = http.client.HTTPResponse(cast(socket.socket, Heard()), method=method)
        found.begin()
        found.content = found.read()  # type: ignore[attr-defined]
        self._file = io.BytesIO(kept.read())
        return found


@pytest.mark.parametrize(("pieces", "how"), [((b"abc", b"d"), "shorter"), ((b"abc", b"def"), "longer")])
@pytest.mark.parametrize("factor", [1, 300_000])
async def test_a_body_of_another_length_than_was_said_is_an_error(
    pieces: tuple[bytes, bytes], how: str, factor: int
) -> None:
    raised = []

    async def answer_in_pieces(exchange: HttpExchange) -> None:
        headers = [(b"content-length", b"%d" % (5 * factor))]
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            for piece in pieces:
                await exchange.send({"type": "http.response.body", "body": piece * factor, "more_body": True})
            await exchange.send({"type": "http.response.body", "body": b""})
        except ValueError as error:
            raised.append(str(error))
            raise

    async with Room() as room:
        room.route(room.replica(answer_in_pieces))
        got = await room.raw(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert len(got.partition(b"\r\n\r\n")[2]) < 5 * factor
    assert raised == [f"the body of the response is {how} than its content-length"]


@pytest.mark.parametrize("way", ["whole", "pieces"])
@pytest.mark.parametrize("length", ["", "content-length=7"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_every_answer_on_a_kept_connection_is_understood(way: str, length: str, version: str) -> None:
    async with Room() as room:
        room.route(room.replica(answer))
        for status in STATUSES:
            # a GET first: what is remembered of a URL must not outlive its method
            asked = ["GET", *METHODS, "HEAD", "GET"]
            path = f"/{way}/{status}/{length}"
            keep = "connection: keep-alive\r\n" if version == "1.0" else ""
            if version == "1.0" and way == "pieces" and not length:
                # only the end of the connection ends those that have content
                asked = ["HEAD"] if status in (200, 404, 500) else asked
            data = "".join(f"{method} {path} HTTP/{version}\r\nhost: x\r\n{keep}\r\n" for method in asked)
            answers = Answers(await room.raw((data + "GET /whole/200/ HTTP/1.0\r\n\r\n").encode()))
            for method in asked:
                got = answers.next(method)
                assert got.status == status
                is_empty = method == "HEAD" or status in (204, 205, 304)
                assert got.content == (b"" if is_empty else b"content")  # type: ignore[attr-defined]
                lengths = got.headers.get_all("content-length", [])
                assert len(lengths) <= 1
                if status in (204, 205, 304):
                    assert lengths == (["0"] if status == 205 else [])
                elif lengths:
                    assert lengths == ["7"]
            assert answers.next("GET").content == b"content"  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["whole", "pieces"])
async def test_http2_has_the_same_rules(way: str) -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(answer))
        async with Http2Client(room.port) as client:
            for status in STATUSES:
                got = await client.get(f"/{way}/{status}/content-length=7")
                assert got == (status, b"" if status in (204, 205, 304) else b"content")


@pytest.mark.parametrize("length", [5, 9])
async def test_http2_breaks_off_what_has_not_the_length_that_it_says(length: int) -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(answer))
        async with Http2Client(room.port) as client:
            stream = client.ask(f"/pieces/200/content-length={length}")
            assert (await client.head(stream))["content-length"] == str(length)
            await wait_until(lambda: stream in client.reset or stream in client.ended)
            assert client.reset == {stream: ErrorCodes.INTERNAL_ERROR}
            head = client.ask(f"/pieces/200/content-length={length}", "HEAD")
            await wait_until(lambda: head in client.ended)
            assert await client.get("/pieces/200/") == (200, b"content")


async def test_a_stream_that_is_broken_off_leaves_nothing_on_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LaneHttp2] = []

    def remembered(self: LaneHttp2, *args: Any, **options: Any) -> None:
        made.append(self)
        begin(self, *args, **options)

    begin = LaneHttp2.__init__
    monkeypatch.setattr(LaneHttp2, "__init__", remembered)
    async with Room(hand_over=True) as room:
        room.route(room.replica(promise_five_bytes))
        async with Http2Client(room.port) as client:
            for _ in range(3):
                stream = client.ask("/")
                await wait_until(lambda stream=stream: stream in client.reset)  # type: ignore[misc]
            (lane,) = made
            assert lane.stream_buffers == {}
            assert stream not in lane.priority._streams


@pytest.mark.parametrize("way", ["whole", "pieces"])
@pytest.mark.parametrize("status", [100, 103, 199])
async def test_a_status_that_ends_no_request_is_an_error_that_says_so(
    way: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVD_SHOW_TRACEBACKS", "1")
    async with Room() as room:
        room.route(room.replica(answer))
        for _ in range(2):
            got = Answers(await room.get(f"/{way}/{status}/")).next("GET")
            assert got.status == 500
            assert f"an answer cannot have the status {status}" in got.content.decode()  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["whole", "pieces"])
@pytest.mark.parametrize("value", ["close", "Close", "keep-alive, close"])
@pytest.mark.parametrize("status", [200, 204, 500])
async def test_an_application_may_end_the_connection(way: str, value: str, status: int) -> None:
    async with Room() as room:
        room.route(room.replica(answer))
        for _ in range(2):
            path = f"/{way}/{status}/Connection={value.replace(' ', '')}"
            reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
            # what comes behind is not begun
            writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() * 2)
            async with asyncio.timeout(5):
                got = await reader.read()
            writer.close()
            assert got.count(b"connection: close\r\n") == got.count(b"HTTP/1.1 ") == 1
        await wait_until(lambda: not room.listener.connections)


async def test_other_wishes_of_an_application_for_its_connection_are_no_wish_to_end_it() -> None:
    async with Room() as room:
        room.route(room.replica(answer))
        path = "/whole/200/Connection=keep-alive/Keep-Alive=closeness"
        data = f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        got = await room.raw(data * 2 + b"GET /whole/200/ HTTP/1.0\r\n\r\n")
        assert got.count(b"HTTP/1.1 200") == 3
        assert got.count(b"connection: close") == 1
