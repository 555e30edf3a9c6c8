"""The dashboard port of a daemon, and Ray 2.60's own `serve` command at it."""

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from servd.daemon.admin_client import AdminClient
from tests.ports import free_port
from tests.processes import process
from tests.system.running_daemon import ECHO, RunningDaemon, a_daemon, eventually, settings_in

RAY = os.environ.get("SERVD_TEST_RAY", "")
"""The `bin` folder of an environment that has `ray[serve]` 2.60."""
V2 = "/api/serve/applications/"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "echo.py").write_text(ECHO)
    with a_daemon(settings_in(tmp_path, dashboard_port=free_port())) as running:
        yield running


def ask_today(daemon: RunningDaemon, path: str = V2) -> dict[str, Any]:
    """What the dashboard port answers."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.dashboard_port or 0, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200
        return dict(json.loads(response.read()))
    finally:
        connection.close()


@pytest.mark.long
def test_the_port_outlives_a_controller_and_one_that_is_taken_costs_a_line(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    before = ask_today(daemon, "/api/ray/version")
    assert "proxies" in ask_today(daemon)
    assert f"as today's Ray Serve: http://127.0.0.1:{daemon.settings.dashboard_port}" in daemon.errors
    other = tmp_path / "other"
    other.mkdir()
    with a_daemon(settings_in(other, dashboard_port=daemon.settings.dashboard_port)) as second:
        assert second.errors.count("--dashboard-port") == 1
        assert "as today's Ray Serve: http" not in second.errors
        code, body = second.ask("GET", f"{V2}?dialect=today")
        assert (code, "proxies" in body) == (200, True)
    pid = daemon.status()["controller_info"]["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: process(pid) is None)
    assert ask_today(daemon, "/api/ray/version") == before


@pytest.mark.long
def test_servds_own_client_is_told_the_same_at_either_port(daemon: RunningDaemon) -> None:
    settings = daemon.settings
    today, own = (AdminClient(f"http://127.0.0.1:{port}") for port in (settings.dashboard_port, settings.admin_port))
    assert today.details().keys() == own.details().keys() >= {"deploy_mode"}
    assert today.probe() == own.probe()


class Serve:
    """The command of Ray 2.60 against the dashboard port."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self._variables = {**os.environ, "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{daemon.settings.dashboard_port}"}

    def __call__(self, *arguments: str) -> str:
        command = [f"{RAY}/serve", *arguments]
        done = subprocess.run(command, env=self._variables, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self, *arguments: str) -> Any:
        return yaml.safe_load(self("status", *arguments))


@pytest.mark.long
@pytest.mark.skipif(not RAY, reason="SERVD_TEST_RAY names no environment with ray[serve]==2.60.0")
def test_todays_serve_command_drives_a_daemon(daemon: RunningDaemon, tmp_path: Path) -> None:
    serve = Serve(daemon)
    nothing = {"proxies": {}, "applications": {}, "target_capacity": None}
    serve("shutdown", "-y")
    assert serve.status() == nothing
    env = {"working_dir": f"local://{tmp_path / 'code'}"}
    app = {"name": "a", "route_prefix": "/a", "import_path": "echo:app", "runtime_env": env}
    bad = {"name": "bad", "route_prefix": "/bad", "import_path": "nothing:app"}
    override = {"name": "Echo", "num_replicas": 1, "max_ongoing_requests": 7, "user_config": None}
    document = tmp_path / "today.yaml"
    document.write_text(yaml.safe_dump({"applications": [{**app, "deployments": [override]}, bad]}))
    serve("deploy", str(document))

    def settled() -> bool:
        apps = ask_today(daemon)["applications"]
        return apps["a"]["status"] == "RUNNING" and apps["bad"]["status"] == "DEPLOY_FAILED"

    eventually(settled)
    shown = serve.status()
    assert list(shown["proxies"].values()) == ["HEALTHY"]
    assert shown["applications"]["bad"]["status"] == "DEPLOY_FAILED"
    deployment = serve.status("-n", "a")["deployments"]["Echo"]
    assert deployment["replica_states"] == {"RUNNING": 1}
    assert (deployment["status"], deployment["status_trigger"]) == ("HEALTHY", "CONFIG_UPDATE_COMPLETED")
    config = yaml.safe_load(serve("config", "-n", "a"))
    assert config == {**app, "deployments": [override]}
    assert len(list(yaml.safe_load_all(serve("config")))) == 2
    serve("shutdown", "-y")
    assert serve.status() == nothing
    assert not daemon.status()["running"]
