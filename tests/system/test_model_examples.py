"""The examples with models, each from its document, on one daemon."""

import contextlib
import http.client
import importlib.metadata
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.system.running_daemon import LIMIT_S, RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
EXAMPLES = ("digits", "iris", "storyteller")
CLIENTS = 40


def document_of(name: str) -> dict[str, Any]:
    """As an application of its own, on its own route."""
    document = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    del document["host"]
    folder = (ROOT / "configs" / document["runtime_env"]["working_dir"]).resolve()
    return {**document, "name": name, "route_prefix": f"/{name}", "runtime_env": {"working_dir": str(folder)}}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with a_daemon(settings_in(tmp_path_factory.mktemp("models"))) as made:
        applications = [document_of(name) for name in EXAMPLES]
        code, text = made.ask("PUT", "/api/serve/applications/", {"applications": applications})
        assert code == 200, text
        eventually(lambda: all(status_of(made, name)["status"] == "RUNNING" for name in EXAMPLES))
        yield made


def status_of(daemon: RunningDaemon, name: str) -> dict[str, Any]:
    status: dict[str, Any] = daemon.status()["applications"].get(name, {"status": "", "message": ""})
    assert status["status"] != "DEPLOY_FAILED", status["message"]
    return status


@contextlib.contextmanager
def a_client(daemon: RunningDaemon) -> Iterator[Callable[[str, Any], tuple[int, Any]]]:
    """Posts JSON on one connection: status code and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.http_port, timeout=LIMIT_S)

    def post(path: str, body: Any) -> tuple[int, Any]:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    with contextlib.closing(connection):
        yield post


def test_digits_are_read_in_batches_by_as_many_replicas_as_the_load_wants(daemon: RunningDaemon) -> None:
    # read without scikit-learn, whose import takes longer than the test
    file = importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    digits = np.loadtxt(str(file), delimiter=",", max_rows=CLIENTS)
    images, expected = digits[:, :-1].tolist(), digits[:, -1].tolist()
    is_over = threading.Event()

    def ask(number: int) -> set[int]:
        found = set()
        with a_client(daemon) as post:
            while not (found and is_over.is_set()):
                code, answer = post("/digits", images[number])
                assert code == 200, answer
                found.add(answer["digit"])
        return found

    def replicas() -> list[dict[str, Any]]:
        (deployment,) = status_of(daemon, "digits")["deployments"].values()
        return list(deployment["replicas"])

    with ThreadPoolExecutor(CLIENTS) as clients:
        asked = [clients.submit(ask, number) for number in range(CLIENTS)]
        try:
            eventually(lambda: sum(replica["state"] == "RUNNING" for replica in replicas()) > 1)
        finally:
            is_over.set()
    right = sum(future.result() == {digit} for future, digit in zip(asked, expected, strict=True))
    assert right >= CLIENTS - 2
    with a_client(daemon) as post:
        assert post("/digits", [1, 2])[0] == 400


def test_irises_are_told_apart(daemon: RunningDaemon) -> None:
    with a_client(daemon) as post:
        code, found = post("/iris/", [[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]])
        assert (code, [flower["species"] for flower in found]) == (200, ["setosa", "virginica"])
        assert all(flower["probability"] > 0.8 for flower in found)
        assert post("/iris/", [[5.1]])[0] == 422


def test_a_story_streams_word_by_word_and_ends_at_its_own_length(daemon: RunningDaemon) -> None:
    def story(words: int) -> str:
        code, text = daemon.get(f"/storyteller/?prompt=the+function&words={words}")
        assert code == 200
        return text

    lengths = [1, 5, 40, 200]
    with ThreadPoolExecutor(len(lengths)) as clients:
        found = list(clients.map(story, lengths))
    assert [len(text.split()) for text in found] == [2 + length for length in lengths]
    assert all(text.startswith("the function ") for text in found)
    assert daemon.get("/storyteller/?words=0")[0] == 422
