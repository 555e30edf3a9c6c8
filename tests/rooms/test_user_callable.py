"""What user code sees in a replica: hooks, threads, kinds of handlers, HTTP and handle calls."""

import asyncio
import decimal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any, cast

import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse

from servd.app.deployment import make_deployment
from servd.calls.replica_context import ReplicaContext
from servd.calls.request_context import NO_REQUEST
from servd.exceptions import RayServeException, UserCodeError
from servd.ground.ids import DeploymentID, ReplicaID
from servd.replica import user_callable
from servd.replica.exchange import HttpExchange
from servd.replica.user_callable import UserCallable


class Ended:
    """What instances become that a replica keeps until it ends, which these tests never do: their `__del__` is over."""


@pytest.fixture(autouse=True)
def kept_instances(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kept: list[Any] = []
    monkeypatch.setattr(user_callable, "_closed", kept)
    yield
    for instance in kept:
        instance.__class__ = Ended


class Exchange:
    """One request as the server gives it; remembers the answer."""

    def __init__(self, path: str = "/x", kind: str = "http") -> None:
        self.scope: dict[str, Any] = {
            "type": kind,
            "method": "GET",
            "path": path,
            "root_path": "",
            "query_string": b"a=1",
            "headers": [],
            "asgi": {"version": "3.0", "spec_version": "2.4"},
        }
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.chunks: list[bytes] = []
        self.sent: list[dict[str, Any]] = []
        self.whole = False
        self.whole_below = 1024

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": b"the body", "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        elif message["type"] == "http.response.body" and message.get("body"):
            self.chunks.append(bytes(message["body"]))

    def finish(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.chunks, self.whole = status, dict(headers), [body], True

    async def answer(self, status: int, headers: Any, body: bytes) -> None:
        self.finish(status, headers, body)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


def a_callable(target: Any, *args: Any, threads: int = 1) -> UserCallable:
    deployment = make_deployment(target, {})
    deployment._init_args = args
    return UserCallable(
        deployment, ReplicaContext(ReplicaID(DeploymentID("x", "app"), "abc")), max_sync_threads=threads
    )


async def constructed(target: Any, *args: Any, threads: int = 1) -> UserCallable:
    user = a_callable(target, *args, threads=threads)
    await user.construct()
    return user


async def answer(user: UserCallable, exchange: Exchange | None = None) -> Exchange:
    exchange = exchange or Exchange()
    await user.handle_http(cast(HttpExchange, exchange))
    return exchange


async def call(user: UserCallable, method: str, *args: Any) -> Any:
    return await user.call(method, args, {}, NO_REQUEST)


async def stream(user: UserCallable, method: str, *args: Any) -> list[Any]:
    return [item async for item in user.stream(method, args, {}, NO_REQUEST)]


WORD: ContextVar[str] = ContextVar("word", default="nothing")


class Spans:
    """Generators that set something before an item and rely on it after."""

    def __call__(self) -> Iterator[str]:
        return self.words()

    def words(self) -> Iterator[str]:
        token = WORD.set("set")
        with decimal.localcontext() as precision:
            precision.prec = 3
            yield WORD.get()
            yield WORD.get()
            yield str(decimal.Decimal(1) / 3)
        WORD.reset(token)
        yield WORD.get()

    def set_outside(self) -> Iterator[str]:
        WORD.set("outside")
        return (WORD.get() for _ in range(2))

    async def set_by_async(self) -> Iterator[str]:
        WORD.set("async")
        return (WORD.get() for _ in range(2))


class Many:
    """One method of each kind."""

    async def __call__(self, request: Request) -> str:
        return f"{request.query_params['a']} {(await request.body()).decode()}"

    def sync(self, x: int) -> str:
        return f"{x} {threading.current_thread().name}"

    async def plain(self, x: int) -> int:
        return x

    def items(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def async_items(self, n: int) -> AsyncIterator[int]:
        for item in range(n):
            yield item

    def hidden_generator(self) -> Iterator[int]:
        return iter([1])

    async def exits(self) -> None:
        raise SystemExit(3)

    async def many(self) -> None:
        raise BaseExceptionGroup("many", [GeneratorExit()])

    def sync_exits(self) -> None:
        raise SystemExit(3)

    def stops(self) -> None:
        raise StopIteration

    def _private(self) -> str:
        return "mine"


async def test_http_and_handle_calls() -> None:
    user = await constructed(Many)
    assert (await answer(user)).body == b"1 the body"
    assert await call(user, "plain", 3) == 3
    assert await call(user, "sync", 3) == "3 sync-handler-0"
    assert await call(user, "_private") == "mine"
    assert await stream(user, "items", 3) == [0, 1, 2]
    assert await stream(user, "async_items", 3) == [0, 1, 2]
    assert user.running == 0


async def test_generators_and_streams_must_fit() -> None:
    user = await constructed(Many)
    for method in ("items", "async_items"):
        with pytest.raises(TypeError, match="stream=True"):
            await call(user, method, 3)
    with pytest.raises(TypeError, match="without `stream=True`"):
        await stream(user, "plain", 3)


async def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    user = await constructed(Many)
    for name in ("nothing", "_nothing", "__init__", "__class__"):
        with pytest.raises(RayServeException, match="public methods are: __call__, async_items, exits") as caught:
            await call(user, name)
        assert "_private" not in str(caught.value).partition("public methods")[2]


async def test_leaving_python_is_only_an_error_of_the_handler() -> None:
    user = await constructed(Many)
    for method, name in (("exits", "SystemExit"), ("sync_exits", "SystemExit"), ("many", "BaseExceptionGroup")):
        with pytest.raises(UserCodeError, match=name):
            await call(user, method)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await call(user, "stops")
    assert user.running == 0


def returning(make: Callable[[], Any]) -> Callable[..., Any]:
    async def handler() -> Any:
        return make()

    return handler


async def a_stream() -> AsyncIterator[Any]:
    yield "ü"
    yield {"a": 1}


async def two_words() -> AsyncIterator[str]:
    yield "a"
    yield "b"


@pytest.mark.parametrize(
    ("handler", "status", "content_type", "chunks"),
    [
        (returning(lambda: "x"), 200, b"text/plain; charset=utf-8", [b"x"]),
        (returning(lambda: {"a": [1]}), 200, b"application/json", [b'{"a": [1]}']),
        (returning(lambda: JSONResponse({"a": 1}, 201)), 201, b"application/json", [b'{"a":1}']),
        (returning(lambda: StreamingResponse(two_words(), media_type="x/y")), 200, b"x/y", [b"a", b"b"]),
        (returning(a_stream), 200, b"text/plain; charset=utf-8", ["ü".encode(), b'{"a": 1}']),
        (returning(lambda: (n for n in (1, b"2"))), 200, b"text/plain; charset=utf-8", [b"1", b"2"]),
        (lambda: "sync, no parameter", 200, b"text/plain; charset=utf-8", [b"sync, no parameter"]),
    ],
)
async def test_kinds_of_answers(
    handler: Callable[..., Any], status: int, content_type: bytes, chunks: list[bytes]
) -> None:
    user = await constructed(handler)
    exchange = await answer(user)
    assert (exchange.status, exchange.chunks) == (status, chunks)
    assert exchange.headers[b"content-type"] == content_type


async def test_background_tasks_run_after_the_response() -> None:
    done: list[int] = []

    async def handler() -> PlainTextResponse:
        return PlainTextResponse("x", background=BackgroundTask(done.append, 1))

    exchange = await answer(await constructed(handler))
    assert (exchange.body, done) == (b"x", [1])


@pytest.mark.parametrize("threads", [1, 3])
async def test_a_sync_generator_lives_in_one_context(threads: int) -> None:
    user = await constructed(Spans, threads=threads)
    expected = ["set", "set", "0.333", "nothing"]
    for _ in range(2):
        assert await stream(user, "words") == expected
        assert (await answer(user)).chunks == [word.encode() for word in expected]
        assert await stream(user, "set_outside") == ["outside", "outside"]
    # in a task of its own, as in a replica
    assert await asyncio.create_task(stream(user, "set_by_async")) == ["async", "async"]
    assert WORD.get() == "nothing"


async def test_an_error_before_the_first_item_leaves_the_response_unbegun() -> None:
    def handler() -> Iterator[int]:
        raise ValueError("early")
        yield 1

    exchange = Exchange()
    with pytest.raises(ValueError, match="early"):
        await answer(await constructed(handler), exchange)
    assert exchange.sent == []


async def test_a_stream_that_is_cancelled_closes_the_generator() -> None:
    closed: list[int] = []
    blocked = asyncio.Event()

    def handler() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(1)

    class Slow(Exchange):
        async def send(self, message: dict[str, Any]) -> None:
            await super().send(message)
            if self.chunks:
                blocked.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(answer(await constructed(handler), Slow()))
    await blocked.wait()
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), closed) == (True, [1])


async def test_a_class_without_call_cannot_answer() -> None:
    class Silent:
        pass

    with pytest.raises(RayServeException, match="no method `__call__`"):
        await answer(await constructed(Silent))


async def test_a_websocket_without_an_asgi_application_is_refused() -> None:
    exchange = await answer(await constructed(Many), Exchange(kind="websocket"))
    assert [message["type"] for message in exchange.sent] == ["websocket.close"]


async def test_an_asgi_ingress_gets_the_exchange_and_its_lifespan() -> None:
    events: list[str] = []

    class Ingress:
        async def __servd_asgi__(self, scope: Any, receive: Any, send: Any) -> None:
            await PlainTextResponse(f"asgi {scope['path']}")(scope, receive, send)

        async def __servd_startup__(self, *, alone: bool) -> None:
            events.append("startup")

        async def __servd_shutdown__(self) -> None:
            events.append("shutdown")

        def __del__(self) -> None:
            events.append("del")

    user = await constructed(Ingress)
    exchange = await answer(user)
    assert exchange.body == b"asgi /x"
    response = await call(user, "__call__", Request(Exchange("/y").scope))
    assert response.body == b"asgi /y"
    with pytest.raises(TypeError, match="with a Request"):
        await call(user, "__call__", 3)
    await user.close()
    await user.close()
    assert events == ["startup", "shutdown", "del"]


class Hooks:
    """Notes the thread of each hook; all handlers sync."""

    def __init__(self, seen: dict[str, str]) -> None:
        self.seen = seen
        self.note("init")

    def note(self, what: str) -> None:
        self.seen[what] = threading.current_thread().name

    def __call__(self) -> None:
        self.note("call")

    def reconfigure(self, _config: Any) -> None:
        self.note("reconfigure")

    async def check_health(self) -> None: ...

    def __del__(self) -> None:
        self.note("del")


class AsyncHooks(Hooks):
    """The same with one async handler."""

    async def other(self) -> None: ...


@pytest.mark.parametrize(("target", "expected"), [(Hooks, "sync-handler-0"), (AsyncHooks, "MainThread")])
async def test_threads_of_hooks(target: type, expected: str) -> None:
    seen: dict[str, str] = {}
    user = await constructed(target, seen, threads=3)
    await user.reconfigure({})
    await answer(user)
    await user.close()
    assert seen.pop("call").startswith("sync-handler")
    assert seen == dict.fromkeys(("init", "reconfigure", "del"), expected)


async def test_an_async_constructor_and_reconfigure_are_awaited() -> None:
    class Model:
        async def __init__(self, value: int) -> None:  # type: ignore[misc]
            await asyncio.sleep(0)
            self.value = value

        async def reconfigure(self, config: dict[str, int]) -> None:
            self.value += config["add"]

        def get(self) -> int:
            return self.value

    user = await constructed(Model, 3)
    await user.reconfigure({"add": 4})
    assert await call(user, "get") == 7


async def test_user_config_without_reconfigure_is_an_error() -> None:
    async def function() -> None: ...

    for target, kind in ((Many, "class"), (function, "function")):
        with pytest.raises(RayServeException, match=f"the {kind} .* has no method `reconfigure`"):
            await (await constructed(target)).reconfigure({})


async def test_reconfigure_is_exclusive() -> None:
    order: list[str] = []
    gate = asyncio.Event()

    class Model:
        async def work(self, name: str) -> None:
            order.append(f"{name} begins")
            await gate.wait()
            order.append(f"{name} ends")

        async def reconfigure(self, _config: Any) -> None:
            order.append("reconfigure")

    user = await constructed(Model)
    first = asyncio.create_task(call(user, "work", "first"))
    await asyncio.sleep(0)
    change = asyncio.create_task(user.reconfigure({}))
    await asyncio.sleep(0)
    second = asyncio.create_task(call(user, "work", "second"))
    dropped = asyncio.create_task(call(user, "work", "dropped"))
    await asyncio.sleep(0)
    assert order == ["first begins"]
    dropped.cancel()
    gate.set()
    await asyncio.wait([first, second, change, dropped])
    assert order == ["first begins", "first ends", "reconfigure", "second begins", "second ends"]
    assert (user.running, second.exception(), change.exception()) == (0, None, None)


async def test_a_failing_del_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Model:
        async def __del__(self) -> None:
            raise ValueError("cannot close")

    user = await constructed(Model)
    await user.close()
    assert "cannot close" in caplog.text
