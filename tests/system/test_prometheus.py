"""What a real Prometheus makes of a daemon's metrics. `.ci/run` installs it where it can."""

import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from servd.commands.grafana import PANELS, RATE, dashboard
from servd.observability.measures import CONTRACT
from tests.ports import free_port
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's prometheus is not installed"),
]

OF_OTHERS = {*list(CONTRACT)[: list(CONTRACT).index("serve_deployment_queue_age_seconds")]}
"""Metrics whose names Ray Serve chose; those of servd's own suit promtool."""

SHOP = """
from servd import deployment

@deployment(num_replicas=2)
class Shop:
    async def __call__(self, request):
        if request.url.path.endswith("fail"):
            raise RuntimeError("as told")
        return "sold"

app = Shop.bind()
"""
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: servd
  static_configs: [{{targets: ["127.0.0.1:{metrics}"]}}]
- job_name: today
  params: {{dialect: [today]}}
  static_configs: [{{targets: ["127.0.0.1:{metrics}"]}}]
"""
OF_RAY = (
    'sum by (application, route) (rate(ray_serve_num_http_requests_total{application!~"",route!~"/-/.*"}[20s]))',
    'sum by (application, route, error_code) (rate(ray_serve_num_http_error_requests_total{application!~""}[20s]))',
    'histogram_quantile(0.9, sum by (application, le) (rate(ray_serve_http_request_latency_ms_bucket{application!~""}[20s])))',
    "sum by (application, deployment) (ray_serve_deployment_replica_healthy)",
    'sum by (application, deployment) (rate(ray_serve_deployment_request_counter_total{application!~""}[20s]))',
    'sum by (application, deployment) (rate(ray_serve_deployment_error_counter_total{application!~""}[20s]))',
    "histogram_quantile(0.99, sum by (deployment, le) (rate(ray_serve_deployment_processing_latency_ms_bucket[20s])))",
    "sum by (application, deployment) (ray_serve_deployment_queued_queries)",
    "ray_serve_num_ongoing_http_requests",
    "ray_serve_controller_control_loop_duration_s",
    "rate(ray_serve_controller_num_control_loops[20s])",
    'ray_serve_replica_processing_queries{deployment="Shop",application="default"}',
)
"""What dashboards of Ray Serve 2.60 ask of a service that speaks HTTP."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    code = directory / "code"
    code.mkdir()
    (code / "shop.py").write_text(SHOP)
    with a_daemon(replace(settings_in(directory), metrics_port=free_port())) as running:
        running.deploy(code, "shop:app")
        yield running


@pytest.fixture(scope="module")
def prometheus(daemon: RunningDaemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of one that scrapes the daemon."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    (folder / "config.yml").write_text(CONFIG.format(metrics=daemon.settings.metrics_port))
    options = [f"--config.file={folder}/config.yml", f"--storage.tsdb.path={folder}/data", "--log.level=error"]
    command = ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield port
        finally:
            process.terminate()


def ask(port: int, query: str) -> list[dict[str, Any]]:
    """What Prometheus answers, [] while it does not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", f"/api/v1/query?query={quote(query)}")
        response = connection.getresponse()
        body = json.loads(response.read())
    except OSError:
        return []
    finally:
        connection.close()
    assert body["status"] == "success", (query, body)
    return list(body["data"]["result"])


def load(daemon: RunningDaemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.http_port or 0, timeout=20)
    for path in ("/",) * 20 + ("/fail",):
        connection.request("GET", path)
        connection.getresponse().read()
    connection.close()


def test_every_query_of_the_dashboards_has_an_answer_under_load(daemon: RunningDaemon, prometheus: int) -> None:
    def count(job: str) -> float:
        load(daemon)
        found = ask(prometheus, f'sum_over_time(up{{job="{job}"}}[1m])')
        return float(found[0]["value"][1]) if found else 0.0

    for job in ("servd", "today"):
        # a rate needs two values, and the first series of errors begins after the first request
        eventually(lambda job=job: count(job) >= 4, every_s=0.2)  # type: ignore[misc]
    own = [query for panel in dashboard()["panels"] for query in (target["expr"] for target in panel["targets"])]
    assert len(own) >= len(PANELS)
    waiting = {query.replace(RATE, "20s").replace("$application", ".*") for query in own} | {*OF_RAY}

    def answered() -> bool:
        load(daemon)
        values = {query: [sample["value"][1] for sample in ask(prometheus, query)] for query in waiting}
        waiting.difference_update(query for query, found in values.items() if found and "NaN" not in found)
        return not waiting

    try:
        eventually(answered, every_s=0.5)
    except AssertionError:
        raise AssertionError(f"no answer to {sorted(waiting)}") from None
    served = 'sum(rate(serve_num_http_requests{application!=""}[20s]))'
    assert float(ask(prometheus, served)[0]["value"][1]) > 1


def test_a_dashboard_is_complete() -> None:
    made = dashboard()
    assert (
        len({panel["id"] for panel in made["panels"]})
        == len({panel["title"] for panel in made["panels"]})
        == len(PANELS)
    )
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in made["panels"]]
    assert len({*places}) == len(PANELS)
    assert json.loads(json.dumps(made)) == made


@pytest.mark.parametrize("query", ["", "?dialect=today"])
def test_promtool_finds_fault_only_with_names_that_ray_chose(daemon: RunningDaemon, query: str) -> None:
    load(daemon)
    _, text = daemon.ask("GET", f"/metrics{query}")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=str(text), capture_output=True, text=True, timeout=60
    )
    # 1 is no text format, 3 is a name that it would have chosen otherwise
    assert checked.returncode in (0, 3), checked.stderr
    found = [line.split(" ", 1) for line in (checked.stdout + checked.stderr).splitlines() if line]
    names = {name.removeprefix("ray_").removesuffix("_total") if query else name for name, _ in found}
    assert names <= OF_OTHERS
    assert {fault for _, fault in found} <= {
        'counter metrics should have "_total" suffix',
        "metric name should not include type 'counter'",
        "metric names should not contain abbreviated units",
    }
