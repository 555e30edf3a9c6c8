"""The two documents of the API page, with Ray-style applications in archives behind https and a redirect."""

import http.server
import io
import json
import shutil
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

ROOT = Path(__file__).parents[2]
SOURCES = {"fruit": "fruit.py", "calculator": "conditional_dag.py"}


def archive(module: str) -> bytes:
    """As a forge packs a repository: everything under one folder."""
    code = (ROOT / "examples" / "fruit" / module).read_text()
    code = code.replace("import servd\n", "from ray import serve as servd\n").replace("from servd.", "from ray.serve.")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("apps-0123abc/README.md", "archived")
        file.writestr(f"apps-0123abc/{module}", code)
    return packed.getvalue()


class Forge(http.server.BaseHTTPRequestHandler):
    """`/apps/NAME/HEAD.zip` leads to `/codeload/NAME.zip`."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.split("/")[2].removesuffix(".zip")
        if self.path.startswith("/none/"):
            self.send_error(404)
            return
        if self.path.startswith("/apps/"):
            self.send_response(302)
            self.send_header("Location", f"/codeload/{name}.zip")
            self.end_headers()
            return
        body = archive(SOURCES[name])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make certificates")
    folder = tmp_path_factory.mktemp("forge")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem"


@pytest.fixture
def forge(certificate: Path) -> Iterator[tuple[str, list[str]]]:
    """Its URL, and what it was asked for."""
    handler = type("Asked", (Forge,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_name("key.pem"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://localhost:{server.server_port}", handler.asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def daemon(tmp_path: Path, certificate: Path) -> Iterator[RunningDaemon]:
    with a_daemon(settings_in(tmp_path), {"SSL_CERT_FILE": str(certificate)}) as running:
        yield running


def document(example: str, forge: str) -> Any:
    text = (ROOT / "tests" / "wire" / "examples" / example).read_text()
    body = json.loads(text.replace("https://example.com", forge))["request"]["json"]
    body.get("http_options", {}).pop("port", None)
    return body


def post(daemon: RunningDaemon, path: str, body: Any) -> str:
    answer = httpx.post(f"http://127.0.0.1:{daemon.settings.http_port}{path}", json=body, timeout=20)
    assert answer.status_code == 200, answer.text
    return answer.text


def all_running(daemon: RunningDaemon, *names: str) -> bool:
    apps = daemon.status()["applications"]
    failed = {name: app["message"] for name, app in apps.items() if app["status"] == "DEPLOY_FAILED"}
    assert not failed, failed
    return {name for name, app in apps.items() if app["status"] == "RUNNING"} == {*names}


def test_the_single_application_document(daemon: RunningDaemon, forge: tuple[str, list[str]]) -> None:
    url, asked = forge
    body = document("04-v1-put-fruit.json", url)
    assert daemon.ask("PUT", "/api/serve/deployments/", body) == (200, "")
    eventually(lambda: all_running(daemon, "default"))
    assert post(daemon, "/", ["MANGO", 2]) == "14"
    assert post(daemon, "/", ["PEAR", 2]) == "10"
    # the same URL again is not fetched again
    body["deployments"][0]["user_config"]["price"] = 8
    assert daemon.ask("PUT", "/api/serve/deployments/", body) == (200, "")
    eventually(lambda: post(daemon, "/", ["MANGO", 2]) == "16")
    assert asked == ["/apps/fruit/HEAD.zip", "/codeload/fruit.zip"]


@pytest.mark.long
def test_the_document_of_two_applications(daemon: RunningDaemon, forge: tuple[str, list[str]]) -> None:
    url, _ = forge
    body = document("11-v2-put-two-apps.json", url)
    assert daemon.ask("PUT", "/api/serve/applications/", body) == (200, "")
    eventually(lambda: all_running(daemon, "fruit_stand", "calculator"))
    assert post(daemon, "/fruit", ["MANGO", 2]) == "14"
    assert post(daemon, "/math", ["ADD", 10]) == "15 pizzas please!"


def test_an_archive_that_is_not_there(daemon: RunningDaemon, forge: tuple[str, list[str]]) -> None:
    url, _ = forge
    body = document("04-v1-put-fruit.json", f"{url}/none")
    assert daemon.ask("PUT", "/api/serve/deployments/", body) == (200, "")

    def failed() -> str:
        app = daemon.status()["applications"]["default"]
        return str(app["message"]) if app["status"] == "DEPLOY_FAILED" else ""

    assert "/none/apps/fruit/HEAD.zip" in eventually(failed)
