"""What handlers return, over HTTP; what goes wrong in them, at their callers; and that the replica lives on."""

import asyncio
import dataclasses
import datetime
import enum
import math
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse

import servd
from servd.exceptions import ServdError, UserCodeError
from tests.system.running_daemon import eventually


class Fruit(BaseModel):
    name: str
    price: float = 1.5


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 2


VALUES: dict[str, Any] = {
    "none": None,
    "bytes": b"\x00\xff",
    "str": "käse",
    "bool": True,
    "int": 3,
    "float": 0.5,
    "nan": math.nan,
    "dict": {"a": 1, "ü": [1, 2]},
    "list": [1, "a"],
    "tuple": (1, 404),
    "set": {7},
    "array": np.array([[1, 2], [3, 4]]),
    "scalar": np.float64(2.5),
    "frame": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
    "error": ValueError("wrong"),
    "model": Fruit(name="kiwi"),
    "dataclass": Point(1),
    "enum": Colour.RED,
    "datetime": datetime.datetime(2024, 1, 2, 3, 4, 5),
    "nested": {"fruit": Fruit(name="kiwi"), "at": [np.int64(4)]},
    "response": JSONResponse({"own": 1}, 418, {"x-own": "yes"}),
    "object": object(),
}
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
ANSWERS: dict[str, tuple[int, str, bytes]] = {
    "none": (200, "text/plain", b""),
    "bytes": (200, "text/plain", b"\x00\xff"),
    "str": (200, TEXT, "käse".encode()),
    "bool": (200, JSON, b"true"),
    "int": (200, JSON, b"3"),
    "float": (200, JSON, b"0.5"),
    "nan": (200, JSON, b"null"),
    "dict": (200, JSON, rb'{"a": 1, "\u00fc": [1, 2]}'),
    "list": (200, JSON, b'[1, "a"]'),
    "tuple": (200, JSON, b"[1, 404]"),
    "set": (200, JSON, b"[7]"),
    "array": (200, JSON, b"[[1, 2], [3, 4]]"),
    "scalar": (200, JSON, b"2.5"),
    "frame": (200, JSON, b'[{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]'),
    "error": (200, JSON, b'"wrong"'),
    "model": (200, JSON, b'{"name": "kiwi", "price": 1.5}'),
    "dataclass": (200, JSON, b'{"x": 1, "y": 2}'),
    "enum": (200, JSON, b'"red"'),
    "datetime": (200, JSON, b'"2024-01-02T03:04:05"'),
    "nested": (200, JSON, b'{"fruit": {"name": "kiwi", "price": 1.5}, "at": [4]}'),
    "response": (418, JSON, b'{"own":1}'),
    "generator": (200, TEXT, b'a\x01{"b": 2}null'),
    "async generator": (200, TEXT, b'a\x01{"b": 2}null'),
}


class NotMine(Exception):
    """Cannot be rebuilt: its constructor wants what it does not keep, and it holds a lock."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} {code}")
        self.lock = threading.Lock()


@servd.deployment(max_ongoing_requests=20)
class Any_:
    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.pid = os.getpid()

    async def __call__(self, request: Request) -> Any:
        kind = request.query_params["kind"]
        if kind == "async generator":
            return self.items()
        if kind == "generator":
            return self.sync_items()
        if kind == "half":
            return self.half()
        if kind == "raises":
            raise LookupError("nothing here")
        if kind == "exit":
            raise SystemExit(3)
        if kind == "exit in a task":
            await asyncio.gather(self.exits_later())
        if kind == "wait":
            return await self.wait(request.query_params["name"])
        if kind == "wait_there":
            return await servd.get_deployment_handle("Any_").wait.remote(request.query_params["name"])
        return VALUES[kind]

    async def items(self) -> AsyncIterator[Any]:
        for item in ("a", b"\x01", {"b": 2}, None):
            yield item

    def sync_items(self) -> Iterator[Any]:
        yield from ("a", b"\x01", {"b": 2}, None)

    async def half(self) -> AsyncIterator[Any]:
        yield "first"
        await asyncio.sleep(0)
        raise ValueError("in the middle")

    async def wait(self, name: str) -> None:
        path = Path(self.folder, name)
        path.with_suffix(".begun").touch()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            path.with_suffix(".cancelled").touch()
            raise

    def own_pid(self) -> int:
        return self.pid

    def give(self, value: Any) -> Any:
        return value

    def unpicklable(self) -> Any:
        return threading.Lock()

    def raise_not_mine(self) -> None:
        raise NotMine(7, reason="because")

    async def exits_later(self) -> None:
        raise SystemExit(3)

    def exits(self) -> None:
        raise SystemExit(3)

    @servd.batch(max_batch_size=4, batch_wait_timeout_s=0.05)
    async def miscount(self, items: list[int]) -> list[int]:
        return items[1:]

    @servd.batch(max_batch_size=4, batch_wait_timeout_s=0.05)
    async def one_bad(self, items: list[int]) -> list[Any]:
        return [ValueError("bad") if item == 0 else item for item in items]

    @servd.multiplexed(max_num_models_per_replica=1)
    async def model(self, model_id: str) -> str:
        if model_id == "missing":
            raise FileNotFoundError(model_id)
        return model_id

    async def use_model(self) -> str:
        found: str = await self.model(servd.get_multiplexed_model_id())
        return found

    async def blocks(self) -> Any:
        return servd.get_deployment_handle("Any_").own_pid.remote().result()

    async def blocks_stream(self) -> Any:
        return list(servd.get_deployment_handle("Any_").options(stream=True).sync_items.remote())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def handle(port: int, folder: Path) -> Any:
    return servd.run(Any_.bind(str(folder)), route_prefix="/any")


@pytest.fixture
def same_replica(handle: Any) -> Iterator[None]:
    """The replica lives on."""
    before = handle.own_pid.remote().result(20)
    yield
    assert handle.own_pid.remote().result(20) == before


def ask(port: int, kind: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}/any", params={"kind": kind}, timeout=20)


pytestmark = pytest.mark.usefixtures("same_replica")


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_a_handler_returns(port: int, kind: str) -> None:
    answer = ask(port, kind)
    assert (answer.status_code, answer.headers["content-type"], answer.content) == ANSWERS[kind]


@pytest.mark.parametrize("kind", ["raises", "object", "exit", "exit in a task"])
def test_what_a_handler_must_not_do(port: int, kind: str) -> None:
    answer = ask(port, kind)
    assert (answer.status_code, answer.headers["content-type"]) == (500, TEXT)
    assert answer.text == f"Internal Server Error (request id {answer.headers['x-request-id']})"


def test_a_generator_that_raises_half_way(port: int, handle: Any) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        ask(port, "half")
    items = handle.options(stream=True).half.remote()
    assert next(items) == "first"
    with pytest.raises(ValueError, match="in the middle"):
        next(items)


def test_a_client_that_goes_cancels_its_handler(port: int, folder: Path) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /any?kind=wait&name=gone HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually((folder / "gone.begun").exists)
    eventually((folder / "gone.cancelled").exists)


def test_what_cannot_travel(handle: Any) -> None:
    with pytest.raises(TypeError, match="lock"):
        handle.give.remote(threading.Lock()).result(20)
    with pytest.raises(TypeError, match="lock"):
        handle.unpicklable.remote().result(20)
    with pytest.raises(UserCodeError, match="because 7"):
        handle.raise_not_mine.remote().result(20)


def test_methods_that_are_none(handle: Any) -> None:
    with pytest.raises(ServdError, match=r"no method 'nothing'.*own_pid"):
        handle.nothing.remote().result(20)
    with pytest.raises(ServdError, match="no method '_private'"):
        handle.options(method_name="_private").remote().result(20)
    with pytest.raises(TypeError, match="stream=True"):
        handle.half.remote().result(20)
    with pytest.raises(TypeError, match="no generator"):
        list(handle.options(stream=True).own_pid.remote())
    with pytest.raises(TypeError, match="argument"):
        handle.own_pid.remote(1, 2, 3).result(20)


def test_a_handler_that_exits(handle: Any) -> None:
    with pytest.raises(UserCodeError, match="SystemExit: 3"):
        handle.exits.remote().result(20)


def test_a_task_that_exits_leaves_the_replica_alone(port: int, handle: Any) -> None:
    pid = handle.own_pid.remote().result(20)
    assert ask(port, "exit in a task").status_code == 500
    assert handle.own_pid.remote().result(20) == pid


def test_batches_that_go_wrong(handle: Any) -> None:
    calls = [handle.miscount.remote(n) for n in range(3)]
    for call in calls:
        with pytest.raises(ServdError, match=r"got 3 items and gave 2 results"):
            call.result(20)
    good, bad = handle.one_bad.remote(1), handle.one_bad.remote(0)
    assert good.result(20) == 1
    with pytest.raises(ValueError, match="bad"):
        bad.result(20)


def test_a_model_that_cannot_be_loaded(handle: Any) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        handle.options(multiplexed_model_id="missing").use_model.remote().result(20)
    assert handle.options(multiplexed_model_id="here").use_model.remote().result(20) == "here"
    with pytest.raises(ValueError, match="names no model"):
        handle.use_model.remote().result(20)


def test_waiting_on_an_event_loop(handle: Any) -> None:
    with pytest.raises(RuntimeError, match="await"):
        handle.blocks.remote().result(20)
    with pytest.raises(RuntimeError, match="async for"):
        handle.blocks_stream.remote().result(20)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_replicas": "three"}, ValueError),
        ({"num_replicas": -1}, ValueError),
        ({"max_ongoing_requests": 0}, ValueError),
        ({"max_ongoing_requests": 5, "max_concurrent_queries": 6}, ValueError),
        ({"name": 5}, TypeError),
        ({"ray_actor_options": [1]}, TypeError),
        ({"unheard_of": 1}, TypeError),
        ({"autoscaling_config": {"min_replicas": 3, "max_replicas": 1}}, ValueError),
        ({"user_config": object()}, ValueError),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        servd.deployment(**options)(Any_.func_or_class)


def test_time_runs_out_for_a_handler_and_the_calls_it_made(port: int, folder: Path) -> None:
    headers = {"x-request-timeout-seconds": "0.5"}
    url = f"http://127.0.0.1:{port}/any"
    answer = httpx.get(url, params={"kind": "wait", "name": "late"}, headers=headers, timeout=20)
    assert answer.status_code == 408
    eventually((folder / "late.cancelled").exists)
    answer = httpx.get(url, params={"kind": "wait_there", "name": "there"}, headers=headers, timeout=20)
    assert answer.status_code == 408
    eventually((folder / "there.cancelled").exists)
