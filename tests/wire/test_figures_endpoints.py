"""Figures of replicas and deployments over real HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servd.documents.controller_views import ScalingView
from servd.documents.figure_views import (
    DeploymentFigures,
    DeploymentHistory,
    ReplicaFigures,
    RequestFigures,
    Sample,
)
from servd.ground.states import ReplicaState
from servd.rest.access import AccessRules
from tests.wire.fake_plane import FakeFigures, FakePlane, Server

FIGURES = "/api/servd/v1/figures"
CALLS = RequestFigures(3, 1, 740, 2, 12.33, (1.2, 4.0, None))


@pytest.fixture
def figures() -> FakeFigures:
    replica = ReplicaFigures(ReplicaState.RUNNING, 12, 7.5, CALLS, 1000, 0.25, 31, 4)
    young = ReplicaFigures(ReplicaState.STARTING, None, 0.1, RequestFigures())
    found = DeploymentFigures(
        "a", "D", 2, 1, 3, CALLS, 1000, 0.25, ScalingView(990.0, 1, 2, "load"), {"a_D#1": replica, "a_D#2": young}
    )
    plain = DeploymentFigures("b", "E", 0, 0, 0, RequestFigures(), 0, 0.0, None, {})
    past = DeploymentHistory(
        "a", "D", [Sample(995.0), Sample(1000.0, 12.4, 0.2, (1.0, 2.0, 3.0), 2, 1, 3, 1, 1000, 0.4)]
    )
    return FakeFigures({"a_D": found, "b_E": plain}, {"a_D": past})


@pytest.fixture
def server(tmp_path: Path, figures: FakeFigures) -> Iterator[Server]:
    with Server(FakePlane(figures=figures), AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


def ask(server: Server, path: str) -> Any:
    status, _, text = server.ask("GET", path)
    assert status == 200, text
    return json.loads(text)


def test_figures_as_they_are_now(server: Server) -> None:
    body = ask(server, FIGURES)
    assert (body["at"], body["window_s"], list(body["applications"])) == (1000.0, 60.0, ["a", "b"])
    found = body["applications"]["a"]["deployments"]["a_D"]
    replicas = found.pop("replicas")
    calls = {
        "ongoing": 3, "waiting": 1, "requests": 740, "errors": 2, "requests_per_s": 12.33,
        "p50_ms": 1.2, "p95_ms": 4.0, "p99_ms": None,
    }  # fmt: skip
    assert found == {
        "name": "D", "wanted_replicas": 2, "running_replicas": 1, "restarts": 3, **calls, "memory_bytes": 1000,
        "cpu_share": 0.25, "decision": {"at": 990.0, "before": 1, "after": 2, "reason": "load"},
    }  # fmt: skip
    assert replicas["a_D#1"] == {
        "state": "RUNNING", "pid": 12, "age_s": 7.5, **calls, "memory_bytes": 1000, "cpu_share": 0.25,
        "descriptors": 31, "threads": 4,
    }  # fmt: skip
    assert [replicas["a_D#2"][name] for name in ("state", "requests", "memory_bytes")] == ["STARTING", None, None]
    assert list(ask(server, f"{FIGURES}?application=b&deployment=E")["applications"]) == ["b"]
    assert ask(server, f"{FIGURES}?application=zoo")["applications"] == {}


def test_metrics_have_the_names_that_the_client_wants(server: Server) -> None:
    own, todays = (f"# TYPE {prefix}serve_num_http_requests counter\n" for prefix in ("", "ray_"))
    assert server.ask("GET", "/metrics")[2] == server.ask("GET", "/metrics?dialect=2.5", today=True)[2] == own
    assert server.ask("GET", "/metrics", today=True)[2] == server.ask("GET", "/metrics?dialect=today")[2] == todays
    assert server.ask("GET", "/metrics?dialect=french")[0] == 400


def test_the_last_minutes_in_columns(server: Server, figures: FakeFigures) -> None:
    body = ask(server, f"{FIGURES}/history?application=a&since=900.5")
    assert figures.asked == [("a", None, 900.5)]
    assert (body["at"], body["step_s"], body["span_s"]) == (1000.0, 5.0, 900.0)
    assert body["deployments"] == {
        "a_D": {
            "application": "a", "name": "D", "at": [995.0, 1000.0], "requests_per_s": [0.0, 12.4],
            "errors_per_s": [0.0, 0.2], "p50_ms": [None, 1.0], "p95_ms": [None, 2.0], "p99_ms": [None, 3.0],
            "wanted_replicas": [0, 2], "running_replicas": [0, 1], "ongoing": [0, 3], "waiting": [0, 1],
            "memory_bytes": [0, 1000], "cpu_share": [0.0, 0.4],
        }
    }  # fmt: skip
    assert server.ask("GET", f"{FIGURES}/history?since=yesterday")[0] == 400
    assert server.ask("POST", FIGURES)[0] == 405
