"""Logs, metrics and timings of a whole daemon."""

import http.client
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from servd.observability.measures import CONTRACT
from tests.ports import free_port
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow

SHOP = """
import logging
import logging.config
from servd import deployment
from servd.context import get_multiplexed_model_id
from servd.metrics import Counter, Histogram
from servd.multiplex import multiplexed

logging.config.dictConfig({
    "version": 1,
    "formatters": {"own": {"format": "OWN %(message)s"}},
    "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
    "root": {"handlers": ["own"], "level": "INFO"},
})
SOLD = Counter("shop_sold", "What was sold.", tag_keys=("route",))

@deployment
class Price:
    async def of(self, name):
        logging.getLogger("ray.serve").info("asked for %s", name)
        return len(name)

@deployment
class Shop:
    def __init__(self, price):
        self.price = price
        self.wait = Histogram("shop_wait", "Waits.", boundaries=[1, 10])

    @multiplexed(max_num_models_per_replica=1)
    async def model(self, name):
        return name

    async def __call__(self, request):
        logging.getLogger("mine").info("hello from mine")
        if request.url.path == "/fail":
            raise RuntimeError("as told")
        if get_multiplexed_model_id():
            await self.model(get_multiplexed_model_id())
        SOLD.inc()
        self.wait.observe(3)
        return str(await self.price.of.remote("apple"))

app = Shop.bind(Price.bind())
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    code = directory / "code"
    code.mkdir()
    (code / "shop.py").write_text(SHOP)
    settings = replace(settings_in(directory), metrics_port=free_port())
    with a_daemon(settings, {"SERVD_HTTP_SERVER_TIMING": "1"}) as running:
        running.deploy(code, "shop:app")
        yield running


def put(daemon: RunningDaemon, **document: object) -> None:
    code = str(Path(daemon.settings.start_dir) / "code")
    body = {"import_path": "shop:app", "runtime_env": {"working_dir": code}, **document}
    assert daemon.ask("PUT", "/api/serve/deployments/", body) == (200, "")
    daemon.wait_until_running()


def metrics(daemon: RunningDaemon) -> str:
    code, text = daemon.ask("GET", "/metrics")
    assert code == 200, text
    return str(text)


def total(text: str, name: str, **labels: str) -> float:
    """Sum of the samples of a metric with these labels."""
    return sum(
        sample.value
        for found in text_string_to_metric_families(text)
        for sample in found.samples
        if sample.name in (name, f"{name}_total") and labels.items() <= sample.labels.items()
    )


def log_lines(daemon: RunningDaemon, prefix: str) -> list[str]:
    folder = Path(daemon.settings.log_dir) / "serve"
    return [line for path in folder.glob(f"{prefix}*") for line in path.read_text().splitlines()]


def request(daemon: RunningDaemon, path: str = "/", request_id: str = "", model: str = "") -> http.client.HTTPResponse:
    headers = {"X-Request-ID": request_id, "serve_multiplexed_model_id": model}
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.http_port or 0, timeout=20)
    connection.request("GET", path, headers={name: value for name, value in headers.items() if value})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def test_requests_are_counted_at_once_by_every_process(daemon: RunningDaemon) -> None:
    before = metrics(daemon)
    for _ in range(3):
        assert request(daemon).status == 200
    assert request(daemon, "/fail").status == 500
    assert request(daemon, "/-/healthz").status == 200
    text = metrics(daemon)

    def grown(name: str, **labels: str) -> float:
        return total(text, name, **labels) - total(before, name, **labels)

    app = {"route": "/", "application": "default"}
    assert grown("serve_num_http_requests", method="GET", status_code="200", **app) == 3
    assert grown("serve_num_http_requests", route="/-/healthz") == 1
    assert grown("serve_num_http_error_requests", error_code="500", route="/") == 1
    assert grown("serve_num_deployment_http_error_requests", deployment="default_Shop", **app) == 1
    assert grown("serve_http_request_latency_ms_count", **app) == 4
    assert grown("serve_num_router_requests", deployment="default_Shop", **app) == 4
    assert grown("serve_handle_request_counter", deployment="default_Price", **app) == 3
    shop = {"deployment": "default_Shop", "application": "default"}
    assert grown("serve_deployment_request_counter", **shop) == 3
    assert grown("serve_deployment_error_counter", **shop) == 1
    assert grown("serve_deployment_processing_latency_ms_count", **shop) == 4
    assert grown("serve_deployment_request_counter", deployment="default_Price", route="/") == 3
    assert total(text, "serve_deployment_replica_healthy") == 2
    assert total(text, "serve_deployment_replica_starts", **shop) >= 1
    # it ends a moment after its answer has left
    eventually(lambda: total(metrics(daemon), "serve_replica_processing_queries") == 0)
    assert "serve_event_loop_lag_seconds{" in text
    # the user's
    assert grown("shop_sold", route="/", **shop) == 3
    assert grown("shop_wait_sum", **shop) == 9


def figures_of(daemon: RunningDaemon, name: str) -> dict[str, Any]:
    code, body = daemon.ask("GET", f"/api/servd/v1/figures?deployment={name}")
    assert code == 200
    return dict(body["applications"]["default"]["deployments"][f"default_{name}"])


def test_every_replica_tells_what_it_uses(daemon: RunningDaemon) -> None:
    def told() -> list[dict[str, Any]]:
        return [one for one in figures_of(daemon, "Price")["replicas"].values() if one["memory_bytes"]]

    [replica] = eventually(told)
    assert replica["memory_bytes"] > 10 * 2**20
    assert replica["descriptors"] > 5
    assert replica["threads"] >= 2
    assert replica["pid"] in daemon.pids("replica")
    code, past = daemon.ask("GET", "/api/servd/v1/figures/history")
    assert (code, past["step_s"]) == (200, 5.0)


@pytest.mark.long
def test_figures_follow_the_requests(daemon: RunningDaemon) -> None:
    before = figures_of(daemon, "Shop")
    for path in ("/", "/", "/", "/fail"):
        request(daemon, path)

    def grown() -> dict[str, Any] | None:
        found = figures_of(daemon, "Shop")
        # what tests before this one asked for may be told just now
        is_told = found["requests"] >= before["requests"] + 4 and found["errors"] > before["errors"]
        return found if is_told else None

    found = eventually(grown)
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert found["requests_per_s"] > 0

    def sampled() -> bool:
        past = daemon.ask("GET", "/api/servd/v1/figures/history")[1]["deployments"].get("default_Shop")
        return past is not None and any(past["errors_per_s"]) and past["wanted_replicas"][-1] == 1

    eventually(sampled)


def test_models_are_counted(daemon: RunningDaemon) -> None:
    for model in ("a", "b", "b"):
        assert request(daemon, model=model).status == 200
    text = metrics(daemon)
    assert total(text, "serve_multiplexed_models_load_counter") == 2
    assert total(text, "serve_multiplexed_models_unload_counter") == 1
    assert total(text, "serve_num_multiplexed_models") == 1
    assert total(text, "serve_multiplexed_get_model_requests_counter") == 3
    assert total(text, "serve_multiplexed_model_load_latency_ms_count") == 2
    assert total(text, "serve_multiplexed_model_unload_latency_ms_count") == 1


REPLICA = {"deployment", "replica", "application"}
ROWS = {
    "serve_num_http_requests": ("counter", {"route", "method", "application", "status_code"}),
    "serve_num_http_error_requests": ("counter", {"route", "error_code", "method", "application"}),
    "serve_num_deployment_http_error_requests": (
        "counter",
        {"deployment", "error_code", "method", "route", "application"},
    ),
    "serve_http_request_latency_ms": ("histogram", {"route", "application", "status_code"}),
    "serve_num_router_requests": ("counter", {"deployment", "route", "application"}),
    "serve_deployment_queued_queries": ("gauge", {"deployment", "application"}),
    "serve_handle_request_counter": ("counter", {"handle", "deployment", "route", "application"}),
    "serve_deployment_request_counter": ("counter", {"route", *REPLICA}),
    "serve_deployment_error_counter": ("counter", {"route", *REPLICA}),
    "serve_deployment_replica_starts": ("counter", REPLICA),
    "serve_deployment_processing_latency_ms": ("histogram", {"route", *REPLICA}),
    "serve_replica_processing_queries": ("gauge", REPLICA),
    "serve_deployment_replica_healthy": ("gauge", REPLICA),
    "serve_multiplexed_model_load_latency_s": ("gauge", REPLICA),
    "serve_multiplexed_model_unload_latency_s": ("gauge", REPLICA),
    "serve_num_multiplexed_models": ("gauge", REPLICA),
    "serve_multiplexed_models_load_counter": ("counter", REPLICA),
    "serve_multiplexed_models_unload_counter": ("counter", REPLICA),
}
BUCKETS = "1 2 5 10 20 50 100 200 300 400 500 1000 2000 5000 10000 60000 120000 300000 600000 +Inf"


def test_every_metric_of_the_contract_has_its_type_and_labels(daemon: RunningDaemon) -> None:
    for path, model in (("/", "c"), ("/", "d"), ("/fail", "")):
        request(daemon, path, model=model)
    text = metrics(daemon)
    families = {found.name: found for found in text_string_to_metric_families(text)}
    for name, (kind, labels) in ROWS.items():
        found = families.get(name) or families.get(name.removesuffix("_total"))
        assert found is not None, name
        samples = [{*sample.labels} - {"le"} for sample in found.samples]
        assert samples, name
        assert (found.type, samples[0]) == (kind, labels), name
        if kind == "histogram":
            bounds = [s.labels["le"] for s in found.samples if "le" in s.labels]
            assert [float(bound) for bound in bounds[:20]] == [float(bound) for bound in BUCKETS.split()], name


def test_the_metrics_port_serves_nothing_else(daemon: RunningDaemon) -> None:
    def ask(verb: str, path: str, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.metrics_port or 0, timeout=20)
        connection.request(verb, path, headers=headers)
        response = connection.getresponse()
        answer = response.status, response.read().decode()
        connection.close()
        return answer

    code, text = ask("GET", "/metrics")
    assert code == 200
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} >= set(CONTRACT)
    assert ask("GET", "/api/servd/v1/status")[0] == 404
    assert ask("POST", "/metrics")[0] == 405
    assert ask("GET", "/metrics", Host="evil.example")[0] == 403


def test_where_the_time_went(daemon: RunningDaemon) -> None:
    response = request(daemon)
    timing = response.getheader("server-timing") or ""
    figures = {name: float(value) for name, _, value in (part.strip().partition(";dur=") for part in timing.split(","))}
    assert set(figures) == {"queue", "route", "replica"}
    assert all(0 <= value < 10_000 for value in figures.values())
    assert figures["replica"] > 0


def test_every_request_has_its_lines(daemon: RunningDaemon) -> None:
    assert request(daemon, request_id="find-me").status == 200
    assert request(daemon, "/nowhere/-/", request_id="find-me-too").status == 200

    def lines(prefix: str, what: str) -> list[str]:
        return [line for line in log_lines(daemon, prefix) if f" {what} " in line]

    (proxy_line,) = eventually(lambda: lines("http_proxy_127.0.0.1", "find-me"))
    assert " find-me / default http1_answer.py:" in proxy_line
    assert re.search(r" - GET / 200 [0-9.]+ms 1B 127\.0\.0\.1 default_Shop#\w+$", proxy_line)
    (longer_line,) = eventually(lambda: lines("http_proxy_127.0.0.1", "find-me-too"))
    assert " - GET /nowhere/-/ 200 " in longer_line
    # the foreground shows them too, and no others
    assert f"{proxy_line}\n" in eventually(lambda: daemon.errors if proxy_line in daemon.errors else "")
    assert " - __call__ OK " not in daemon.errors
    # one line for what the user's own handler shows as well
    mine, access = eventually(lambda: (found := lines("deployment_default_Shop", "find-me"))[1:] and found)
    assert mine.startswith("INFO ")
    assert " find-me / default shop.py:" in mine
    assert mine.endswith(" - hello from mine")
    assert " - __call__ OK " in access
    own, access = eventually(lambda: (found := lines("deployment_default_Price", "find-me")) and found[1:] and found)
    assert own.endswith(" - asked for apple")
    assert " - of OK " in access
    # the user's own logging goes where the user sends it
    assert "\nOWN hello from mine\n" in daemon.errors
    assert " - hello from mine" not in daemon.errors


def test_counters_never_go_backwards(daemon: RunningDaemon) -> None:
    names = ("serve_num_http_requests", "serve_deployment_request_counter", "shop_sold")
    for _ in range(5):
        assert request(daemon).status == 200
    before = metrics(daemon)
    for title in ("replica default_Shop", "proxy 0", "controller"):
        (old,) = daemon.pids(title)
        os.kill(old, signal.SIGKILL)
        eventually(lambda title=title, old=old: daemon.pids(title) not in ([], [old]))
        daemon.wait_until_running()
        eventually(lambda: daemon.status()["http"]["listening"])
        after = metrics(daemon)
        for name in names:
            assert total(after, name) >= total(before, name), (title, name)
        before = after
    assert request(daemon).status == 200
    assert total(metrics(daemon), names[0]) == total(before, names[0]) + 1


def test_logging_config_reaches_everybody(daemon: RunningDaemon) -> None:
    quiet = {"name": "Price", "logging_config": {"enable_access_log": False}}
    pids = daemon.pids("replica")
    put(daemon, logging_config={"encoding": "JSON"}, deployments=[quiet])
    assert daemon.pids("replica") == pids

    def fields(prefix: str, request_id: str) -> list[dict[str, object]]:
        found = [json.loads(line) for line in log_lines(daemon, prefix) if line.startswith("{")]
        return [one for one in found if one.get("request_id") == request_id]

    def has_arrived() -> bool:
        # the replicas hear of it a moment after the proxies
        request(daemon, request_id="find-json")
        return bool(fields("http_proxy_", "find-json") and fields("deployment_default_Shop", "find-json"))

    eventually(has_arrived)
    request(daemon, request_id="find-quiet")
    (one,) = eventually(lambda: fields("http_proxy_", "find-quiet"))
    assert (one["route"], one["application"], str(one["message"])[:8]) == ("/", "default", "GET 200 ")
    eventually(lambda: fields("deployment_default_Shop", "find-quiet"))
    assert any("hello from mine" in str(one["message"]) for one in fields("deployment_default_Shop", "find-quiet"))
    (line,) = [line for line in log_lines(daemon, "deployment_default_Price") if " find-quiet " in line]
    assert line.endswith(" - asked for apple")
