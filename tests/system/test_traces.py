"""Traces of a whole daemon, as a collector gets them: one trace through proxy, replicas, calls and batches."""

import concurrent.futures
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.exporter.otlp", reason="needs OpenTelemetry: pip install 'servd-serve[otel]'")

from tests.otlp_receiver import CLIENT, SERVER, Got, Receiver, a_receiver
from tests.system.running_daemon import LIMIT_S, RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow

SHOP = """
import asyncio, logging, os
from opentelemetry import trace
from servd import batch, deployment, get_trace_context
from starlette.requests import Request

tracer = trace.get_tracer("shop")
log = logging.getLogger("shop")

@deployment
class Model:
    @batch(max_batch_size=2, batch_wait_timeout_s=5)
    async def predict(self, items):
        with tracer.start_as_current_span("in batch"):
            return [2 * item for item in items]

    async def both(self):
        with tracer.start_as_current_span("around"):
            return await asyncio.gather(self.predict(1), self.predict(2))

    def sync(self):
        with tracer.start_as_current_span("in sync"):
            return trace.get_current_span().get_span_context().trace_id

    async def items(self):
        yield 1
        yield 2

    def fail(self):
        raise LookupError("no such fruit")

@deployment(num_replicas=2)
class All:
    async def pid(self):
        return os.getpid()

@deployment(start_method="spawn", max_ongoing_requests=1)
class Spawned:
    async def wait(self, folder):
        while folder and not os.path.exists(f"{folder}/go"):
            await asyncio.sleep(0.01)
        return os.getpid()

@deployment
class Front:
    def __init__(self, model, everyone, spawned):
        self.model, self.everyone, self.spawned = model, everyone, spawned

    async def __call__(self, request: Request):
        kind = request.url.path.rpartition("/")[2]
        log.info("asked for %s", kind)
        match kind:
            case "batch":
                with tracer.start_as_current_span("mine"):
                    return await self.model.both.remote()
            case "sync":
                return await self.model.sync.remote()
            case "items":
                return [item async for item in self.model.items.options(stream=True).remote()]
            case "all":
                return await self.everyone.broadcast("pid").results_async()
            case "spawned":
                folder = request.query_params.get("folder", "")
                return await asyncio.gather(*[self.spawned.wait.remote(folder) for _ in range(2)])
            case "fail":
                await self.model.fail.remote()
            case "header":
                return request.headers["traceparent"]
            case "context":
                with trace.use_span(trace.get_current_span(get_trace_context())) as span:
                    return f"{span.get_span_context().trace_id:032x}"
        return os.getpid()

app = Front.bind(Model.bind(), All.bind(), Spawned.bind())
"""
PARENT = "b7ad6b7169203331"
VARIABLES = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_RESOURCE_ATTRIBUTES": "team=fruit"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with a_receiver() as made:
        yield made


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    (directory / "shop.py").write_text(SHOP)
    variables = {**VARIABLES, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "SERVD_TRACING_SAMPLING_RATIO": "0"}
    with a_daemon(settings_in(directory), variables) as running:
        running.deploy(directory, "shop:app")
        yield running


def ask(daemon: RunningDaemon, path: str, number: int, flags: str = "01") -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of a request that is part of a trace of that number."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.http_port, timeout=LIMIT_S)
    try:
        headers = {"traceparent": f"00-{trace(number)}-{PARENT}-{flags}", "tracestate": "vendor=x"}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode(), {key.lower(): value for key, value in response.getheaders()}
    finally:
        connection.close()


def trace(number: int) -> str:
    return f"{number:032x}"


def spans_of(receiver: Receiver, number: int, count: int) -> list[Got]:
    """All spans of a trace but waits for a replica: the first call of a process waits until it knows where to."""

    def found() -> list[Got]:
        return [span for span in receiver.of(trace(number)) if span.name != "wait for replica"]

    eventually(lambda: len(found()) >= count)
    assert len(found()) == count, [span.name for span in found()]
    return found()


def tree(spans: list[Got]) -> dict[str, list[str]]:
    """Names of what is below each span, by its name; "" for what lies below none of them."""
    names = {span.id: span.name for span in spans}
    found: dict[str, list[str]] = {}
    for span in spans:
        found.setdefault(names.get(span.parent, ""), []).append(span.name)
    return {name: sorted(below) for name, below in found.items()}


def test_one_trace_from_the_client_to_the_batch(daemon: RunningDaemon, receiver: Receiver) -> None:
    status, text, headers = ask(daemon, "/batch", 1)
    assert (status, json.loads(text)) == (200, [2, 4])
    spans = spans_of(receiver, 1, 10)
    assert tree(spans) == {
        "": ["GET /"],
        "GET /": ["Front.__call__"],
        "Front.__call__": ["mine"],
        "mine": ["default_Model.both"],
        "default_Model.both": ["Model.both"],
        "Model.both": ["around"],
        "around": ["batch Model.predict", "wait for batch", "wait for batch"],
        "batch Model.predict": ["in batch"],
    }
    by_name = {span.name: span for span in spans}
    root, run, batch = by_name["GET /"], by_name["Front.__call__"], by_name["batch Model.predict"]
    assert (root.parent, root.kind, root.state, root.error) == (PARENT, SERVER, "vendor=x", False)
    assert headers["traceresponse"] == f"00-{trace(1)}-{root.id}-01"
    request_id = headers["x-request-id"]
    assert root.attributes["http.request.method"] == "GET"
    assert root.attributes["http.route"] == "/"
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["url.path"] == "/batch"
    assert root.attributes["client.address"] == "127.0.0.1"
    for span in (root, run):
        assert span.attributes["servd.application"] == "default"
        assert span.attributes["servd.deployment"] == "Front"
        assert span.attributes["servd.replica"].startswith("default_Front#")
        assert span.attributes["servd.request_id"] == request_id
    assert (run.attributes["servd.method"], by_name["default_Model.both"].kind) == ("__call__", CLIENT)
    assert (run.resource["service.name"], run.resource["team"]) == ("servd", "fruit")
    assert run.resource["service.instance.id"] == run.attributes["servd.replica"]
    around = by_name["around"]
    assert batch.links == (around.id, around.id)
    assert batch.attributes["servd.batch_size"] == 2
    assert [span.links for span in spans if span.name == "wait for batch"] == [(batch.id,)] * 2
    for span in spans:
        assert root.began - 1e6 <= span.began <= span.ended <= root.ended + 5e6, span


def test_ids_are_in_logs(daemon: RunningDaemon, receiver: Receiver) -> None:
    request_id = ask(daemon, "/sync", 2)[2]["x-request-id"]
    spans = {span.name: span for span in spans_of(receiver, 2, 5)}
    folder = Path(daemon.settings.log_dir) / "serve"

    def lines() -> list[str]:
        found = [line for path in folder.glob("*.log") for line in path.read_text().splitlines() if request_id in line]
        return found if len(found) == 4 else []

    by_span = {line.partition("span_id=")[2].partition(" ")[0]: line for line in eventually(lines)}
    assert by_span.keys() == {spans[name].id for name in ("GET /", "Front.__call__", "Model.sync")}
    assert all(f"{request_id} trace_id={trace(2)} span_id=" in line for line in by_span.values())
    assert "asked for sync" in "".join(lines())


@pytest.mark.parametrize(
    ("path", "number", "expected"),
    [
        ("sync", 3, {"Front.__call__": ["default_Model.sync"], "Model.sync": ["in sync"]}),
        ("items", 4, {"Front.__call__": ["default_Model.items"], "default_Model.items": ["Model.items"]}),
        ("all", 5, {"Front.__call__": ["default_All.pid"] * 2, "default_All.pid": ["All.pid"] * 2}),
        ("context", 6, {"GET /": ["Front.__call__"]}),
    ],
)
def test_calls_of_every_kind(
    daemon: RunningDaemon, receiver: Receiver, path: str, number: int, expected: dict[str, list[str]]
) -> None:
    status, text, _ = ask(daemon, f"/{path}", number)
    assert status == 200, text
    if path == "context":
        assert text == trace(number)
    count = {"sync": 5, "items": 4, "all": 6, "context": 2}[path]
    below = tree(spans_of(receiver, number, count))
    assert {name: below[name] for name in expected} == expected


def test_waiting_in_line_and_a_spawned_replica(daemon: RunningDaemon, receiver: Receiver, tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, daemon, f"/spawned?folder={tmp_path}", 7)
        # one of two runs, and the other waits for it
        eventually(lambda: [line for line in metrics(daemon) if "queued_queries" in line and line.endswith(" 1.0")])
        (tmp_path / "go").touch()
        assert asked.result()[0] == 200
    spans_of(receiver, 7, 6)
    spans = [span for span in receiver.of(trace(7)) if span.name == "wait for replica"]
    calls = {span.id: span for span in receiver.of(trace(7)) if span.name == "default_Spawned.wait"}
    longest = max(spans, key=lambda span: span.ended - span.began)
    call = calls[longest.parent]
    assert call.began <= longest.began + 1e6
    assert longest.ended <= call.ended
    assert {span.name for span in receiver.of(trace(7))} >= {"Spawned.wait"}


def metrics(daemon: RunningDaemon) -> list[str]:
    return str(daemon.ask("GET", "/metrics")[1]).splitlines()


def test_an_error_is_an_error_all_the_way(daemon: RunningDaemon, receiver: Receiver) -> None:
    status, _, headers = ask(daemon, "/fail", 8)
    assert status == 500
    spans = {span.name: span for span in spans_of(receiver, 8, 4)}
    assert all(span.error for span in spans.values()), [span.name for span in spans.values() if not span.error]
    (event,) = spans["Model.fail"].events
    assert (event["name"], event["exception.type"]) == ("exception", "LookupError")
    assert 'raise LookupError("no such fruit")' in event["exception.stacktrace"]
    assert spans["GET /"].attributes["error.type"] == "500"
    assert spans["default_Model.fail"].attributes["error.type"] == "UserCodeError"

    def kept() -> bool:
        found = daemon.ask("GET", "/api/servd/v1/errors")[1]["errors"]
        return any(one["trace_ids"].get(headers["x-request-id"]) == trace(8) for one in found)

    eventually(kept)


def test_the_header_that_a_handler_sees_names_the_span_that_runs(daemon: RunningDaemon, receiver: Receiver) -> None:
    text = ask(daemon, "/header", 11)[1]
    run = next(span for span in spans_of(receiver, 11, 2) if span.name == "Front.__call__")
    assert text == f"00-{trace(11)}-{run.id}-01"
    # nothing runs that is recorded
    assert ask(daemon, "/header", 12, flags="00")[1] == f"00-{trace(12)}-{PARENT}-00"


def test_who_decides_what_is_recorded(daemon: RunningDaemon, receiver: Receiver) -> None:
    # this daemon begins none itself; a client that does not record keeps its trace, in headers and logs alone
    assert daemon.get("/sync")[0] == 200
    status, text, headers = ask(daemon, "/sync", 9, flags="00")
    assert (status, int(text)) == (200, 9)
    assert headers["traceresponse"] == f"00-{trace(9)}-{PARENT}-00"
    assert ask(daemon, "/context", 10)[0] == 200
    spans_of(receiver, 10, 2)
    assert {int(span.trace_id, 16) for span in receiver.spans} <= set(range(12)) - {9}


@pytest.mark.long
def test_processes_that_die_and_are_born(daemon: RunningDaemon, receiver: Receiver) -> None:
    (proxy,) = daemon.pids("proxy")
    os.kill(proxy, signal.SIGKILL)
    eventually(lambda: daemon.pids("proxy") not in ([], [proxy]) and _answers(daemon))
    assert ask(daemon, "/context", 20)[0] == 200
    spans_of(receiver, 20, 2)
    (replica,) = (pid for pid in daemon.pids("replica") if f"{pid}" == ask(daemon, "/pid", 21)[1])
    os.kill(replica, signal.SIGKILL)
    eventually(lambda: _answers(daemon) and daemon.get("/pid")[1] != str(replica))
    ask(daemon, "/context", 22)
    spans_of(receiver, 22, 2)


def _answers(daemon: RunningDaemon) -> bool:
    try:
        return daemon.get("/pid")[0] == 200
    except OSError:
        return False


@pytest.mark.long
def test_a_collector_that_is_away_or_slow_costs_nobody_anything(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    with a_receiver() as receiver:
        receiver.status = 403
        settings = settings_in(tmp_path)
        variables = {**VARIABLES, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{receiver.url}/v1/traces"}
        with a_daemon(settings, variables) as daemon:
            daemon.deploy(tmp_path, "shop:app")
            for _ in range(50):
                assert daemon.get("/sync")[0] == 200
            log = Path(settings.log_dir) / "serve"
            warned = eventually(lambda: said(log, "traces_not_exported"))
            seen = receiver.requests
            # what few requests leave behind goes in one message of each process
            eventually(lambda: daemon.get("/sync")[0] == 200 and receiver.requests > seen + 5)
            assert sorted(said(log, "traces_not_exported"))[: len(warned)] == sorted(warned)
            places = [
                line.partition(" - ")[0].rpartition(" ")[0].partition(",")[2][4:] for line in said(log, "traces_not_")
            ]
            assert len(places) == len(set(places)), "each process tells once"
            receiver.status = 200
            assert daemon.get("/sync")[0] == 200
            eventually(lambda: len(said(log, "traces_exported_again")) == len(places))
            receiver.gate.clear()
            assert daemon.get("/sync")[0] == 200
            assert daemon.stop() == 0


def said(folder: Path, word: str) -> list[str]:
    """Lines of all logs with a word."""
    return [line for path in folder.glob("*.log") for line in path.read_text().splitlines() if word in line]


DRIVER = """
import servd
print(servd.get_deployment_handle("Model", "default").sync.remote().result(30))
"""


@pytest.mark.long
def test_a_graceful_stop_sends_what_waits(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    with a_receiver() as receiver:
        # nothing would leave by itself
        variables = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        with a_daemon(settings_in(tmp_path), variables) as daemon:
            daemon.deploy(tmp_path, "shop:app")
            assert daemon.get("/sync")[0] == 200
            environment = {**os.environ, **variables, "SERVD_STATE_DIR": daemon.settings.state_dir}
            driver = [sys.executable, "-c", DRIVER]
            found = subprocess.run(driver, env=environment, capture_output=True, text=True, check=True, timeout=LIMIT_S)
            (call,) = [span for span in receiver.spans if span.name != "wait for replica"]
            assert (call.name, call.parent, call.kind) == ("default_Model.sync", "", CLIENT)
            assert (int(call.trace_id, 16), call.resource["service.instance.id"][:7]) == (int(found.stdout), "driver-")
            receiver.spans.clear()
            assert daemon.stop() == 0
        traces = {span.trace_id for span in receiver.spans}
        names = {span.name for span in receiver.spans if span.trace_id != call.trace_id} - {"wait for replica"}
        assert (len(traces), call.trace_id in traces) == (2, True)
        assert names == {"GET /", "Front.__call__", "default_Model.sync", "Model.sync", "in sync"}
