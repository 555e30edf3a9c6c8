"""PyTorch models that are constructed once: shared memory, limits, bursts, processes of their own; and the example."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from tests.apps.test_preload import pss_kb
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in
from tests.system.test_model_examples import document_of

pytestmark = pytest.mark.models

MODEL_KB = 200_000
REPLICAS = 8
BURST_LIMIT_S = 15.0
"""Of a test, on any machine; how long it takes is the benchmark's business."""
CODE = """
import os
import torch
from servd import deployment

WIDTH = 5_000

class Base:
    def __init__(self):
        self.made_by = os.getpid()
        torch.manual_seed(1)
        self.weights = torch.randn(2 * WIDTH, WIDTH)
        # the pool has been at work when replicas are forked
        self.expected = self.work()
    def work(self):
        with torch.inference_mode():
            return round(float((self.weights @ torch.ones(WIDTH)).relu().sum()), 1)
    def about(self):
        return {"pid": os.getpid(), "made_by": self.made_by, "is_right": self.work() == self.expected}

@deployment
class Plain(Base):
    def __call__(self, request):
        return self.about()

@deployment
class Growing(Base):
    kept = []
    def __call__(self, request):
        if "grow" in request.query_params:
            self.kept.append(torch.ones(60_000_000))
        return self.about()

@deployment
class Loading(Base):
    def __call__(self, request):
        loader = torch.utils.data.DataLoader(range(100), batch_size=10, num_workers=2)
        return {**self.about(), "sum": sum(int(batch.sum()) for batch in loader)}

plain, growing, loading = Plain.bind(), Growing.bind(), Loading.bind()
"""
AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": REPLICAS,
    "target_num_ongoing_requests_per_replica": 1,
    "metrics_interval_s": 0.1,
    "look_back_period_s": 0.2,
    "upscale_delay_s": 0,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"num_replicas": REPLICAS},
    "burst": {"autoscaling_config": AUTOSCALING},
    # the shared 200 MB count in each
    "growing": {"memory_limit_bytes": 700 << 20},
    "loading": {"num_replicas": 2},
}
QUESTIONS = (
    ("how do I catch an exception", ("compound", "try", "raise", "exceptions")),
    ("string formatting with width and precision", ("formatstrings", "string-methods")),
)
CLASSES = {"plain": "Plain", "burst": "Plain", "growing": "Growing", "loading": "Loading"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("torch")
    code = directory / "code"
    code.mkdir()
    (code / "preloaded.py").write_text(CODE)
    applications = [
        {
            "name": name,
            "route_prefix": f"/{name}",
            "import_path": f"preloaded:{CLASSES[name].lower()}",
            "runtime_env": {"working_dir": str(code)},
            "deployments": [{"name": CLASSES[name], "preload": True, **options}],
        }
        for name, options in OPTIONS.items()
    ]
    with a_daemon(settings_in(directory)) as running:
        document = {"applications": [*applications, document_of("manual")]}
        assert running.ask("PUT", "/api/serve/applications/", document) == (200, "")

        def runs() -> bool:
            apps = running.status()["applications"].values()
            assert not [app["message"] for app in apps if app["status"] == "DEPLOY_FAILED"]
            return len(apps) == len(document["applications"]) and all(app["status"] == "RUNNING" for app in apps)

        eventually(runs, 120.0)
        yield running


def asked(daemon: RunningDaemon, path: str) -> dict[str, Any]:
    status, text = daemon.get(path)
    assert status == 200, text
    answer: dict[str, Any] = json.loads(text)
    assert answer["is_right"]
    return answer


def test_replicas_share_the_weights(daemon: RunningDaemon) -> None:
    [template] = daemon.pids("template plain_Plain")
    with ThreadPoolExecutor(REPLICAS) as clients:
        found = list(clients.map(lambda _: asked(daemon, "/plain"), range(10 * REPLICAS)))
    assert {answer["made_by"] for answer in found} == {template}
    replicas = daemon.pids("replica plain_Plain")
    assert len(replicas) == REPLICAS
    # with weights of their own they would need REPLICAS * MODEL_KB more
    assert sum(pss_kb(pid) for pid in (template, *replicas)) < 3 * MODEL_KB + REPLICAS * 25_000
    deployment = daemon.status()["applications"]["plain"]["deployments"]["plain_Plain"]
    assert deployment["message"] == ""
    assert {replica["start_method"] for replica in deployment["replicas"]} == {"fork"}


def test_a_burst_is_met_by_replicas_that_are_forked(daemon: RunningDaemon) -> None:
    [template] = daemon.pids("template burst_Plain")
    seen: set[int] = set()
    is_over = threading.Event()

    def client() -> None:
        while not is_over.is_set():
            answer = asked(daemon, "/burst")
            assert answer["made_by"] == template
            seen.add(answer["pid"])

    began = time.monotonic()
    with ThreadPoolExecutor(4 * REPLICAS) as clients:
        asking = [clients.submit(client) for _ in range(4 * REPLICAS)]
        try:
            eventually(lambda: len(seen) == REPLICAS, BURST_LIMIT_S)
        finally:
            print(f"{len(seen)} replicas had answered {time.monotonic() - began:.2f} s after the burst began")
            is_over.set()
    for future in asking:
        future.result()


def test_a_replica_above_its_memory_limit_is_replaced_by_a_forked_one(daemon: RunningDaemon) -> None:
    [template] = daemon.pids("template growing_Growing")
    [before] = daemon.pids("replica growing_Growing")
    for _ in range(2):
        asked(daemon, "/growing?grow=1")
    eventually(lambda: before not in daemon.pids("replica growing_Growing"))
    answer = asked(daemon, "/growing")
    assert (answer["made_by"], answer["pid"]) == (template, *daemon.pids("replica growing_Growing"))
    dead = daemon.status()["applications"]["growing"]["deployments"]["growing_Growing"]["recent_dead_replicas"]
    assert ["memory" in replica["reason"] for replica in dead] == [True]


def test_loaders_with_processes_of_their_own_work_in_replicas(daemon: RunningDaemon) -> None:
    with ThreadPoolExecutor(4) as clients:
        found = list(clients.map(lambda _: asked(daemon, "/loading"), range(8)))
    assert {answer["sum"] for answer in found} == {4950}


def test_the_example_finds_pages_of_the_manual(daemon: RunningDaemon) -> None:
    assert len(daemon.pids("template manual_Search")) == 1
    assert len(daemon.pids("replica manual_Search")) == 8
    for question, pages in QUESTIONS:
        status, text = daemon.get(f"/manual?question={quote(question)}")
        assert status == 200, text
        assert json.loads(text)[0]["page"] in pages, text
    assert daemon.get("/manual?question=xyzzy")[0] == 422
