"""Classes that answer with an ASGI application: FastAPI on methods, lifespan, errors, any ASGI callable."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import numpy as np
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Query, WebSocket
from pydantic import BaseModel
from starlette.responses import PlainTextResponse

import servd
from servd.app.deployment import DOCS_PATH_ATTRIBUTE
from servd.app.ingress import Lifespan, ingress
from servd.calls import pickling
from servd.exceptions import ServdError

app = FastAPI(title="fruits")


class Order(BaseModel):
    name: str
    amount: int = 1


async def token(x: Annotated[str, Query()] = "none") -> str:
    return x


@app.get("/plain")
def plain() -> str:
    return "plain"


class Base:
    @app.get("/inherited")
    def inherited(self) -> str:
        return type(self).__name__


@ingress(app)
class Shop(Base):
    def __init__(self, prefix: str = "p") -> None:
        self.prefix = prefix
        self.sent: list[str] = []

    @app.get("/item/{name}")
    async def item(self, name: str, token: Annotated[str, Depends(token)]) -> str:
        return f"{self.prefix}-{name}-{token}"

    @app.post("/order", status_code=201)
    def order(self, order: Order, tasks: BackgroundTasks) -> Order:
        tasks.add_task(self.sent.append, order.name)
        return Order(name=order.name, amount=order.amount + 1)

    @app.get("/array")
    def array(self) -> Any:
        return {"x": np.arange(3), "e": ValueError("text")}

    @app.get("/broken")
    def broken(self) -> None:
        raise ZeroDivisionError("by zero")

    @app.get("/teapot")
    def teapot(self) -> None:
        raise HTTPException(418, "short and stout")

    @app.websocket("/ws")
    async def ws(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(self.prefix + await websocket.receive_text())
        await websocket.close()


@ingress(app)
class Other:
    @app.get("/other")
    def other(self) -> str:
        return "other"


def asgi_of(instance: Any) -> Any:
    async def call(scope: Any, receive: Any, send: Any) -> None:
        await instance.__servd_asgi__(scope, receive, send)

    return call


def client_of(instance: Any, root_path: str = "") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(asgi_of(instance), root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url="http://fruit")


async def test_methods_get_their_instance_and_fastapis_parameters() -> None:
    async with client_of(Shop("a")) as client:
        assert (await client.get("/item/kiwi?x=t")).json() == "a-kiwi-t"
        assert (await client.get("/plain")).json() == "plain"
        assert (await client.get("/inherited")).json() == "Shop"
    async with client_of(Shop("b")) as client:
        assert (await client.get("/item/kiwi")).json() == "b-kiwi-none"


async def test_validation_status_and_background_tasks() -> None:
    shop = Shop()
    async with client_of(shop) as client:
        answer = await client.post("/order", json={"name": "n"})
        assert (answer.status_code, answer.json()) == (201, {"name": "n", "amount": 2})
        assert shop.sent == ["n"]
        wrong = await client.post("/order", json={"amount": "x"})
        assert wrong.status_code == 422
        assert {tuple(item["loc"]) for item in wrong.json()["detail"]} == {("body", "name"), ("body", "amount")}
        assert (await client.get("/teapot")).status_code == 418


async def test_each_class_keeps_its_own_routes() -> None:
    async with client_of(Shop()) as client:
        assert (await client.get("/other")).status_code == 404
    async with client_of(Other()) as client:
        assert (await client.get("/other")).json() == "other"
        assert (await client.get("/plain")).status_code == 200
        assert (await client.get("/item/kiwi")).status_code == 404


async def test_documentation_shows_what_is_served() -> None:
    async with client_of(Shop(), root_path="/shop") as client:
        schema = (await client.get("/shop/openapi.json")).json()
        assert "/other" not in schema["paths"]
        parameters = schema["paths"]["/item/{name}"]["get"]["parameters"]
        assert [parameter["name"] for parameter in parameters] == ["name", "x"]
        assert "/shop/openapi.json" in (await client.get("/shop/docs")).text
    assert getattr(Shop, DOCS_PATH_ATTRIBUTE) == "/docs"


async def test_arrays_and_exceptions_become_json() -> None:
    async with client_of(Shop()) as client:
        assert (await client.get("/array")).json() == {"x": [0, 1, 2], "e": "text"}


async def test_unhandled_errors_are_the_replicas_to_answer() -> None:
    async with client_of(Shop()) as client:
        with pytest.raises(ZeroDivisionError):
            await client.get("/broken")


async def test_a_handler_for_everything_answers_itself() -> None:
    own = FastAPI()

    @own.exception_handler(Exception)
    async def answer(request: Any, error: Exception) -> Any:
        return PlainTextResponse("mine", 500)

    @ingress(own)
    class Careful:
        @own.get("/")
        def read(self) -> None:
            raise ValueError

    async with client_of(Careful()) as client:
        answer_ = await client.get("/")
        assert (answer_.status_code, answer_.text) == (500, "mine")


async def test_websockets() -> None:
    incoming = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "you"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/ws", "headers": [], "query_string": b"", "subprotocols": []}
    await asgi_of(Shop("hi "))(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[1]["text"] == "hi you"


async def test_the_application_is_frozen_at_decoration() -> None:
    own = FastAPI()

    @ingress(own)
    class Early:
        pass

    own.get("/late")(lambda: 1)
    async with client_of(Early()) as client:
        assert (await client.get("/late")).status_code == 404


async def test_lifespan_runs_around_the_replicas_life() -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        seen.append("up")
        yield
        seen.append("down")

    own = FastAPI(lifespan=lifespan)
    made = ingress(own)(type("Living", (), {}))()
    await made.__servd_startup__()
    assert seen == ["up"]
    await made.__servd_shutdown__()
    assert seen == ["up", "down"]


async def test_a_failing_start_up_fails_the_replica() -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise ValueError("no database")
        yield

    made = ingress(FastAPI(lifespan=lifespan))(type("Dead", (), {}))()
    with pytest.raises((ValueError, ServdError), match="no database"):
        await made.__servd_startup__()


async def test_any_asgi_callable() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    made = ingress(echo)(type("Echo", (), {}))()
    await made.__servd_startup__()
    async with client_of(made) as client:
        assert (await client.get("/a/b")).text == "/a/b"
    await made.__servd_shutdown__()
    assert Lifespan(echo, made).state == {}


async def test_a_factory_makes_the_application_in_the_replica() -> None:
    made_apps = []

    def factory() -> FastAPI:
        made_apps.append(FastAPI())
        made_apps[-1].add_api_route("/", lambda: {"x": np.arange(2)})
        return made_apps[-1]

    kind = ingress(factory)()
    deployment = servd.deployment(kind)
    assert deployment.name == "ASGIIngressDeployment"
    assert made_apps == []
    made = kind()
    await made.__servd_startup__()
    async with client_of(made) as client:
        assert (await client.get("/")).json() == {"x": [0, 1]}
    assert len(made_apps) == 1
    await made.__servd_shutdown__()


async def test_routers_included_and_alone() -> None:
    router = APIRouter()

    class Both:
        @router.get("/hello")
        def hello(self) -> str:
            return f"hello {self.name}"

        name = "you"

    whole = FastAPI()
    whole.include_router(router, prefix="/api")
    async with client_of(ingress(whole)(Both)()) as client:
        assert (await client.get("/api/hello")).json() == "hello you"
    async with client_of(ingress(router)(Both)()) as client:
        assert (await client.get("/hello")).json() == "hello you"


def test_wrong_targets() -> None:
    with pytest.raises(ValueError, match="class"):
        ingress(app)(lambda: 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="__call__"):
        ingress(app)(type("Called", (), {"__call__": lambda self: 1}))  # noqa: ARG005
    own = FastAPI()

    class Selfless:
        @staticmethod
        @own.get("/")
        def read() -> int:
            return 1

    with pytest.raises(ServdError, match="self"):
        ingress(own)(Selfless)


def test_one_documentation_per_application() -> None:
    first, second = servd.deployment(Shop), servd.deployment(Other)
    assert servd.build(first.bind()).docs_path == "/docs"
    assert first.name == "Shop"
    with pytest.raises(ValueError, match="docs path"):
        servd.build(first.bind(second.bind()))


async def test_an_ingress_travels_by_value() -> None:
    own = FastAPI()
    router = APIRouter()
    own.include_router(router)

    @servd.deployment
    @ingress(own)
    class Shipped:
        @own.get("/x")
        def read(self) -> str:
            return "shipped"

    copy = pickling.load_application(pickling.dump_application(Shipped.bind()))
    async with client_of(servd.build(copy).ingress.func_or_class()) as client:
        assert (await client.get("/x")).json() == "shipped"
