"""Classes that answer with an ASGI application: FastAPI on methods, lifespan, errors, any ASGI callable."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import numpy as np
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Query, WebSocket
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse

import servd
from servd.app.asgi_calls import call_app
from servd.app.deployment import DOCS_PATH_ATTRIBUTE
from servd.app.ingress import Lifespan, changes_undone, ingress
from servd.calls import pickling
from servd.calls.failures import ClientGoneError
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

    instance: Any = Careful()
    transport = httpx.ASGITransport(asgi_of(instance), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://fruit") as client:
        answer_ = await client.get("/")
        assert (answer_.status_code, answer_.text) == (500, "mine")
    # so that whoever runs the application can tell of it, as with any server
    async with client_of(instance) as client:
        with pytest.raises(ValueError):
            await client.get("/")

    async def gone(message: Any) -> None:
        raise ClientGoneError

    scope = {"type": "http", "method": "GET", "path": "/", "root_path": "", "query_string": b"", "headers": []}
    with pytest.raises(ValueError):
        await asgi_of(instance)(scope, None, gone)


async def test_an_application_s_own_500_does_not_wait_for_what_comes_behind_it() -> None:
    go_on = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        await go_on.wait()
        yield b"b"

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        whole = PlainTextResponse("mine", 500, background=BackgroundTask(go_on.wait))
        await (StreamingResponse(pieces(), 500) if scope["path"] == "/pieces" else whole)(scope, receive, send)

    for path, first in [("/whole", b"mine"), ("/pieces", b"a")]:
        sent: asyncio.Queue[Any] = asyncio.Queue()
        scope = {"type": "http", "path": path, "asgi": {"spec_version": "2.4"}}
        calling = asyncio.create_task(call_app(answer, scope, asyncio.Event().wait, sent.put))
        async with asyncio.timeout(5):
            assert (await sent.get())["status"] == 500
            assert (await sent.get())["body"] == first
        assert not calling.done()
        go_on.set()
        await calling
        go_on.clear()


async def said_by_websocket(instance: Any, path: str, *texts: str) -> str:
    incoming: list[Any] = [
        {"type": "websocket.connect"},
        *[{"type": "websocket.receive", "text": text} for text in texts],
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": path, "headers": [], "query_string": b"", "subprotocols": []}
    await asgi_of(instance)(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    return str(sent[1]["text"])


async def test_websockets() -> None:
    assert await said_by_websocket(Shop("hi "), "/ws", "you") == "hi you"


class Mine(Exception):
    pass


def an_application_that_changes() -> tuple[FastAPI, Any]:
    """A class that does to its application in its constructor what there is to do."""
    own = FastAPI()

    async def named() -> str:
        return "nobody"

    @ingress(own)
    class Changing:
        def __init__(self, name: str = "x") -> None:
            self.name = name
            own.add_api_route("/bound", self.bound)
            own.add_api_route("/bound-async", self.bound_async)
            own.add_api_websocket_route("/ws", self.ws)
            router = APIRouter(prefix="/router")
            router.add_api_route("/bound", self.bound)
            router.get("/closure")(lambda: self.name)
            own.include_router(router)
            mounted = FastAPI()
            mounted.add_api_route("/x", self.bound)
            own.mount("/mounted", mounted)
            own.mount("/asgi", PlainTextResponse("asgi"))
            own.add_exception_handler(Mine, self.answer)
            own.dependency_overrides[named] = lambda: self.name

            @own.get("/closure")
            def closure() -> str:
                return self.name

            @own.middleware("http")
            async def stamp(request: Any, call_next: Any) -> Any:
                response = await call_next(request)
                response.headers.append("x-stamp", self.name)
                return response

        def bound(self) -> str:
            return self.name

        async def bound_async(self) -> str:
            return self.name

        async def ws(self, websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.send_text(self.name)
            await websocket.close()

        async def answer(self, request: Any, error: Exception) -> PlainTextResponse:
            return PlainTextResponse(self.name, 418)

        @own.get("/raising")
        def raising(self) -> None:
            raise Mine

        @own.get("/overridden")
        def overridden(self, name: Annotated[str, Depends(named)]) -> str:
            return name

    return own, Changing


CHANGED = ("bound", "bound-async", "router/bound", "router/closure", "mounted/x", "closure", "overridden")


@pytest.mark.parametrize("alone", [True, False])
async def test_what_a_constructor_does_to_the_application_counts(alone: bool) -> None:
    _, kind = an_application_that_changes()
    made = kind("me")
    await made.__servd_startup__(alone=alone)
    async with client_of(made) as client:
        for path in CHANGED:
            answer = await client.get(f"/{path}")
            assert (path, answer.status_code, answer.json()) == (path, 200, "me")
            assert answer.headers.get_list("x-stamp") == ["me"]
        assert (await client.get("/asgi/")).text == "asgi"
        raised = await client.get("/raising")
        assert (raised.status_code, raised.text) == (418, "me")
        assert {"/bound", "/closure", "/router/bound"} <= set((await client.get("/openapi.json")).json()["paths"])
    assert await said_by_websocket(made, "/ws") == "me"


async def test_instances_in_one_process_do_not_share_what_they_did() -> None:
    own, kind = an_application_that_changes()
    before = len(own.routes)
    made = []
    for name in ("a", "b"):
        with changes_undone(kind):
            made.append(kind(name))
            await made[-1].__servd_startup__()
    assert len(own.routes) == before
    assert own.user_middleware == []
    for instance in made:
        async with client_of(instance) as client:
            answer = await client.get("/router/bound")
            assert (answer.json(), answer.headers.get_list("x-stamp")) == (instance.name, [instance.name])


async def test_what_is_added_after_the_decoration_is_served() -> None:
    own = FastAPI()
    late, inner = APIRouter(), APIRouter()

    @ingress(own)
    class Early:
        name = "early"

        def method(self, x: int) -> str:
            return f"{self.name} {x}"

    own.get("/plain")(lambda: "plain")
    own.get("/method")(Early.method)
    late.get("/method")(Early.method)
    inner.get("/plain")(lambda: "inner")
    late.include_router(inner, prefix="/inner")
    own.include_router(late, prefix="/late")
    for alone in (False, True):
        made = Early()
        await made.__servd_startup__(alone=alone)
        async with client_of(made) as client:
            assert (await client.get("/plain")).json() == "plain"
            assert (await client.get("/method?x=1")).json() == "early 1"
            assert (await client.get("/late/method?x=2")).json() == "early 2"
            assert (await client.get("/late/inner/plain")).json() == "inner"


async def test_a_replica_may_change_its_application_while_it_runs() -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        own.get("/in-lifespan")(lambda: 1)
        yield

    own = FastAPI(lifespan=lifespan)

    @ingress(own)
    class Growing:
        def reconfigure(self, _: Any) -> None:
            own.add_api_route("/in-reconfigure", self.grown)

        def grown(self) -> int:
            return 2

    made = Growing()
    await made.__servd_startup__(alone=True)
    made.reconfigure(None)
    async with client_of(made) as client:
        assert (await client.get("/in-lifespan")).json() == 1
        assert (await client.get("/in-reconfigure")).json() == 2
    await made.__servd_shutdown__()


async def test_whose_routes_are_served() -> None:
    own = FastAPI()

    class Tools:
        @staticmethod
        @own.get("/static")
        def static() -> str:
            return "static"

    class Parent:
        name = "parent"

        @own.get("/inherited")
        def inherited(self) -> str:
            return self.name

    @ingress(own)
    class One(Parent):
        name = "one"

        @own.get("/read")
        def same(self) -> str:
            return "first"

        @own.post("/write")
        def same(self) -> str:  # noqa: F811
            return "second"

    @ingress(own)
    class Two(Parent):
        name = "two"

        @own.get("/two")
        def two(self) -> str:
            return "two"

    assert Tools.static() == "static"
    for kind, name, two in ((One, "one", 404), (Two, "two", 200)):
        async with client_of(kind()) as client:
            assert (await client.get("/inherited")).json() == name
            assert (await client.get("/static")).json() == "static"
            assert (await client.get("/two")).status_code == two
            assert (await client.get("/read")).status_code == (200 if kind is One else 404)
            assert (await client.post("/write")).status_code == (200 if kind is One else 404)
    # as a class of a function is in a replica that got it by value
    for part in One.__mro__[:-1]:
        part.__qualname__ = part.__name__
    async with client_of(One()) as client:
        assert ((await client.get("/read")).json(), (await client.post("/write")).json()) == ("first", "second")
    alone = Two()
    await alone.__servd_startup__(alone=True)
    async with client_of(alone) as client:
        assert (await client.get("/inherited")).json() == "two"
        assert (await client.get("/read")).status_code == 404
        assert set((await client.get("/openapi.json")).json()["paths"]) == {"/inherited", "/static", "/two"}


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
    built = servd.build(deployment.bind(servd.deployment(Other).bind(), more=1))
    assert list(built.deployments) == ["Other", "ASGIIngressDeployment"]
    assert made_apps == []
    made = kind(1, more=2)
    await made.__servd_startup__()
    async with client_of(made) as client:
        assert (await client.get("/")).json() == {"x": [0, 1]}
    assert len(made_apps) == 1
    assert (kind.__servd_docs_path__, made.__servd_docs_path__) == (None, "/docs")
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


def _shipped(target: Any) -> Any:
    loaded = pickling.load_application(pickling.dump_application(servd.deployment(target).bind()))
    return servd.build(loaded).ingress.func_or_class


@pytest.mark.parametrize("by_value", [False, True])
async def test_a_class_that_is_defined_again_under_its_name_has_its_own_routes(by_value: bool) -> None:
    own = FastAPI()

    class Tools:
        @own.get("/shared")
        def shared(self) -> str:
            return type(self).__name__ + self.name()

        def name(self) -> str:
            return ""

    def cell(version: str, path: str) -> Any:
        @ingress(own)
        class Chat(Tools):
            @own.get("/")
            def read(self) -> str:
                return self.name()

            @own.get(path)
            def other(self) -> str:
                return path

            def name(self) -> str:
                return version

        return Chat

    chats = [cell("first", "/a"), cell("second", "/b")]
    for chat, version, paths in zip(chats, ("first", "second"), ("a", "b"), strict=True):
        target = _shipped(chat) if by_value else chat
        async with client_of(target()) as client:
            assert (await client.get("/")).json() == version
            assert (await client.get("/shared")).json() == f"Chat{version}"
            assert [path for path in "ab" if (await client.get(f"/{path}")).status_code == 200] == [paths]


async def test_one_class_may_be_decorated_twice_and_lend_its_methods() -> None:
    own = FastAPI()

    class Chat:
        @own.get("/")
        def read(self) -> str:
            return type(self).__name__

    again = type("Chat", (), {"read": Chat.read, "__module__": __name__})
    for target in (ingress(own)(Chat), ingress(own)(Chat), ingress(own)(ingress(own)(Chat)), ingress(own)(again)):
        async with client_of(target()) as client:
            assert (await client.get("/")).json() == "Chat"
