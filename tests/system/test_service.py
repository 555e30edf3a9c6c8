"""A daemon under a service manager: ready, reload, stop; TLS on both ports; the operators' commands on a real instance."""

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from servd.daemon.admin_client import AdminClient, RefusedError
from servd.ground.settings import admin_socket
from servd.schema import parse_v2
from tests.fakes import make_certificate
from tests.system.running_daemon import ECHO, RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow

SLOW = """
import os, time
from servd import deployment

@deployment
class Slow:
    def __init__(self):
        while os.path.exists({gate!r}):
            time.sleep(0.01)

    async def __call__(self, request):
        return request.scope["scheme"] + " " + request.scope["http_version"]

app = Slow.bind()
"""


class Manager:
    """Where a service manager would listen."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(30)

    def heard(self) -> dict[str, str]:
        lines = self.socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def is_silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(4096, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(30)
        return False


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    made = Manager(tmp_path / "notify")
    yield made
    made.socket.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("one", "two"):
        make_certificate(folder, name)
    return folder


QUICK_ECHO = ECHO.replace("num_replicas=2", "num_replicas=2, graceful_shutdown_wait_loop_s=0.01")


def client_of(daemon: RunningDaemon) -> AdminClient:
    return AdminClient(f"unix://{admin_socket(daemon.settings.socket_dir)}")


def deploy(daemon: RunningDaemon, folder: Path, source: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "site_app.py").write_text(source)
    document = {"import_path": "site_app:app", "runtime_env": {"working_dir": str(folder)}}
    client_of(daemon).put(document, multi_app=False)


@pytest.mark.long
def test_ready_means_that_the_last_goal_is_serving_again(tmp_path: Path, manager: Manager) -> None:
    gate = tmp_path / "gate"
    settings = settings_in(tmp_path)
    variables = {"NOTIFY_SOCKET": manager.path}
    with a_daemon(settings, variables) as daemon:
        assert manager.heard() == {"READY": "1", "STATUS": "serving 0 application(s)"}
        deploy(daemon, tmp_path / "code", SLOW.format(gate=str(gate)))
        daemon.wait_until_running()
    assert manager.heard() == {"STOPPING": "1"}
    gate.touch()
    with a_daemon(settings, variables) as daemon:
        eventually(lambda: daemon.pids("replica"))
        assert daemon.status()["applications"]["default"]["status"] == "DEPLOYING"
        assert manager.is_silent()
        gate.unlink()
        assert manager.heard()["STATUS"] == "serving 1 application(s)"
        assert daemon.get()[0] == 200
    assert manager.heard() == {"STOPPING": "1"}


@pytest.mark.long
def test_a_broken_application_does_not_keep_the_service_from_being_ready(tmp_path: Path, manager: Manager) -> None:
    settings = settings_in(tmp_path)
    with a_daemon(settings) as daemon:
        deploy(daemon, tmp_path / "code", "raise RuntimeError('no')\n")
        eventually(lambda: daemon.status()["applications"]["default"]["status"] == "DEPLOY_FAILED")
    with a_daemon(settings, {"NOTIFY_SOCKET": manager.path}):
        assert manager.heard()["STATUS"] == "serving 1 application(s); failed: default"


def test_reload_reads_the_token_again(tmp_path: Path, manager: Manager) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    settings = settings_in(tmp_path, admin_token_file=str(token))
    with a_daemon(settings, {"NOTIFY_SOCKET": manager.path}) as daemon:
        assert "READY" in manager.heard()

        def status(word: str) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", settings.admin_port, timeout=10)
            connection.request("GET", "/api/ray/version", headers={"Authorization": f"Bearer {word}"})
            found = connection.getresponse().status
            connection.close()
            return found

        assert (status("first"), status("second")) == (200, 401)
        token.write_text("second\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert manager.heard().keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert manager.heard() == {"READY": "1", "STATUS": "reloaded"}
        assert (status("first"), status("second")) == (401, 200)
        token.write_text("\n")
        daemon.process.send_signal(signal.SIGHUP)
        manager.heard()
        assert "nothing was reloaded" in manager.heard()["STATUS"]
        assert status("second") == 200


def request(port: int, path: str, ca: Path) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(ca))
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_tls_on_both_ports_and_renewed_certificates(
    tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "tls"
    shutil.copytree(certificates, here)
    one, key = here / "one.crt", here / "one.key"
    settings = settings_in(
        tmp_path, admin_tls_cert=str(one), admin_tls_key=str(key), http_tls_cert=str(one), http_tls_key=str(key)
    )
    with a_daemon(settings) as daemon:
        deploy(daemon, tmp_path / "code", SLOW.format(gate=str(tmp_path / "nothing")))
        daemon.wait_until_running()
        assert request(settings.http_port or 0, "/", one) == (200, b"https 1.1")
        assert request(settings.admin_port, "/api/ray/version", one)[0] == 200
        monkeypatch.setenv("SERVD_ADMIN_CA_FILE", str(one))
        assert AdminClient(f"https://127.0.0.1:{settings.admin_port}").status()["running"]
        if curl := shutil.which("curl"):
            url = f"https://127.0.0.1:{settings.http_port}/"
            done = subprocess.run(
                [curl, "-sS", "--http2", "--cacert", one, url], capture_output=True, timeout=20, text=True
            )
            assert (done.stdout, done.stderr) == ("https 2", "")
        for suffix in ("crt", "key"):
            os.replace(here / f"two.{suffix}", here / f"one.{suffix}")
        daemon.process.send_signal(signal.SIGHUP)

        def renewed(port: int, path: str) -> bool:
            try:
                return request(port, path, one)[0] == 200
            except ssl.SSLError:
                return False

        eventually(lambda: renewed(settings.admin_port, "/api/ray/version"))
        eventually(lambda: renewed(settings.http_port or 0, "/"))


def test_history_rollback_scale_and_stacks_of_a_real_instance(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with a_daemon(settings) as daemon:
        client = client_of(daemon)
        deploy(daemon, tmp_path / "code", QUICK_ECHO)
        daemon.wait_until_running()
        first = set(daemon.pids("replica"))
        document = {
            "import_path": "site_app:app",
            "runtime_env": {"working_dir": str(tmp_path / "code")},
            "deployments": [{"name": "Echo", "user_config": {"a": 1}}],
        }
        plan = client.plan(document, multi_app=False)["applications"]["default"]
        assert plan["deployments"]["default_Echo"]["action"] == "reconfigured"
        (tmp_path / "code" / "site_app.py").write_text(QUICK_ECHO.replace("str(os.getpid())", "'second'"))
        plan = client.plan(document, multi_app=False)["applications"]["default"]
        assert plan["deployments"]["default_Echo"]["action"] == "restarted"
        assert plan["fields"] == [f"source files in file://{tmp_path}/code"]
        assert client.status()["revision"] == 1
        client.put(document | {"deployments": []}, multi_app=False)
        daemon.wait_until_running()
        assert daemon.get() == (200, "second")
        with pytest.raises(RefusedError, match="412"):
            client.rollback(1, revision=1)
        # the code of the first revision comes back, though its directory has changed
        assert client.rollback(1, revision=2) == {"revision": 3}
        daemon.wait_until_running()
        assert int(daemon.get()[1]) not in first
        assert [r["revision"] for r in client.revisions(10)["revisions"]] == [3, 2, 1]
        assert "by " in client.revision(3)["origin"]
        client.scale("default", "Echo", 3)
        eventually(lambda: len(daemon.pids("replica")) == 3)
        pid = daemon.pids("controller")[0]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: daemon.pids("controller") not in ([], [pid]) and daemon.is_ready())
        assert client.status()["applications"]["default"]["deployments"]["default_Echo"]["target_num_replicas"] == 3
        replica = client.status()["applications"]["default"]["deployments"]["default_Echo"]["replicas"][0]
        path = f"/api/servd/v1/replicas/{replica['replica_id'].replace('#', '%23')}/stack"
        text = eventually(lambda: stack_of(client, path))
        assert f"pid {replica['pid']}\n" in text
        assert "thread MainThread:" in text
        assert "task " in text
    with a_daemon(settings) as daemon:
        daemon.wait_until_running()
        assert len(daemon.pids("replica")) == 3
        client_of(daemon).put(json.loads(json.dumps(document | {"deployments": []})), multi_app=False)
        eventually(lambda: len(daemon.pids("replica")) == 2)


def test_documents_at_once_are_all_durable_and_none_is_a_mixture(tmp_path: Path) -> None:
    def document(number: int) -> dict[str, Any]:
        apps = [{"name": f"p{number}-{i}", "route_prefix": f"/{i}", "import_path": "no.such:app"} for i in range(3)]
        return {"applications": apps}

    with a_daemon(settings_in(tmp_path)) as daemon:
        client = client_of(daemon)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda number: client.put(document(number), multi_app=True), range(6)))
        found = [client.revision(item["revision"])["document"] for item in client.revisions(10)["revisions"]]
        assert sorted(json.dumps(item) for item in found) == sorted(json.dumps(stored(document(i))) for i in range(6))
        eventually(lambda: set(client.status()["applications"]) == {app["name"] for app in found[0]["applications"]})


def stored(document: dict[str, Any]) -> dict[str, Any]:
    return parse_v2(document).stored


def stack_of(client: AdminClient, path: str) -> str:
    try:
        return client.request("GET", path).text
    except RefusedError as error:
        if error.status != 504:
            raise
        # the replica's line to the new controller is not there yet
        return ""
