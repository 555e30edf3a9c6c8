"""What FastAPI promises holds behind `ingress`, under a route prefix, against a real daemon."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Cookie, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import RedirectResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from websockets.asyncio.client import connect
from websockets.sync.client import connect as connect_sync

import servd
from tests.system.running_daemon import eventually


class Order(BaseModel):
    name: str
    count: int = Field(gt=0)


def token(x_token: str = "none") -> str:
    return f"token {x_token}"


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    yield {"born": "in lifespan"}


def make_app(folder: str) -> Any:
    app = FastAPI(title="Shop", lifespan=lifespan)
    app.add_middleware(
        CORSMiddleware, allow_origins=["https://shop.example"], allow_methods=["GET"], allow_credentials=True
    )
    router = APIRouter(prefix="/routed", dependencies=[Depends(token)])

    @app.middleware("http")
    async def add_header(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-middleware"] = request.scope["root_path"]
        return response

    @app.exception_handler(KeyError)
    async def missing(request: Request, error: KeyError) -> Response:
        return PlainTextResponse(f"missing {error.args[0]}", 410)

    @router.get("/plain")
    def plain() -> str:
        return "plain"

    app.include_router(router)
    inner = FastAPI()

    @inner.get("/where")
    def where(request: Request) -> dict[str, str]:
        return {"url": str(request.url_for("where")), "root": request.scope["root_path"]}

    app.mount("/inner", inner)
    app.mount("/star", Starlette(routes=[Route("/hi", lambda _: PlainTextResponse("hi"))]))

    @servd.deployment
    @servd.ingress(app)
    class Shop:
        def __init__(self) -> None:
            self.orders: list[Order] = []

        @app.post("/orders", status_code=201)
        def add(self, order: Order, who: Annotated[str, Depends(token)]) -> dict[str, Any]:
            self.orders.append(order)
            return {"place": len(self.orders), "who": who, "order": order}

        @app.get("/orders/{place}")
        def one(self, place: int, request: Request) -> dict[str, str]:
            if not 0 < place <= len(self.orders):
                raise HTTPException(404, detail={"place": place}, headers={"x-reason": "none"})
            return {"url": str(request.url), "self": str(request.url_for("one", place=place))}

        @app.get("/")
        def top(self) -> str:
            return "top"

        @app.get("/cookies")
        def cookies(
            self, response: Response, a: Annotated[str, Cookie()] = "-", b: Annotated[str, Cookie()] = "-"
        ) -> str:
            response.set_cookie("a", "1")
            response.set_cookie("b", "2", httponly=True)
            return a + b

        @app.get("/away")
        def away(self) -> RedirectResponse:
            return RedirectResponse("/elsewhere", 303)

        @app.get("/slash/")
        def slash(self) -> str:
            return "slash"

        @app.get("/broken")
        def broken(self) -> None:
            raise KeyError("shelf")

        @app.get("/later")
        def later(self, tasks: BackgroundTasks) -> str:
            tasks.add_task(Path(folder, "task").write_text, "done")
            return "soon"

        @app.get("/state")
        def state(self, request: Request) -> str:
            return str(request.state.born)

        @app.get("/events")
        async def events(self) -> StreamingResponse:
            async def lines() -> AsyncIterator[str]:
                for i in range(3):
                    yield f"data: {i}\n\n"

            return StreamingResponse(lines(), media_type="text/event-stream")

        @app.post("/body")
        async def body(self, request: Request) -> int:
            return sum([len(part) async for part in request.stream()])

        @app.websocket("/talk/{name}")
        async def talk(self, socket: WebSocket, name: str) -> None:
            await socket.accept(subprotocol=socket.scope["subprotocols"][0])
            async for text in socket.iter_text():
                await socket.send_json({"name": name, "text": text, "root": socket.scope["root_path"]})

    return Shop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def url(port: int, folder: Path) -> str:
    servd.run(make_app(str(folder)).bind(), name="shop", route_prefix="/shop")
    return f"http://127.0.0.1:{port}/shop"


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as opened:
        yield opened


def test_validation_tells_every_fault(client: httpx.Client) -> None:
    answer = client.post("/orders", json={"count": 0})
    assert answer.status_code == 422
    assert [(fault["type"], fault["loc"]) for fault in answer.json()["detail"]] == [
        ("missing", ["body", "name"]),
        ("greater_than", ["body", "count"]),
    ]
    assert client.get("/orders/x").json()["detail"][0]["type"] == "int_parsing"


def test_dependencies_models_and_urls(client: httpx.Client, url: str) -> None:
    answer = client.post("/orders?x_token=t", json={"name": "kiwi", "count": 2})
    assert answer.status_code == 201
    assert answer.text == '{"place":1,"who":"token t","order":{"name":"kiwi","count":2}}'
    assert client.get("/orders/1?q=1").json() == {"url": f"{url}/orders/1?q=1", "self": f"{url}/orders/1"}
    assert client.get("/routed/plain").json() == "plain"


def test_errors_of_the_framework(client: httpx.Client) -> None:
    answer = client.get("/orders/99")
    assert (answer.status_code, answer.json()) == (404, {"detail": {"place": 99}})
    assert answer.headers["x-reason"] == "none"
    assert client.get("/nowhere").json() == {"detail": "Not Found"}
    assert client.delete("/orders").status_code == 405
    answer = client.get("/broken")
    assert (answer.status_code, answer.text) == (410, "missing shelf")


def test_the_documentation_under_a_prefix(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["servers"] == [{"url": "/shop"}]
    assert document["info"]["title"] == "Shop"
    assert {"/orders", "/orders/{place}", "/routed/plain"} <= set(document["paths"])
    assert "self" not in json.dumps(document["paths"])
    assert "/shop/openapi.json" in client.get("/docs").text
    assert "/shop/openapi.json" in client.get("/redoc").text


def test_cors(client: httpx.Client) -> None:
    origin = {"Origin": "https://shop.example"}
    answer = client.get("/routed/plain", headers=origin)
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    answer = client.options("/routed/plain", headers={**origin, "Access-Control-Request-Method": "GET"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-methods"] == "GET"
    answer = client.options("/routed/plain", headers={**origin, "Access-Control-Request-Method": "PUT"})
    assert answer.status_code == 400


def test_several_cookies_both_ways(client: httpx.Client) -> None:
    answer = client.get("/cookies", headers={"Cookie": "a=x; b=y"})
    assert answer.json() == "xy"
    assert answer.headers.get_list("set-cookie") == ["a=1; Path=/; SameSite=lax", "b=2; HttpOnly; Path=/; SameSite=lax"]


def test_redirects(client: httpx.Client, url: str) -> None:
    answer = client.get("/away")
    assert (answer.status_code, answer.headers["location"]) == (303, "/elsewhere")
    answer = client.get("/slash")
    assert (answer.status_code, answer.headers["location"]) == (307, f"{url}/slash/")
    assert client.get("/slash", follow_redirects=True).json() == "slash"
    exact = httpx.get(url)
    assert (exact.status_code, exact.headers["location"]) == (307, f"{url}/")


def test_mounted_applications(client: httpx.Client, url: str) -> None:
    assert client.get("/inner/where").json() == {"url": f"{url}/inner/where", "root": "/shop/inner"}
    assert client.get("/inner/openapi.json").json()["servers"] == [{"url": "/shop/inner"}]
    assert client.get("/star/hi").text == "hi"


def test_middleware_sees_the_prefix(client: httpx.Client) -> None:
    assert client.get("/routed/plain").headers["x-middleware"] == "/shop"


def test_background_tasks_and_lifespan(client: httpx.Client, folder: Path) -> None:
    assert client.get("/later").json() == "soon"
    assert eventually(lambda: (folder / "task").exists() and (folder / "task").read_text()) == "done"
    assert client.get("/state").json() == "in lifespan"


def test_server_sent_events(client: httpx.Client) -> None:
    with client.stream("GET", "/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert [line for line in answer.iter_lines() if line] == ["data: 0", "data: 1", "data: 2"]


def test_a_large_body_is_streamed(client: httpx.Client) -> None:
    assert client.post("/body", content=b"x" * 5_000_000).json() == 5_000_000


def test_websockets(url: str) -> None:
    with connect_sync(f"ws{url.removeprefix('http')}/talk/ada", subprotocols=["chat"]) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "chat"
        for text in ("one", "two"):
            socket.send(text)
            assert json.loads(socket.recv(20)) == {"name": "ada", "text": text, "root": "/shop"}


async def test_many_websockets(url: str) -> None:
    address = f"ws{url.removeprefix('http')}/talk/many"
    sockets = [await connect(address, subprotocols=["chat"]) for _ in range(20)]  # type: ignore[list-item]
    for number, socket in enumerate(sockets):
        await socket.send(str(number))
    for number, socket in enumerate(sockets):
        assert json.loads(await socket.recv())["text"] == str(number)
        await socket.close()
