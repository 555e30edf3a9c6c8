"""The same documents on servd and on a real Ray 2.60, byte for byte, for applications that are written with `import servd`."""

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.clusters import (
    RAY,
    ROOT,
    SERVD_ADMIN_PORT,
    SERVD_PORT,
    Answer,
    Head,
    needs_ray,
    one_node,
    servd_beside,
)
from tests.fakes import wait_until

pytestmark = needs_ray
CODE, CONFIGS = ROOT / "tests" / "engines" / "code", ROOT / "configs"


class Both:
    """A servd and a cluster with the same applications."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def deploy(self, path: Path) -> None:
        self.head.deploy(path)
        daemon = ["--engine", "servd", "-a", f"http://127.0.0.1:{SERVD_ADMIN_PORT}"]
        # a document of the other kind may have been there before
        for command in (["shutdown", "--yes"], ["deploy", str(path), "--wait", "--timeout", "300"]):
            code, out, err = self.head.servd(*command, *daemon)
            assert code == 0, out + err

    def answers(self, *asks: dict[str, Any]) -> list[tuple[Answer, Answer]]:
        """servd's and the cluster's, of each."""
        own = self.head.do("in_turn", asks=asks, port=SERVD_PORT)
        theirs = self.head.do("in_turn", asks=asks)
        return [(tuple(one), tuple(other)) for one, other in zip(own, theirs, strict=True)]

    def same(self, *asks: dict[str, Any]) -> list[Answer]:
        """The answers, which are the same."""
        found = self.answers(*asks)
        assert [(ask, theirs) for ask, (_, theirs) in zip(asks, found, strict=True)] == [
            (ask, own) for ask, (own, _) in zip(asks, found, strict=True)
        ]
        return [own for own, _ in found]


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with one_node() as head, servd_beside(head):
        yield Both(head)


def post(path: str, value: Any) -> dict[str, Any]:
    return {"path": path, "body": json.dumps(value)}


def test_the_fruit_stand_alone(both: Both) -> None:
    both.deploy(CONFIGS / "fruit.yaml")
    found = both.same(*(post("/", [fruit, 2]) for fruit in ("MANGO", "ORANGE", "PEAR", "KIWI")))
    assert [body for *_, body in found] == ["14", "4", "10", "-1"]


def test_two_applications(both: Both) -> None:
    both.deploy(CONFIGS / "multi.yaml")
    asks = [
        *(post(f"/fruit{path}", ["MANGO", 2]) for path in ("", "/", "/any/path")),
        post("/fruit", ["PEAR", 0.5]),
        post("/math", ["ADD", 10]),
        post("/math", ["MUL", 10]),
        # what does not fit
        {"path": "/fruit", "body": "{"},
        {"path": "/fruit", "verb": "DELETE"},
        {"path": "/fruit", "verb": "HEAD"},
    ]
    found = both.same(*asks)
    assert [body for *_, body in found[:6]] == ["14", "14", "14", "2.5", "15 pizzas please!", "30 pizzas please!"]
    # the exceptions
    (own, theirs), (own_routes, their_routes) = both.answers({"path": "/nothing"}, {"path": "/-/routes"})
    assert (own[0], theirs[0], own[2].lower() == theirs[2].lower()) == (404, 404, False)
    assert {key: f"{value}_{name}" for (key, value), name in zip(
        sorted(json.loads(their_routes[2]).items()), ("DAGDriver", "Router"), strict=True
    )} == json.loads(own_routes[2])  # fmt: skip


GRAPHS = """\
http_options: {host: 127.0.0.1}
applications:
""" + "".join(
    f"- {{name: {name}, route_prefix: /{name}, import_path: 'driver_graphs:build', args: {{graph: {name}}},\n"
    f"   runtime_env: {{working_dir: {ROOT / 'tests' / 'apps'}, excludes: ['test_*', 'ray_style']}}}}\n"
    for name in ("requests", "json", "array")
)


def test_graphs_behind_a_driver(both: Both) -> None:
    path = both.head.folder / "graphs.yaml"
    path.write_text(GRAPHS)
    both.deploy(path)
    found = both.same(
        {"path": "/requests/a/kiwi", "body": "body"},
        {"path": "/requests/class?a=b"},
        post("/json/plain", ["MANGO", 2]),
        post("/array", {"array": [1, 2, 3, 4], "shape": [2, 2]}),
        # what does not fit
        {"path": "/requests/nothing"},
        {"path": "/json/plain", "verb": "PUT", "body": "1"},
        post("/array", {"array": "x"}),
        {"path": "/json/plain", "body": "{"},
        post("/json/fail", "kiwi"),
    )
    assert [status for status, *_ in found] == [200] * 4 + [404, 405, 422, 500, 500]


NAMES = (
    "answers", "batched", "model", "growing", "cancelled", "kept", "alone", "sync", "together", "slow", "ticks", "fast", "outer",
)  # fmt: skip
OWN = """\
http_options: {host: 127.0.0.1}
applications:
""" + "".join(
    f"- {{name: {name}, route_prefix: /{name}, import_path: 'own:{name}', runtime_env: {{working_dir: {CODE}}}}}\n"
    for name in NAMES
).replace("own:outer',", "own:outer', deployments: [{name: Outer, user_config: {word: file}}],")


@pytest.fixture(scope="module")
def own(both: Both) -> Both:
    path = both.head.folder / "own.yaml"
    path.write_text(OWN)
    both.deploy(path)
    # the same again restarts nothing, and servd's package is there already
    before = both.head.pids()
    assert "Uploaded" not in both.head.deploy(path)
    assert both.head.pids() == before
    return both


def test_values_and_requests(own: Both) -> None:
    kinds = ("none", "text", "bytes", "int", "float", "nan", "bool", "dict", "list", "tuple", "empty", "response")
    found = own.same(
        *({"path": f"/answers?kind={kind}"} for kind in kinds),
        {"path": "/answers?kind=dict", "verb": "HEAD"},
        {"path": "/answers/a%20b/c?kind=request&x=1&x=2", "verb": "PATCH", "body": "body"},
        {"path": "/slow"},
        {"path": "/fast/number?value=3"},
        {"path": "/fast/number?value=x"},
        {"path": "/fast/nothing"},
        {"path": "/fast/docs"},
        {"path": "/fast/openapi.json"},
        {"path": "/fast/late"},
        {"path": "/outer"},
    )
    assert [found[3], found[4][2], found[14][0]] == [(200, "application/json", "7"), "0.1", 408]
    assert json.loads(found[-1][2]) == {
        "word": "file", "name": "Outer", "echo": [3], "two steps": 4, "request": "/outer", "stream": [0, 1, 2],
        "error": "no x",
    }  # fmt: skip


def test_a_failure_and_where_it_is_told(own: Both) -> None:
    ask = {"path": "/answers?kind=error", "headers": {"x-request-id": "failing-1"}}
    ((status, _, body),) = own.same(ask)
    assert (status, body) == (500, "Internal Server Error (request id failing-1)")
    (replica,) = own.head.status()["answers"]["deployments"]["Answers"]["replicas"]
    log = own.head.folder / "r" / "session_latest" / "logs" / replica["log_file_path"].lstrip("/")
    asyncio.run(wait_until(lambda: "LookupError: no such kind" in log.read_text(), 20))
    assert "user_code_failed method=__call__ requests=failing-1" in log.read_text()


def test_streams_and_websockets(own: Both) -> None:
    found = own.same(
        {"path": "/ticks"},
        {"path": "/fast/stream?count=100"},
        {"path": "/fast/stream?count=0"},
        {"path": "/fast/stream?count=3&type=text/event-stream"},
        {"path": f"/fast/bytes?size={2**20}"},
        {"path": "/fast/echo", "say": ["one", [0, 1, 255], "x" * 100_000, "bye"]},
        {"path": "/fast/echo", "say": ["bye"], "subprotocols": ["other", "own"]},
    )
    assert found[0][2] == '{"tick": 0}{"tick": 1}{"tick": 2}'
    assert len(found[4][2]) == 2**20
    assert found[5] == (4001, "said bye", [None, "ONE", [255, 1, 0], "X" * 100_000])  # type: ignore[comparison-overlap]
    assert found[6] == (4001, "said bye", ["own"])  # type: ignore[comparison-overlap]


def test_a_preloaded_model(own: Both) -> None:
    found = own.same(*({"path": f"/model?row={row}"} for row in (0, 12, 999)))
    assert json.loads(found[1][2]) == {"square": 144, "starts": 1}


def test_how_many_run_together(own: Both) -> None:
    assert set(own.head.at_once("/sync", 20)) == {"1"}
    assert set(own.head.at_once("/together?count=20", 20)) == {"20"}
    assert own.head.at_once("/batched", 32) == ["16"] * 32


def test_what_a_deployment_has_no_room_for_is_refused(own: Both) -> None:
    folder = a_folder(own, "alone")
    found = own.head.do(
        "pressed", path=f"/alone?folder={folder}", count=5, refused=4, began=f"{folder}/began", go=f"{folder}/go"
    )
    assert sorted(found) == [200, 200, 503, 503, 503, 503]


def a_folder(own: Both, name: str) -> Path:
    folder = own.head.folder / name
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("name", "expected"), [("cancelled", "cancelled"), ("kept", "finished")])
def test_a_caller_who_hangs_up(own: Both, name: str, expected: str) -> None:
    folder = a_folder(own, name)
    own.head.do("leave", path=f"/{name}?folder={folder}", began=f"{folder}/began")
    if name == "kept":
        (folder / "go").touch()
    asyncio.run(wait_until(lambda: (folder / expected).exists(), 30))


def test_a_replica_that_outgrows_its_limit_is_replaced(own: Both) -> None:
    done = own.head.folder / "replaced"
    first = own.head.get("/growing")[2]
    found: list[list[Any]] = []
    asking = threading.Thread(target=lambda: found.extend(own.head.do("meanwhile", path="/growing", until=str(done))))
    assert own.head.get("/growing?bytes=800000000")[2] == first
    asking.start()
    try:
        asyncio.run(wait_until(lambda: own.head.get("/growing")[2] != first, 90))
    finally:
        done.touch()
        asking.join()
    assert {status for status, *_ in found} == {200}


EXAMPLES = f"""\
http_options: {{host: 127.0.0.1}}
applications:
- {{name: vectors, route_prefix: /vectors, import_path: "vectors:build", args: {{rows: 1000}},
   runtime_env: {{working_dir: {ROOT / "examples" / "vectors"}}},
   deployments: [{{name: Neighbours, num_replicas: 2, preload: true}}]}}
- {{name: story, route_prefix: /story, import_path: "storyteller:app",
   runtime_env: {{working_dir: {ROOT / "examples" / "storyteller"}}}}}
"""
IRIS = f"""\
- {{name: iris, route_prefix: /iris, import_path: "iris:app",
   runtime_env: {{working_dir: {ROOT / "examples" / "onnxruntime"}}}}}
"""


def test_the_examples_with_models(both: Both) -> None:
    path = both.head.folder / "examples.yaml"
    path.write_text(EXAMPLES)
    both.deploy(path)
    ((_, _, vectors),) = both.same({"path": "/vectors?row=7"})
    assert json.loads(vectors)["row"] == 7
    # its words are random
    for answer in both.answers({"path": "/story/?prompt=the+function&words=40"})[0]:
        assert (answer[0], len(answer[2].split())) == (200, 42)


def test_an_example_with_a_model_of_onnxruntime(both: Both) -> None:
    for python in (sys.executable, f"{RAY}/python"):
        if both.head.run(python, "-c", "import numpy, onnxruntime")[0]:
            pytest.skip(f"{python} has no onnxruntime")
    path = both.head.folder / "iris.yaml"
    path.write_text(EXAMPLES + IRIS)
    both.deploy(path)
    ask = {**post("/iris/", [[5.1, 3.5, 1.4, 0.2]]), "headers": {"content-type": "application/json"}}
    ((_, _, iris),) = both.same(ask)
    assert json.loads(iris)[0]["species"] == "setosa"
