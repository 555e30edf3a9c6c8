"""What user code raises in a whole daemon: logged once where it was raised, with everything that leads to it."""

import http.client
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servd.controller.plan.start_verdict import BUILD_RETRIES
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow

SHOP = """
import asyncio, os, threading, time
from servd import batch, deployment, multiplexed
from starlette.background import BackgroundTask
from starlette.responses import Response

def boom(kind):
    raise LookupError(f"boom {kind}")

async def lost(kind):
    boom(kind)

class Finalized:
    def __del__(self):
        boom("finalizer")

def wants(context):
    raise LookupError("boom policy")

@deployment
class Back:
    async def call(self):
        boom("call")

    async def unread(self):
        boom("unread")

    async def items(self):
        yield 1
        boom("items")

    def sync(self):
        boom("sync")

    def slow(self, folder):
        open(f"{folder}/begun", "w").close()
        while not os.path.exists(f"{folder}/go"):
            time.sleep(0.005)
        boom("cancelled thread")

    @batch(max_batch_size=2, batch_wait_timeout_s=5)
    async def batched(self, items):
        boom("batch")

    async def one(self, item):
        return await self.batched(item)

    @multiplexed(max_num_models_per_replica=1)
    async def model(self, name):
        boom("model")

    async def load(self):
        return await self.model("m")

@deployment
class Front:
    def __init__(self, back):
        self.back = back

    async def __call__(self, request):
        kind = request.url.path.rpartition("/")[2]
        match kind:
            case "http":
                boom(kind)
            case "exit":
                raise SystemExit("boom exit")
            case "json":
                return object()
            case "generator":
                return self.generator()
            case "background":
                return Response("ok", background=BackgroundTask(boom, kind))
            case "task":
                asyncio.create_task(lost(kind))
                return "ok"
            case "callback":
                asyncio.get_running_loop().call_soon(boom, kind)
                return "ok"
            case "thread":
                threading.Thread(target=boom, args=(kind,)).start()
                return "ok"
            case "finalizer":
                Finalized()
                return "ok"
            case "call":
                await self.back.call.remote()
            case "unread":
                self.back.unread.remote()
                return "ok"
            case "caught":
                try:
                    await self.back.call.options(method_name="nope").remote()
                except Exception as error:
                    raise ValueError("boom caught") from error
            case "items":
                async for _ in self.back.items.options(stream=True).remote():
                    pass
            case "sync":
                await self.back.sync.remote()
            case "model":
                await self.back.load.options(multiplexed_model_id="m").remote()
            case "batch":
                both = [self.back.one.remote(n) for n in range(2)]
                await asyncio.gather(*[one if asyncio.iscoroutine(one) else _wait(one) for one in both])
            case "left":
                try:
                    open(request.query_params["folder"] + "/left", "w").close()
                    await asyncio.Event().wait()
                finally:
                    boom(kind)
            case "slow":
                await self.back.slow.remote(request.query_params["folder"])
        return "ok"

    async def generator(self):
        yield "first"
        boom("generator")

async def _wait(one):
    return await one

app = Front.bind(Back.bind())
"""
HOOKS = """
import asyncio
from servd import deployment, ingress

async def dies():
    raise LookupError("boom loop")

async def asgi(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        raise LookupError("boom websocket")
    raise LookupError("boom asgi")

@deployment
@ingress(asgi)
class Web:
    def __init__(self, *others):
        # kept, as whoever begins a loop in a constructor does
        self.task = asyncio.get_running_loop().create_task(dies())

@deployment(health_check_period_s=0.1)
class Sick:
    checks = 0

    def check_health(self):
        self.checks += 1
        if self.checks > 1:
            raise LookupError("boom health")

@deployment(user_config={"a": 1})
class Config:
    def reconfigure(self, config):
        if config["a"] == 2:
            raise LookupError("boom reconfigure")

@deployment
class Broken:
    def __init__(self):
        raise LookupError("boom constructor")

app = Web.bind(Sick.bind(), Config.bind(), Broken.bind())
"""
LOST = """
def find():
    import nothing_of_that_name

find()
"""
EARLY = """
from servd import deployment

@deployment(preload=True)
class Early:
    def __init__(self):
        raise LookupError("boom preload")

app = Early.bind()
"""
CAREFUL = """
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from servd import deployment, ingress

web = FastAPI()

@web.exception_handler(Exception)
async def sorry(request, error):
    return JSONResponse({"sorry": str(error)}, 500)

@deployment
@ingress(web)
class Careful:
    @web.get("/{kind}")
    def fail(self, kind: str):
        raise LookupError(f"boom {kind}")

app = Careful.bind()
"""
FRAMEWORK = """
import asyncio, logging
from servd import deployment, ingress

def fail(kind):
    try:
        raise LookupError(f"boom {kind}")
    except LookupError:
        logging.getLogger("framework").exception("unhandled")
        if kind == "raised":
            raise

async def app(scope, receive, send):
    kind = scope["path"].rpartition("/")[2]
    if kind == "threaded":
        await asyncio.to_thread(fail, kind)
    else:
        fail(kind)
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1011})
    else:
        await send({"type": "http.response.start", "status": 200 if kind == "handled" else 500, "headers": []})
        await send({"type": "http.response.body", "body": b"sorry"})

@deployment
@ingress(app)
class Framework:
    pass

app = Framework.bind()
"""
LINE = re.compile(r"^ERROR .* user_code_failed ")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("daemon")
    code = directory / "code"
    code.mkdir()
    (code / "shop.py").write_text(SHOP)
    (code / "hooks.py").write_text(HOOKS)
    (code / "lost.py").write_text(LOST)
    (code / "early.py").write_text(EARLY)
    (code / "framework.py").write_text(FRAMEWORK)
    (code / "careful.py").write_text(CAREFUL)
    with a_daemon(settings_in(directory)) as running:
        put(running, 1)
        eventually(lambda: are_healthy(running, "Front", "Back", "Web", "Config", "Careful", "Framework"))
        yield running


def put(daemon: RunningDaemon, config: int) -> None:
    env = {"working_dir": str(Path(daemon.settings.start_dir) / "code")}
    apps = [
        {"name": name, "route_prefix": f"/{name}", "import_path": path, "runtime_env": env}
        for name, path in (
            ("shop", "shop:app"),
            ("hooks", "hooks:app"),
            ("lost", "lost:app"),
            ("early", "early:app"),
            ("careful", "careful:app"),
            ("framework", "framework:app"),
        )
    ]
    scaled = {"min_replicas": 1, "max_replicas": 2, "policy": {"policy_function": "shop:wants"}}
    apps[0]["deployments"] = [{"name": "Back", "autoscaling_config": scaled}]
    apps[1]["deployments"] = [{"name": "Config", "user_config": {"a": config}}]
    assert daemon.ask("PUT", "/api/serve/applications/", {"applications": apps}) == (200, "")


def are_healthy(daemon: RunningDaemon, *names: str) -> bool:
    deployments = [one for app in daemon.status()["applications"].values() for one in app["deployments"].values()]
    return {one["name"] for one in deployments if one["status"] == "HEALTHY"} >= set(names)


def told(daemon: RunningDaemon, text: str) -> list[tuple[str, str]]:
    """(line, traceback) of each that was logged anywhere and has the text in its last line."""
    found = []
    for path in (Path(daemon.settings.log_dir) / "serve").glob("*.log"):
        try:
            blocks = re.split(r"\n(?=[A-Z]+ \d{4}-)", path.read_text())
        except FileNotFoundError:
            # of a replica that has been gone for long
            continue
        for block in blocks:
            line, _, rest = block.partition("\n")
            if LINE.match(line) and rest.rstrip().endswith(text):
                found.append((line, rest))
    return found


def get(daemon: RunningDaemon, path: str, request_id: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.http_port or 0, timeout=20)
    try:
        connection.request("GET", path, headers={"X-Request-ID": request_id})
        response = connection.getresponse()
        return response.status, response.read().decode()
    except http.client.IncompleteRead as error:
        return 0, error.partial.decode()
    finally:
        connection.close()


def open_websocket(daemon: RunningDaemon, path: str, request_id: str) -> None:
    """And wait for its end."""
    head = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    with socket.create_connection(("127.0.0.1", daemon.settings.http_port or 0)) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Request-ID: {request_id}\r\n{head}\r\n\r\n".encode())
        while client.recv(4096):
            pass


@pytest.mark.parametrize(
    ("kind", "status", "deployment", "method"),
    [
        ("http", 500, "Front", "__call__"),
        ("exit", 500, "Front", "__call__"),
        ("generator", 0, "Front", "__call__"),
        ("background", 200, "Front", "__call__"),
        ("task", 200, "Front", "lost"),
        ("callback", 200, "Front", "callback"),
        ("thread", 200, "Front", "Thread-"),
        ("finalizer", 200, "Front", "Finalized.__del__"),
        ("caught", 500, "Front", "__call__"),
        ("call", 500, "Back", "call"),
        ("unread", 200, "Back", "unread"),
        ("items", 500, "Back", "items"),
        ("sync", 500, "Back", "sync"),
        ("model", 500, "Back", "load"),
        ("batch", 500, "Back", "Back.batched"),
    ],
)
def test_what_a_request_raises_is_told_once(
    daemon: RunningDaemon, kind: str, status: int, deployment: str, method: str
) -> None:
    assert get(daemon, f"/shop/{kind}", f"req-{kind}")[0] == status
    ((line, trace),) = eventually(lambda: told(daemon, f"boom {kind}"))
    assert f"deployment={deployment} method={method}" in line
    assert f"replica shop_{deployment}#" in line
    if kind not in ("thread", "callback"):
        assert f" req-{kind} /shop shop " in line
    assert "Traceback (most recent call last):" in trace
    if kind != "exit":
        own = Path(daemon.settings.start_dir) / "code" / "shop.py"
        assert f'File "{own}"' in trace
    assert len(told(daemon, f"boom {kind}")) == 1


def test_an_answer_that_has_no_form_is_told_of_its_request(daemon: RunningDaemon) -> None:
    assert get(daemon, "/shop/json", "req-json")[0] == 500
    lines = [line for line, _ in eventually(lambda: told(daemon, ""))]
    assert sum(" req-json /shop shop " in line for line in lines) == 1


@pytest.mark.parametrize(("kind", "text"), [("left", "boom left"), ("slow", "boom cancelled thread")])
def test_what_is_raised_after_the_client_left_is_told(
    daemon: RunningDaemon, tmp_path: Path, kind: str, text: str
) -> None:
    client = socket.create_connection(("127.0.0.1", daemon.settings.http_port or 0))
    client.sendall(
        f"GET /shop/{kind}?folder={tmp_path} HTTP/1.1\r\nHost: a\r\nX-Request-ID: gone-{kind}\r\n\r\n".encode()
    )
    eventually(lambda: list(tmp_path.iterdir()))
    client.close()
    (tmp_path / "go").touch()
    ((line, _),) = eventually(lambda: told(daemon, text))
    assert f" gone-{kind} /shop shop " in line


def test_what_an_application_answers_with_a_handler_for_any_error_is_told(daemon: RunningDaemon) -> None:
    assert get(daemon, "/careful/answered", "req-answered") == (500, '{"sorry":"boom answered"}')
    ((line, _),) = eventually(lambda: told(daemon, "boom answered"))
    assert "deployment=Careful method=__call__" in line
    assert " req-answered /careful careful " in line
    ((error),) = eventually(lambda: listed_as(daemon, "answered"))
    assert error["count"] == 1


def test_what_a_framework_logs_and_answers_itself_is_an_error_logged_once(daemon: RunningDaemon) -> None:
    counted = 0
    for kind in ("handled", "plain", "threaded", "raised", "socketed"):
        if kind == "socketed":
            open_websocket(daemon, "/framework/socketed", "req-socketed")
        else:
            status, body = get(daemon, f"/framework/{kind}", f"req-{kind}")
            assert (status, body == "sorry") == (200 if kind == "handled" else 500, kind != "raised")
        if kind == "handled":
            continue
        (error,) = eventually(lambda kind=kind: listed_as(daemon, kind))  # type: ignore[misc]
        counted += 1
        assert (error["count"], error["deployment"]) == (counted, "Framework")
        assert f"req-{kind}" in error["request_ids"]
        assert "req-handled" not in error["request_ids"]
        assert len(told(daemon, f"boom {kind}")) == (kind == "raised")


def test_a_websocket_and_an_asgi_application_are_told(daemon: RunningDaemon) -> None:
    assert get(daemon, "/hooks/x", "req-asgi")[0] == 500
    open_websocket(daemon, "/hooks/ws", "req-ws")
    for request_id, text in (("req-asgi", "boom asgi"), ("req-ws", "boom websocket")):
        ((line, _),) = eventually(lambda text=text: told(daemon, text))  # type: ignore[misc]
        assert f" {request_id} /hooks hooks " in line
        assert "deployment=Web method=__call__" in line


def test_hooks_are_told_without_a_request(daemon: RunningDaemon) -> None:
    put(daemon, 2)
    for name, method, text in (
        ("Broken", "__init__", "boom constructor"),
        ("Web", "dies", "boom loop"),
        ("Sick", "check_health", "boom health"),
        ("Config", "reconfigure", "boom reconfigure"),
    ):
        line, _ = eventually(lambda text=text: told(daemon, text))[0]  # type: ignore[misc]
        assert " hooks failure_log.py" in line
        assert f"deployment={name} method={method}" in line


def listed(daemon: RunningDaemon, query: str = "") -> list[dict[str, Any]]:
    code, body = daemon.ask("GET", f"/api/servd/v1/errors{query}")
    assert code == 200, body
    return list(body["errors"])


def listed_as(daemon: RunningDaemon, kind: str) -> list[dict[str, Any]]:
    text = f"LookupError: boom {kind}"
    return [one for one in listed(daemon) if (one["message"], one["type"]) == (text, "LookupError")]


def after_call(daemon: RunningDaemon, request_id: str) -> dict[str, Any]:
    """How the list has a failed call's error."""
    assert get(daemon, "/shop/call", request_id)[0] == 500
    (one,) = eventually(lambda: [one for one in listed_as(daemon, "call") if request_id in one["request_ids"]])
    return one


def test_errors_are_listed(daemon: RunningDaemon) -> None:
    first, one = (after_call(daemon, f"again-{number}") for number in range(2))
    assert one["count"] == first["count"] + 1
    assert one["request_ids"][:2] == ["again-1", "again-0"]
    assert one["place"].endswith("code/shop.py:8 in boom")
    for kind in ("constructor", "reconfigure", "health"):
        (other,) = eventually(lambda kind=kind: listed_as(daemon, kind))  # type: ignore[misc]
        assert (other["application"], other["request_ids"]) == ("hooks", [])
    assert {one["application"] for one in listed(daemon, "?application=hooks")} == {"hooks"}
    assert {one["deployment"] for one in listed(daemon, "?application=shop&deployment=Back")} == {"Back"}
    code, shown = daemon.ask("GET", f"/api/servd/v1/errors/{one['id']}")
    assert (code, {**shown, "traceback": ""}) == (200, {**one, "traceback": ""})
    assert shown["traceback"].endswith("LookupError: boom call")
    assert daemon.ask("GET", "/api/servd/v1/errors/none")[0] == 404


def test_what_an_autoscaling_policy_raises_is_an_error_of_its_deployment(daemon: RunningDaemon) -> None:
    ((error),) = eventually(lambda: listed_as(daemon, "policy"))
    assert (error["application"], error["deployment"], error["method"]) == ("shop", "Back", "shop:wants")
    assert error["place"].endswith("in wants")
    # it is asked once a second
    eventually(lambda: listed_as(daemon, "policy")[0]["count"] > error["count"])


def test_builds_that_fail_are_errors_too(daemon: RunningDaemon) -> None:
    (lost,) = eventually(lambda: listed(daemon, "?application=lost"))
    assert (lost["type"], lost["deployment"], lost["method"]) == ("ModuleNotFoundError", "", "import")
    assert lost["place"].endswith("code/lost.py:3 in find")
    (early,) = eventually(lambda: listed_as(daemon, "preload"))
    assert (early["application"], early["deployment"], early["method"]) == ("early", "Early", "__init__")
    log = builds_log(daemon)
    for one in (lost, early):
        assert re.search(rf"^ERROR .* {one['application']} .* build_failed error={one['id']} ", log, re.MULTILINE)
        assert one["message"] in daemon.ask("GET", f"/api/servd/v1/errors/{one['id']}")[1]["traceback"]


def builds_log(daemon: RunningDaemon) -> str:
    return (Path(daemon.settings.log_dir) / "serve" / "fork_server.log").read_text()


def failed_builds(daemon: RunningDaemon) -> int:
    return len(re.findall(r"^ERROR .* lost .* build_failed ", builds_log(daemon), re.MULTILINE))


@pytest.mark.long
def test_errors_outlive_the_controller(daemon: RunningDaemon) -> None:
    # a build that fails is begun again a few times, anew with each document: some of that is over
    tries = BUILD_RETRIES + 1
    (lost,) = eventually(lambda: [one for one in listed(daemon, "?application=lost") if one["count"] >= tries], 90.0)
    before = after_call(daemon, "before")
    pid = daemon.status()["controller_info"]["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: is_told_by_another(daemon, pid))
    after = after_call(daemon, "after")
    expected = {"count": before["count"] + 1, "request_ids": ["after", *before["request_ids"]][:10]}
    assert after == {**before, **expected, "last_at": after["last_at"]}
    (kept,) = listed(daemon, "?application=lost")
    assert kept["count"] <= failed_builds(daemon), "its fork server has told of it again"
    # of an error that is known, what came within the last seconds is not written yet
    assert {**lost, "count": kept["count"], "last_at": kept["last_at"]} == kept


def is_told_by_another(daemon: RunningDaemon, pid: int) -> bool:
    try:
        return bool(daemon.status()["controller_info"]["pid"] != pid)
    except OSError:
        return False
