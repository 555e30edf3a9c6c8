"""`servd.testing`: HTTP and WebSocket to an application in the test's own process."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from starlette.requests import Request
from starlette.responses import StreamingResponse

import servd
from servd.exceptions import BackPressureError, ServdError
from servd.testing import AppClient, AsyncAppClient, WebSocketDisconnect, async_client, client

api = FastAPI()
log: list[str] = []


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    log.append("up")
    yield
    log.append("down")


api.router.lifespan_context = lifespan


def rate() -> int:
    return 1


@servd.deployment
class Inner:
    def double(self, number: int) -> int:
        if number < 0:
            raise ValueError("below zero")
        return 2 * number


@servd.deployment(route_prefix="/shop")
@servd.ingress(api)
class Shop:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @api.get("/double/{number}")
    async def double(self, number: int, factor: int = Depends(rate)) -> int:
        return factor * int(await self.inner.double.remote(number))

    @api.post("/echo")
    async def echo(self, request: Request) -> dict[str, Any]:
        body = await request.body()
        scope = request.scope
        return {
            "bytes": len(body),
            "path": scope["path"],
            "root": scope["root_path"],
            "a": request.query_params.get("a"),
        }

    @api.get("/stream")
    async def stream(self) -> StreamingResponse:
        async def numbers() -> AsyncIterator[str]:
            for number in range(1000):
                log.append(f"made {number}")
                yield f"{number}\n"

        return StreamingResponse(numbers())

    @api.get("/late")
    async def late(self, tasks: BackgroundTasks) -> str:
        tasks.add_task(log.append, "background")
        return "answered"

    @api.get("/breaks")
    async def breaks(self) -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            yield "one"
            raise ValueError("in the middle")

        return StreamingResponse(pieces())

    @api.get("/hangs")
    async def hangs(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("hung up")

    @api.get("/busy")
    async def busy(self) -> None:
        raise BackPressureError("x", 1, 1)

    @api.websocket("/chat")
    async def chat(self, socket: WebSocket, refuse: bool = False) -> None:
        if refuse:
            await socket.close(4001, "not you")
            return
        await socket.accept(subprotocol=(socket.scope["subprotocols"] or [None])[0])
        while (text := await socket.receive_text()) != "bye":
            if text == "fail":
                raise ValueError("in the chat")
            await socket.send_text(f"{socket.headers.get('x-who', '')}{text}")
        await socket.send_bytes(b"\x00")
        await socket.close(4000, "bye")

    @api.websocket("/watch")
    async def watch(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            await socket.receive_text()
        except WebSocketDisconnect as error:
            log.append(f"left {error.code}")


APP = Shop.bind(Inner.bind())


@pytest.fixture
def shop() -> Iterator[AppClient]:
    log.clear()
    with client(APP) as made:
        yield made


def test_a_request_goes_through_routes_dependencies_and_handles(
    shop: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.get("/double/4").json() == 8
    monkeypatch.setattr(api, "dependency_overrides", {rate: lambda: 10})
    answer = shop.get("/double/4", headers={"x-request-id": "mine"})
    assert (answer.json(), answer.headers["x-request-id"]) == (80, "mine")
    assert shop.get("/double/x").status_code == 422
    assert shop.get("/nothing").status_code == 404
    assert shop.handle.options(method_name="double").remote(3, factor=1).result(5) == 6


def test_a_path_is_below_the_route_of_the_ingress(shop: AppClient) -> None:
    seen = shop.post("/echo", params={"a": "ä/b"}, content=b"x" * 100_000).json()
    assert seen == {"bytes": 100_000, "path": "/shop/echo", "root": "/shop", "a": "ä/b"}
    elsewhere = shop.get("http://testserver/shopping")
    assert (elsewhere.status_code, "/shop" in elsewhere.text) == (404, True)


def test_it_begins_and_ends_with_its_lifespan() -> None:
    log.clear()
    with client(APP) as shop:
        assert log == ["up"]
        with pytest.raises(ServdError, match=r"'default' runs in this process"), client(APP):
            pass
        with client(APP, name="other") as other:
            assert other.get("/double/1").json() == 2
        assert shop.get("/double/1").json() == 2
    assert log == ["up", "up", "down", "down"]
    with pytest.raises(RuntimeError):
        shop.get("/double/1")


def test_what_a_handler_raises_is_raised_where_it_is_asked(shop: AppClient) -> None:
    with pytest.raises(ValueError, match="below zero"):
        shop.get("/double/-1")
    with shop.stream("GET", "/breaks") as answer, pytest.raises(ValueError, match="in the middle"):
        answer.read()
    assert shop.get("/busy").status_code == 503
    assert shop.get("/double/1").json() == 2


def test_or_answered_as_by_a_replica(caplog: pytest.LogCaptureFixture) -> None:
    with client(APP, raise_app_exceptions=False) as shop:
        answer = shop.get("/double/-1", headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.text) == (500, "Internal Server Error (request id mine)")
        assert "below zero" in caplog.text
        with shop.websocket_connect("/chat") as socket:
            socket.send_text("fail")
            with pytest.raises(WebSocketDisconnect) as caught:
                socket.receive_text()
        assert caught.value.code == 1011


def test_a_stream_goes_on_when_it_is_read(shop: AppClient) -> None:
    with shop.stream("GET", "/stream") as answer:
        lines = answer.iter_lines()
        assert [next(lines), next(lines)] == ["0", "1"]
    made = len(log)
    assert shop.get("/double/1").json() == 2
    assert len(log) == made < 10


def test_tasks_in_the_background_have_run(shop: AppClient) -> None:
    assert shop.get("/late").json() == "answered"
    assert log[-1] == "background"


def test_a_handler_that_takes_too_long_is_left(shop: AppClient) -> None:
    # the first request loads what later ones have
    shop.get("/double/1")
    with pytest.raises(httpx.ReadTimeout):
        shop.get("/hangs", timeout=0.02)
    shop.get("/double/1")
    assert log[-1] == "hung up"


def test_a_websocket(shop: AppClient) -> None:
    with shop.websocket_connect("/chat", headers={"x-who": "me: "}, subprotocols=["v2", "v1"]) as socket:
        assert socket.subprotocol == "v2"
        socket.send_text("hello")
        assert socket.receive_text() == "me: hello"
        socket.send_json([1])
        with pytest.raises(TypeError, match="sent str, not bytes"):
            socket.receive_bytes()
        socket.send_text("bye")
        assert socket.receive_bytes() == b"\x00"
        with pytest.raises(WebSocketDisconnect) as caught:
            socket.receive_text()
        assert (caught.value.code, caught.value.reason) == (4000, "bye")
        with pytest.raises(RuntimeError, match="closed"):
            socket.send_text("more")


def test_a_websocket_that_is_refused_left_or_fails(shop: AppClient) -> None:
    with pytest.raises(WebSocketDisconnect) as caught, shop.websocket_connect("/chat", params={"refuse": "1"}):
        pass
    assert caught.value.code == 4001
    with shop.websocket_connect("/watch") as socket:
        socket.close(4002)
    assert log[-1] == "left 4002"
    # the handler does not catch that its client has left: no fault
    with shop.websocket_connect("/chat"):
        pass
    with pytest.raises(ValueError, match="in the chat"), shop.websocket_connect("/chat") as socket:
        socket.send_text("fail")


async def test_the_same_on_an_event_loop() -> None:
    log.clear()
    async with async_client(APP) as shop:
        answers = await asyncio.gather(*(shop.get(f"/double/{number}") for number in range(5)))
        assert [answer.json() for answer in answers] == [0, 2, 4, 6, 8]
        await _left_early(shop)
        async with shop.websocket_connect("/chat") as socket:
            await socket.send_json({"a": 1})
            assert await socket.receive_json() == {"a": 1}
            await socket.send_bytes(b"no text")
            with pytest.raises(KeyError):
                await socket.receive_text()
        with pytest.raises(ValueError, match="below zero"):
            await shop.get("/double/-1")
        with pytest.raises(httpx.ReadTimeout):
            await shop.get("/hangs", timeout=0.02)
    assert log[-1] == "down"


async def _left_early(shop: AsyncAppClient) -> None:
    async with shop.stream("GET", "/stream") as answer:
        async for line in answer.aiter_lines():
            if line == "3":
                break
    made = len(log)
    assert (await shop.get("/double/1")).json() == 2
    assert len(log) == made < 15


async def test_what_is_sync_works_on_an_event_loop_too() -> None:
    handle = servd.run(Inner.bind(), name="inner", local=True)
    assert await handle.double.remote(2) == 4
    servd.delete("inner")
    with client(APP) as shop:
        assert shop.get("/double/4").json() == 8


@servd.deployment
def greet(request: Request) -> str:
    return f"hello {request.query_params['name']}"


@servd.deployment
class Lines:
    def __call__(self) -> Iterator[str]:
        yield "a"
        yield "b"


def test_a_function_and_a_generator_answer_as_in_a_replica() -> None:
    with client(greet.bind()) as http:
        answer = http.get("/?name=you")
        assert (answer.text, answer.headers["content-type"]) == ("hello you", "text/plain; charset=utf-8")
        assert http.head("/?name=you").content == b""
        with pytest.raises(KeyError):
            http.get("/")
        with pytest.raises(WebSocketDisconnect), http.websocket_connect("/"):
            pass
    with client(Lines.bind()) as http:
        assert http.get("/").text == "ab"


def test_a_constructor_that_fails_leaves_nothing() -> None:
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no model")

    for _ in range(2):
        with pytest.raises(ValueError, match="no model"), client(servd.deployment(Broken).bind()):
            pass
