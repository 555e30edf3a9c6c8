"""`DAGDriver` and every adapter over HTTP, from a real replica; deployed side by side with `run_many`."""

import base64
from typing import Any

import httpx
import pytest

import servd
from tests.apps.driver_graphs import GRAPHS

pytestmark = pytest.mark.slow

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC")


@pytest.fixture(scope="module")
def url(port: int) -> str:
    targets = [servd.RunTarget(make(), name, f"/{name}") for name, make in GRAPHS.items()]
    handles = servd.run_many(targets)
    assert handles[-1].predict.remote("by handle").result(20) == "by handle"
    assert handles[1].predict_with_route.remote("/plain", 1).result(20) == 1
    with pytest.raises(ValueError, match="different names"):
        servd.run_many([targets[0], targets[0]])
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("verb", "path", "options", "expected"),
    [
        ("POST", "/requests/a/kiwi", {"content": b"body"}, ["POST", "/requests/a/kiwi", {"name": "kiwi"}, "body"]),
        ("GET", "/requests/class?a=b", {}, "a=b"),
        ("POST", "/json/plain", {"json": ["MANGO", 2]}, ["MANGO", 2]),
        ("POST", "/array", {"json": {"array": [1, 2, 3, 4], "shape": [2, 2]}}, ["ndarray", 2, 2]),
        ("POST", "/arrays/any/path", {"json": {"a": {"array": [[1]]}, "b": {"array": [2, 3]}}}, {"a": 1.0, "b": 5.0}),
        ("POST", "/image", {"files": {"img": ("a.png", PIXEL)}}, ["ndarray", 1, 1, 3]),
        ("POST", "/frame?orient=split", {"json": {"columns": ["a"], "data": [[1], [2]]}}, ["DataFrame", 2, 1]),
        ("GET", "/function?count=3", {}, "xxx"),
    ],
)
def test_input_becomes_what_the_graph_takes(url: str, verb: str, path: str, options: Any, expected: Any) -> None:
    answer = httpx.request(verb, url + path, timeout=20, **options)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), answer.text
    assert answer.json() == expected
    # FastAPI's form of JSON
    assert ", " not in answer.text


@pytest.mark.parametrize(
    ("verb", "path", "options", "status", "text"),
    [
        ("GET", "/requests/nothing", {}, 404, '{"detail":"Not Found"}'),
        ("PUT", "/json/plain", {"json": 1}, 405, ""),
        ("GET", "/function?count=z", {}, 422, '"loc":["query","count"]'),
        ("POST", "/image", {"files": {"other": ("a.png", PIXEL)}}, 422, '"loc":["body","img"]'),
        ("POST", "/array", {"json": {"array": "x"}}, 422, '"loc":["body"'),
        ("POST", "/json/plain", {"content": b"{"}, 500, "Internal Server Error"),
        ("POST", "/json/fail", {"json": "kiwi"}, 500, "Internal Server Error"),
    ],
)
def test_what_does_not_fit(url: str, verb: str, path: str, options: Any, status: int, text: str) -> None:
    answer = httpx.request(verb, url + path, timeout=20, **options)
    assert (answer.status_code, text in answer.text) == (status, True), answer.text
