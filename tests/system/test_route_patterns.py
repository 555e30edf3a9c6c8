"""Routes of FastAPI applications in metrics, logs and calls of a whole daemon: today's text has them, the seed's the prefix."""

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow

SHOP = """
import logging
from fastapi import APIRouter, FastAPI, HTTPException, WebSocket
from servd import deployment, ingress
from servd.metrics import Counter, Gauge

logger = logging.getLogger("ray.serve")
SOLD = Counter("shop_sold", "What was sold.", tag_keys=("route",))
LEVEL = Gauge("shop_level", "How much there is.", tag_keys=("route",))

@deployment
class Price:
    async def __call__(self, name):
        logger.info("asked for %s", name)
        return len(name)

api, orders = FastAPI(), APIRouter(prefix="/orders")

@orders.get("/{order:int}")
def order(order: int):
    return order

api.include_router(orders)

@deployment
@ingress(api)
class Shop:
    def __init__(self, price):
        self.price = price

    @api.get("/fruit/{name}")
    async def fruit(self, name: str):
        if name == "none":
            raise HTTPException(404)
        SOLD.inc()
        LEVEL.set(7)
        logger.info("sold %s", name)
        return await self.price.remote(name)

    @api.get("/fail")
    def fail(self):
        raise RuntimeError("as told")

    @api.websocket("/talk/{room}")
    async def talk(self, socket: WebSocket, room: str):
        await socket.accept()
        await socket.send_text(room)
        await socket.close()

app = Shop.bind(Price.bind())
"""
PLAIN = """
from servd import deployment

@deployment
def plain(request):
    return "plain"

app = plain.bind()
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    code = directory / "code"
    code.mkdir()
    (code / "shop.py").write_text(SHOP)
    (code / "plain.py").write_text(PLAIN)
    where = {"runtime_env": {"working_dir": str(code)}}
    with a_daemon(settings_in(directory)) as running:
        document = {
            "applications": [
                {"name": "shop", "route_prefix": "/shop", "import_path": "shop:app", **where},
                {"name": "root", "route_prefix": "/", "import_path": "shop:app", **where},
                {"name": "plain", "route_prefix": "/plain", "import_path": "plain:app", **where},
            ],
            "logging_config": {"encoding": "JSON"},
        }
        code_of, answer = running.ask("PUT", "/api/serve/applications/", document)
        assert code_of == 200, answer
        eventually(lambda: {app["status"] for app in running.status()["applications"].values()} == {"RUNNING"})
        ask_everything(running)
        yield running


def ask_everything(daemon: RunningDaemon) -> None:
    for path, code in (
        ("/shop/fruit/apple", 200),
        ("/shop/fruit/pear?x=1", 200),
        ("/shop/fruit/none", 404),
        ("/shop/orders/7", 200),
        ("/shop/orders/seven", 404),
        ("/shop/fail", 500),
        ("/shop/orders/7/", 307),
        ("/plain/fruit/apple", 200),
        ("/fruit/%61pple", 200),
        ("/nothing", 404),
    ):
        assert daemon.get(path)[0] == code, path
    assert daemon.request("POST", "/shop/fruit/apple")[0] == 405
    with connect(f"ws://127.0.0.1:{daemon.settings.http_port}/shop/talk/a") as socket:
        assert socket.recv() == "a"


def counts(daemon: RunningDaemon, query: str, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Sums of a counter by the values of these labels."""
    _, text = daemon.ask("GET", f"/metrics{query}")
    found: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(str(text)):
        for sample in family.samples:
            if sample.name in (name, f"{name}_total"):
                found[tuple(sample.labels.get(label, "") for label in labels)] += int(sample.value)
    return dict(found)


TODAY = "?dialect=today"


def test_proxies_count_each_route_apart_in_todays_text(daemon: RunningDaemon) -> None:
    labels = ("application", "route", "status_code")
    wanted = {
        ("shop", "/shop/fruit/{name}", "200"): 2,
        ("shop", "/shop/fruit/{name}", "404"): 1,
        ("shop", "/shop", "405"): 1,
        ("shop", "/shop/orders/{order:int}", "200"): 1,
        ("shop", "/shop", "404"): 1,
        ("shop", "/shop/orders/{order:int}/", "307"): 1,
        ("shop", "/shop/fail", "500"): 1,
        ("plain", "/plain", "200"): 1,
        ("root", "/fruit/{name}", "200"): 1,
        ("root", "/", "404"): 1,
    }

    def found() -> dict[tuple[str, ...], float]:
        return counts(daemon, TODAY, "ray_serve_num_http_requests", *labels)

    eventually(lambda: wanted.items() <= found().items() or not print(found()))
    assert {route for _, route, code in found() if code not in {"200", "404", "405", "307", "500"}} == {
        "/shop/talk/{room}"
    }
    # each in one: the seed's text has one series for all of an application's routes
    seeds = counts(daemon, "", "serve_num_http_requests", *labels)
    assert seeds["shop", "/shop", "200"] == 3
    assert seeds["shop", "/shop", "404"] == 2
    assert {route for _, route, _ in seeds} <= {"/shop", "/plain", "/", ""}
    assert sum(seeds.values()) == sum(found().values())


def test_replicas_and_calls_through_handles_know_the_route(daemon: RunningDaemon) -> None:
    name = "serve_deployment_request_counter"
    labels = ("application", "deployment", "route")
    wanted = {
        ("shop", "Shop", "/shop/fruit/{name}"): 3,
        ("shop", "Price", "/shop/fruit/{name}"): 2,
        ("root", "Price", "/fruit/{name}"): 1,
        ("plain", "plain", "/plain"): 1,
    }
    eventually(lambda: wanted.items() <= counts(daemon, TODAY, f"ray_{name}", *labels).items())
    assert counts(daemon, "", name, *labels)["shop", "shop_Price", "/shop"] == 2
    errors = counts(daemon, TODAY, "ray_serve_deployment_error_counter", "deployment", "route")
    assert errors == {("Shop", "/shop/fail"): 1}
    calls = counts(daemon, TODAY, "ray_serve_num_router_requests", *labels)
    assert calls["shop", "Price", "/shop/fruit/{name}"] == 2
    assert counts(daemon, "", "serve_num_router_requests", *labels)["shop", "shop_Price", "/shop"] == 2


def test_metrics_of_the_application_have_it_too(daemon: RunningDaemon) -> None:
    labels = ("application", "route")
    wanted = {("shop", "/shop/fruit/{name}"): 2, ("root", "/fruit/{name}"): 1}
    assert counts(daemon, TODAY, "ray_shop_sold", *labels) == wanted
    assert counts(daemon, "", "shop_sold", *labels) == {("shop", "/shop"): 2, ("root", "/"): 1}
    for query, name in ((TODAY, "ray_shop_level"), ("", "shop_level")):
        assert counts(daemon, query, name, *labels) == {("shop", "/shop"): 7, ("root", "/"): 7}


def test_json_lines_have_the_route(daemon: RunningDaemon) -> None:
    def routes(prefix: str, word: str) -> set[str]:
        folder = Path(daemon.settings.log_dir) / "serve"
        lines = [line for path in folder.glob(f"{prefix}*") for line in path.read_text().splitlines()]
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return {one["route"] for one in found if word in one["message"] and one.get("application") == "shop"}

    eventually(lambda: routes("http_proxy_", "GET 200") == {"/shop/fruit/{name}", "/shop/orders/{order:int}"})
    assert routes("deployment_shop_Shop", "sold apple") == {"/shop/fruit/{name}"}
    assert routes("deployment_shop_Price", "asked for apple") == {"/shop/fruit/{name}"}
    assert routes("deployment_shop_Shop", "OK") >= {"/shop/fruit/{name}", "/shop/talk/{room}", "/shop"}


def test_other_clients_paths_add_no_series(daemon: RunningDaemon) -> None:
    before = len(counts(daemon, TODAY, "ray_serve_num_http_requests", "route", "method", "status_code"))
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.http_port or 0, timeout=20)
    for number in range(300):
        connection.request("GET", f"/shop/fruit/n{number}")
        connection.getresponse().read()
    connection.close()
    assert len(counts(daemon, TODAY, "ray_serve_num_http_requests", "route", "method", "status_code")) == before
