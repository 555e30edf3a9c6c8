"""DAGDriver over HTTP: routes, verbs, adapters, encoding; driven as an ASGI application in this process."""

import asyncio
import base64
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import BaseModel
from starlette.requests import Request

import servd
from servd import http_adapters
from servd.dag import InputNode
from servd.drivers import DAGDriver, load_http_adapter
from servd.exceptions import ServdError
from servd.http_adapters import json_request, json_to_multi_ndarray, json_to_ndarray, starlette_request
from servd.local.mode import RUNS


class Point(BaseModel):
    x: int
    y: int = 0


@servd.deployment
class Echo:
    def plain(self, value: Any) -> Any:
        return value

    def total(self, array: Any) -> Any:
        return array.sum()

    def keys(self, arrays: Any) -> Any:
        return {key: array.tolist() for key, array in arrays.items()}

    def norm(self, point: Any) -> Any:
        return point.x + point.y

    async def describe(self, request: Any) -> Any:
        return [request.method, request.url.path, request.path_params, (await request.body()).decode()]

    def array(self, _: Any) -> Any:
        return np.arange(2)

    def shape(self, array: Any) -> Any:
        return list(array.shape)

    def fail(self, _: Any) -> Any:
        raise ValueError("from the graph")

    def __call__(self, request: Any) -> Any:
        return request.url.query


def of(method: str) -> Any:
    """A graph of one call."""
    with InputNode() as inp:
        return getattr(Echo.bind(), method).bind(inp)


@pytest.fixture
def local() -> Iterator[None]:
    yield
    RUNS.close()


def ask(app: Any, method: str, path: str, *, root_path: str = "", **options: Any) -> httpx.Response:
    """One HTTP request to a local application's driver, on the application's own loop."""
    servd.run(app, local=True)
    caller = RUNS._callers["default"]
    instance = caller._replicas["default_DAGDriver"][0]._instance

    async def exchange() -> httpx.Response:
        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            await instance.__servd_asgi__(scope, receive, send)

        transport = httpx.ASGITransport(asgi, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://d") as client:
            return await client.request(method, path, **options)

    assert RUNS._loop is not None
    assert threading.current_thread() is threading.main_thread()
    return asyncio.run_coroutine_threadsafe(exchange(), RUNS._loop).result(10)


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("path", ["/", "/any/where"])
def test_a_single_graph_answers_every_path(path: str) -> None:
    app = DAGDriver.bind(of("plain"), http_adapter=json_request)
    answer = ask(app, "POST", path, json=["MANGO", 2])
    assert (answer.status_code, answer.json(), answer.text) == (200, ["MANGO", 2], '["MANGO",2]')
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.usefixtures("local")
def test_the_prefix_itself_is_answered() -> None:
    app = DAGDriver.bind(of("plain"), http_adapter=json_request)
    assert ask(app, "POST", "/fruit", root_path="/fruit", json="x").text == '"x"'
    app = DAGDriver.bind(of("norm"), http_adapter=Point)
    assert ask(app, "POST", "/fruit", root_path="/fruit", json={"x": 1}).json() == 1


@servd.deployment
def hello() -> str:
    return "hello"


@servd.deployment
class Hello:
    def __call__(self) -> str:
        return "hello"


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("bound", [hello, Hello])
def test_a_handler_without_parameter_is_called_without_the_input(bound: Any) -> None:
    assert ask(DAGDriver.bind(bound.bind(), http_adapter=json_request), "POST", "/", json=1).json() == "hello"
    assert ask(DAGDriver.bind({"/a": bound.bind()}), "GET", "/a").json() == "hello"


@pytest.mark.usefixtures("local")
def test_other_verbs() -> None:
    app = DAGDriver.bind(of("plain"), http_adapter=json_request)
    assert ask(app, "PUT", "/", json=1).status_code == 405
    assert ask(DAGDriver.bind(of("norm"), http_adapter=Point), "PUT", "/", json={"x": 1}).status_code == 405


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("adapter", [None, starlette_request, "servd.http_adapters.starlette_request"])
def test_the_request_itself(adapter: Any) -> None:
    answer = ask(DAGDriver.bind({"/a/{name}": of("describe")}, adapter), "POST", "/a/kiwi", content=b"body")
    assert answer.json() == ["POST", "/a/kiwi", {"name": "kiwi"}, "body"]


@pytest.mark.usefixtures("local")
def test_routes() -> None:
    def app(adapter: Any = None) -> Any:
        return DAGDriver.bind({"/one": of("describe"), "/two": Echo.bind()}, adapter)

    assert ask(app(), "GET", "/one").json()[1] == "/one"
    assert ask(app(), "GET", "/two?a=b").json() == "a=b"
    missing = ask(app(), "GET", "/three")
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})


@pytest.mark.usefixtures("local")
def test_a_class_as_adapter_validates_the_body() -> None:
    app = DAGDriver.bind(of("norm"), http_adapter=Point)
    assert ask(app, "POST", "/", json={"x": 1, "y": 2}).json() == 3
    wrong = ask(app, "POST", "/", json={"y": 2})
    assert wrong.status_code == 422
    assert wrong.json()["detail"][0]["loc"] == ["body", "x"]


@pytest.mark.usefixtures("local")
def test_a_function_as_adapter_has_fastapis_parameters() -> None:
    def adapter(count: int, word: str = "x") -> str:
        return count * word

    app = DAGDriver.bind(of("plain"), http_adapter=adapter)
    assert ask(app, "GET", "/?count=3").json() == "xxx"
    assert ask(app, "GET", "/?count=z").status_code == 422


@pytest.mark.usefixtures("local")
def test_arrays() -> None:
    body = {"array": [1, 2, 3, 4], "shape": [2, 2], "dtype": "int64"}
    assert ask(DAGDriver.bind(of("shape"), json_to_ndarray), "POST", "/", json=body).json() == [2, 2]
    assert ask(DAGDriver.bind(of("total"), json_to_ndarray), "POST", "/", json=body).json() == 10
    several = {"a": {"array": [[1]]}, "b": {"array": [2]}}
    answer = ask(DAGDriver.bind(of("keys"), json_to_multi_ndarray), "POST", "/", json=several)
    assert answer.json() == {"a": [[1.0]], "b": [2.0]}
    assert ask(DAGDriver.bind(of("array")), "GET", "/").json() == [0, 1]


@pytest.mark.usefixtures("local")
def test_images() -> None:
    pixel = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
    )
    app = DAGDriver.bind(of("shape"), http_adapters.image_to_ndarray)
    assert ask(app, "POST", "/", files={"img": ("a.png", pixel)}).json() == [1, 1, 3]
    assert ask(app, "POST", "/", files={"other": ("a.png", pixel)}).status_code == 422


@pytest.mark.usefixtures("local")
def test_frames() -> None:
    body = {"columns": ["a", "b"], "data": [[1, 2], [3, 4]]}
    app = DAGDriver.bind(of("shape"), http_adapters.pandas_read_json)
    assert ask(app, "POST", "/?orient=split", json=body).json() == [2, 2]


@pytest.mark.parametrize(("adapter", "library"), [("image_to_ndarray", "PIL.Image"), ("pandas_read_json", "pandas")])
async def test_adapters_name_the_missing_library(adapter: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"needs (Pillow|pandas): install it"):
        await getattr(http_adapters, adapter)(Request({"type": "http"}))


def test_form_fields_are_found_in_the_body() -> None:
    request = httpx.Request("POST", "http://x", files={"a": b"1", "img": ("n", b"\r\n\x00binary\r\n")})
    found = http_adapters._form_field(request.read(), request.headers["content-type"], "img")
    assert found == b"\r\n\x00binary\r\n"
    assert http_adapters._form_field(b"", "text/plain", "img") is None


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("adapter", [json_request, Point])
def test_errors_come_out_for_the_replica_to_answer(adapter: Any) -> None:
    with pytest.raises(ValueError, match="from the graph"):
        ask(DAGDriver.bind(of("fail"), adapter), "POST", "/", json={"x": 1})


@pytest.mark.usefixtures("local")
def test_handles_predict() -> None:
    handle = servd.run(DAGDriver.bind(of("plain")), local=True)
    assert handle.predict.remote(5).result(5) == 5
    handle = servd.run(DAGDriver.bind({"/a": of("plain")}), local=True)
    assert handle.predict_with_route.remote("/a", 6).result(5) == 6
    with pytest.raises(ServdError, match="/b"):
        handle.predict_with_route.remote("/b", 6).result(5)


def test_wrong_adapters() -> None:
    def bare(x):  # type: ignore[no-untyped-def]
        return x

    for wrong in (1, len, bare):
        with pytest.raises(ValueError):
            load_http_adapter(wrong)
