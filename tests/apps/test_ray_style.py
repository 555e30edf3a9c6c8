"""Applications written for Ray Serve, not a line changed, on one daemon."""

import concurrent.futures
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.system.running_daemon import LIMIT_S, RunningDaemon, a_daemon, eventually, settings_in

CODE = str(Path(__file__).parent / "ray_style")
APPS: dict[str, dict[str, Any]] = {
    "fruit": {"import_path": "fruit_graph.app"},
    "conditional": {"import_path": "conditional:app"},
    "old_handles": {
        "import_path": "old_handles:app",
        "runtime_env": {"working_dir": CODE, "env_vars": {"SERVD_LEGACY_HANDLES": "1"}},
    },
    "text": {
        "import_path": "package_app.text:build",
        "args": {"language": "french", "max_words": "2"},
        "deployments": [{"name": "Translator", "user_config": {"language": "german"}}],
    },
    "streaming": {"import_path": "streaming:app"},
    "ticker": {"import_path": "streaming:ticker"},
    "batching": {"import_path": "batching:app"},
    "multiplexed": {"import_path": "multiplexed:app"},
    "upstream": {"import_path": "multiplexed:upstream"},
    "autoscaled": {"import_path": "autoscaled:app"},
    "store": {"import_path": "app_in_init:store"},
    "front_page": {"import_path": "front_page:app"},
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with a_daemon(settings_in(tmp_path_factory.mktemp("ray_style"))) as running:
        apps = [
            {"name": name, "route_prefix": f"/{name}", "runtime_env": {"working_dir": CODE}, **app}
            for name, app in APPS.items()
        ]
        assert running.ask("PUT", "/api/serve/applications/", {"applications": apps}) == (200, "")
        eventually(lambda: all_running(running), 120.0)
        yield running


def all_running(daemon: RunningDaemon) -> bool:
    apps = daemon.status()["applications"]
    failed = {name: app["message"] for name, app in apps.items() if app["status"] == "DEPLOY_FAILED"}
    assert not failed, failed
    return len(apps) == len(APPS) and all(app["status"] == "RUNNING" for app in apps.values())


def ask(daemon: RunningDaemon, path: str, body: Any = None, **headers: str) -> Any:
    """Parsed JSON of the answer, or its text."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.http_port, timeout=LIMIT_S)
    try:
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status == 200, text
    finally:
        connection.close()
    return json.loads(text) if response.headers["content-type"].startswith("application/json") else text


def ask_all(daemon: RunningDaemon, paths: list[str]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(len(paths)) as pool:
        return list(pool.map(lambda path: ask(daemon, path), paths))


def answer_of(daemon: RunningDaemon, path: str) -> tuple[int, str, Any]:
    """Status, text and the stamp of the application's middleware."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.http_port, timeout=LIMIT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers["x-stamp"]
    finally:
        connection.close()


def test_modules_that_come_with_ray_serve(daemon: RunningDaemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.http_port, timeout=LIMIT_S)
    try:
        connection.request("POST", "/front_page", json.dumps({"text": "four"}))
        response = connection.getresponse()
        assert (response.status, response.read()) == (201, b'{"letters":4}')
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/name", "/router/name", "/inner/name"])
def test_routes_made_in_a_constructor(daemon: RunningDaemon, path: str) -> None:
    assert answer_of(daemon, f"/store{path}") == (200, '"store"', "store")


def test_middleware_and_handlers_of_errors_made_in_a_constructor(daemon: RunningDaemon) -> None:
    assert answer_of(daemon, "/store/raising") == (418, "store", "store")


def test_routes_made_after_the_class(daemon: RunningDaemon) -> None:
    assert answer_of(daemon, "/store/late/name") == (200, '"late"', "store")


def test_a_graph_with_two_steps_behind_dag_driver(daemon: RunningDaemon) -> None:
    assert ask(daemon, "/fruit", ["MANGO", 2]) == 6
    assert ask(daemon, "/fruit/", ["ORANGE", 3]) == 6
    assert ask(daemon, "/fruit/any/path", ["PEAR", 1]) == 4
    assert ask(daemon, "/fruit", ["KIWI", 1]) == -1


def test_a_pipeline_that_depends_on_its_input(daemon: RunningDaemon) -> None:
    assert ask(daemon, "/conditional/route", ["ADD", 5]) == "7 pizzas please!"
    assert ask(daemon, "/conditional/route", ["MUL", 5]) == "15 pizzas please!"
    assert ask(daemon, "/conditional/stamped", ["MUL", 5]) == "#5: 15 pizzas please!"


def test_handles_without_annotation_in_two_steps(daemon: RunningDaemon) -> None:
    assert ask(daemon, "/old_handles?name=Ray") == ["Hello Ray!", "Hello a!", "Hello b!"]


def test_a_class_ingress_in_one_step(daemon: RunningDaemon) -> None:
    assert ask(daemon, "/text/", {"text": "it was the best of times"}) == "german: IT WAS"
    assert ask(daemon, "/text/context") == {"app": "text", "deployment": "TextIngress"}


@pytest.mark.parametrize("query", ["max=4", "max=4&generator"])
def test_streams_over_http_and_handles(daemon: RunningDaemon, query: str) -> None:
    assert ask(daemon, f"/streaming?{query}") == "0 1 2 3 "


def test_a_stream_that_breaks_off(daemon: RunningDaemon) -> None:
    answer = ask(daemon, "/streaming?max=2&broken")
    assert answer["seen"] == [0, 1]
    assert answer["error"].startswith("broken off after 2")


def test_a_generator_handler_streams(daemon: RunningDaemon) -> None:
    assert ask(daemon, "/ticker") == '{"tick": 0}{"tick": 1}{"tick": 2}'


def test_batches(daemon: RunningDaemon) -> None:
    answers = ask_all(daemon, [f"/batching?number={n}" for n in range(8)])
    assert [answer["sum"] for answer in answers] == list(range(1, 9))
    assert max(answer["batch"] for answer in answers) > 1


def test_models(daemon: RunningDaemon) -> None:
    def model(name: str) -> Any:
        return ask(daemon, "/multiplexed", serve_multiplexed_model_id=name)

    first = model("one")
    assert first["answer"] == "one(x)"
    again = model("one")
    assert (again["replica"], again["loaded"].count("one")) == (first["replica"], 1)
    assert ask(daemon, f"/upstream?models={quote('a,b,c,a')}") == ["a(a)", "b(b)", "c(c)", "a(a)"]


def test_a_deployment_scales_with_its_load(daemon: RunningDaemon) -> None:
    def replicas() -> int:
        code, body = daemon.ask("GET", "/api/serve/applications/")
        assert code == 200
        found = body["applications"]["autoscaled"]["deployments"]["autoscaled_Blocked"]["replicas"]
        return sum(replica["state"] == "RUNNING" for replica in found)

    eventually(lambda: replicas() == 0)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(ask, daemon, "/autoscaled") for _ in range(6)]
        eventually(lambda: replicas() == 2)
        assert ask(daemon, "/autoscaled/send") == "sent"
        assert [one.result(LIMIT_S) for one in waiting] == ["released"] * 6
    eventually(lambda: replicas() == 0)
