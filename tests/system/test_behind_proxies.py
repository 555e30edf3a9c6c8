"""The recipes for nginx and Caddy in `docs/cli.md`, as they stand there but for ports and paths."""

import asyncio
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.client

from tests.fakes import make_certificate
from tests.ports import free_port
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
UPLOAD_BYTES = 30_000_000
APP = """
import asyncio
import servd
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

api = FastAPI()
go_on = asyncio.Event()

@servd.deployment
@servd.ingress(api)
class Shop:
    @api.get("/where")
    async def where(self, request: Request):
        return {"url": str(request.url), "client": request.client.host, "made": str(request.url_for("where"))}

    @api.post("/upload")
    async def upload(self, request: Request):
        return sum([len(piece) async for piece in request.stream()])

    @api.get("/events")
    async def events(self):
        go_on.clear()
        async def pieces():
            yield "data: one\\n\\n"
            await go_on.wait()
            yield "data: two\\n\\n"
        return StreamingResponse(pieces(), media_type="text/event-stream")

    @api.get("/go-on")
    async def set_going(self):
        go_on.set()

    @api.websocket("/echo")
    async def echo(self, socket: WebSocket):
        await socket.accept()
        await socket.send_text(f"{socket.url} {await socket.receive_text()}")

app = Shop.bind()
"""
NGINX = """
daemon off;
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site;
}}
"""
# no address of its own for its admin API, and no port 80
CADDY = """
{
    admin off
    auto_https disable_redirects
}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "code").mkdir()
    (folder / "code" / "shop.py").write_text(APP)
    (text,) = re.findall(r"### nginx.*?```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "root_path: /api" in text
    with a_daemon(settings_in(folder)) as daemon:
        app = {"name": "shop", "import_path": "shop:app", "runtime_env": {"working_dir": str(folder / "code")}}
        document = {"http_options": {"root_path": "/api", "port": daemon.settings.http_port}, "applications": [app]}
        status, answer = daemon.ask("PUT", "/api/serve/applications/", document)
        assert status == 200, answer
        eventually(lambda: daemon.status()["applications"]["shop"]["status"] == "RUNNING")
        yield daemon


def recipe(language: str, changes: dict[str, str]) -> str:
    """The page's block of that language, with other ports and paths."""
    (site,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for before, after in changes.items():
        assert site.count(before) == 1
        site = site.replace(before, after)
    return site


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def port(
    request: pytest.FixtureRequest, daemon: RunningDaemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Where the proxy listens."""
    program = shutil.which(request.param, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        pytest.skip(f"needs {request.param} (Debian: {'nginx-light' if request.param == 'nginx' else 'caddy'})")
    folder, port = tmp_path_factory.mktemp(request.param), free_port()
    certificate, key = make_certificate(folder, "shop")
    changes = {
        "127.0.0.1:8000": f"127.0.0.1:{daemon.settings.http_port}",
        "/etc/ssl/shop.example.pem": str(certificate),
        "/etc/ssl/shop.example.key": str(key),
    }
    if request.param == "nginx":
        site = recipe("nginx", {**changes, "listen 443 ssl": f"listen 127.0.0.1:{port} ssl"})
        (folder / "site").write_text(site)
        (folder / "conf").write_text(NGINX.format(folder=folder))
        command = [program, "-c", folder / "conf", "-p", folder]
        # its workers are another user's
        folder.chmod(0o755)
    else:
        site = recipe(
            "caddyfile", {**changes, "shop.example {": f"https://127.0.0.1:{port}, https://shop.example:{port} {{"}
        )
        (folder / "conf").write_text(CADDY + site)
        command = [program, "run", "--adapter", "caddyfile", "--config", folder / "conf"]
    errors = folder / "errors"
    places = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with open(errors, "wb") as said:
        proxy = subprocess.Popen(command, stderr=said, env={**os.environ, **places})
    try:
        eventually(lambda: proxy.poll() is not None or is_open(port))
        assert proxy.poll() is None, errors.read_text()
        yield port
    finally:
        proxy.terminate()
        proxy.wait(20)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def a_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def connected(port: int) -> http.client.HTTPSConnection:
    # from an address that is no trusted proxy's
    return http.client.HTTPSConnection(
        "127.0.0.1", port, timeout=20, context=a_context(), source_address=("127.0.0.2", 0)
    )


def asked(port: int, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None) -> Any:
    connection = connected(port)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        return json.loads(text)
    finally:
        connection.close()


@pytest.mark.long
def test_the_application_sees_its_client_and_its_own_url(port: int) -> None:
    forged = {
        "X-Forwarded-For": "6.6.6.6",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "for=6.6.6.6;host=evil.example",
    }
    url = f"https://127.0.0.1:{port}/api/where"
    assert asked(port, "/api/where", headers=forged) == {"url": url, "client": "127.0.0.2", "made": url}
    named = asked(port, "/api/where", headers={"Host": "shop.example"})
    assert named["made"] == "https://shop.example/api/where"


@pytest.mark.long
def test_a_large_upload_arrives(port: int) -> None:
    assert asked(port, "/api/upload", "POST", b"x" * UPLOAD_BYTES) == UPLOAD_BYTES


@pytest.mark.long
def test_events_come_as_they_are_sent(port: int) -> None:
    connection = connected(port)
    try:
        connection.request("GET", "/api/events")
        answer = connection.getresponse()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.readline() == b"data: one\n"
        asked(port, "/api/go-on")
        assert answer.read() == b"\ndata: two\n\n"
    finally:
        connection.close()


@pytest.mark.long
async def test_a_websocket(port: int) -> None:
    url = f"wss://127.0.0.1:{port}/api/echo"
    # the library's other client reads and writes in two threads, and `ssl` of Python 3.11 lets them meet within OpenSSL
    async with asyncio.timeout(20), websockets.asyncio.client.connect(url, ssl=a_context()) as socket:
        await socket.send("hello")
        assert await socket.recv() == f"{url} hello"
