"""The same documents on servd and on a real Ray 2.60, byte for byte, for applications that are written with `import servd`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.clusters import (
    ROOT,
    SERVD_ADMIN_PORT,
    SERVD_PORT,
    Answer,
    Head,
    needs_ray,
    one_node,
    servd_beside,
)

pytestmark = needs_ray
CONFIGS = ROOT / "configs"


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
    ]
    found = both.same(*asks)
    assert [body for *_, body in found] == ["14", "14", "14", "2.5", "15 pizzas please!", "30 pizzas please!"]


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
    )
    assert [status for status, *_ in found] == [200] * 4 + [404, 405, 422]
