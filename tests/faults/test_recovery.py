"""What is left of processes that die, and who serves afterwards."""

import http.client
import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from servd.daemon.admin_client import AdminClient, RefusedError
from tests.faults.limits import Descriptors
from tests.faults.stage import Stage
from tests.system.running_daemon import ECHO, RunningDaemon, a_daemon, eventually, settings_in, titles

pytestmark = pytest.mark.slow

PROBE = """
import asyncio
import faulthandler
import os
import queue

NAMES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MKL_NUM_THREADS")

from servd import deployment


@deployment
class Probe:
    def __init__(self):
        self.at_start = {name: os.environ.get(name) for name in NAMES}
        self.kept = []

    async def __call__(self, request):
        wish = request.query_params.get("do")
        if wish == "crash":
            faulthandler._sigsegv()
        elif wish == "grow":
            self.kept.append(b"x" * 64 * 2**20)
        elif wish == "block":
            queue.SimpleQueue().get()
        elif wish == "wait":
            await asyncio.Event().wait()
        return {"start": self.at_start, "pid": os.getpid()}


app = Probe.bind()
"""


class Probes:
    """The application "probe" on a daemon."""

    def __init__(self, daemon: RunningDaemon, directory: Path) -> None:
        self.daemon = daemon
        self._code = directory / "probe"
        self._code.mkdir()
        (self._code / "probe.py").write_text(PROBE)

    def deploy(self, *, runtime_env: dict[str, Any] | None = None, **options: Any) -> None:
        """Deploy it with these options and wait."""
        application = {
            "name": "probe",
            "import_path": "probe:app",
            "runtime_env": {"working_dir": str(self._code), **(runtime_env or {})},
            "deployments": [{"name": "Probe", **options}],
        }
        assert self.daemon.ask("PUT", "/api/serve/applications/", {"applications": [application]}) == (200, "")
        eventually(self.runs)

    def status(self) -> dict[str, Any]:
        """Status of its deployment."""
        return dict(self.daemon.status()["applications"]["probe"]["deployments"]["probe_Probe"])

    def runs(self) -> bool:
        """Whether it is as wanted."""
        app = self.daemon.status()["applications"].get("probe")
        return app is not None and app["status"] == "RUNNING" and self.status()["status"] == "HEALTHY"

    def said(self) -> dict[str, Any]:
        """What a replica answers."""
        code, text = self.daemon.get()
        assert code == 200, text
        return dict(json.loads(text))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with a_daemon(settings_in(tmp_path_factory.mktemp("recovery"), num_gpus=2.0)) as running:
        yield running


@pytest.fixture
def probes(daemon: RunningDaemon, tmp_path: Path) -> Iterator[Probes]:
    yield Probes(daemon, tmp_path)
    assert daemon.ask("DELETE", "/api/serve/applications/") == (200, "")


def ask_and_leave(
    daemon: RunningDaemon, path: str, headers: Mapping[str, str] = MappingProxyType({})
) -> http.client.HTTPConnection:
    """Send a request whose answer nobody waits for; a POST, so that it is not sent to the next replica as well."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.http_port, timeout=30)
    connection.request("POST", path, headers=headers)
    return connection


def sockets(stage: Stage) -> list[str]:
    directory = stage.daemon.settings.socket_dir
    return os.listdir(directory) if os.path.exists(directory) else []


def test_the_daemon_killed_leaves_no_process_and_no_socket_not_even_a_stuck_handler(tmp_path: Path) -> None:
    shared = set(os.listdir("/dev/shm"))
    settings = settings_in(tmp_path, proxies=2)
    daemon = RunningDaemon(settings).ready()
    stage = Stage(daemon, tmp_path)
    stage.deploy(replicas=3)
    load = stage.load("/?hold=0.02")
    try:
        stuck = ask_and_leave(daemon, "/?block", {"x-mark": "stuck"})
        eventually(lambda: "stuck" in stage.begun())
        daemon.process.kill()
        daemon.process.wait()
        eventually(lambda: not list(titles(settings.state_dir)), 5.0)
    finally:
        load.kill()
    stuck.close()
    assert sockets(stage) == []
    assert set(os.listdir("/dev/shm")) <= shared


def test_after_a_power_cut_the_last_accepted_document_is_served_again(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, proxies=2)
    daemon = RunningDaemon(settings).ready()
    stage = Stage(daemon, tmp_path)
    stage.deploy(version=1, replicas=2)
    # accepted, and by no means carried out
    stage.put(version=2, colour=7, replicas=3)
    daemon.cut_the_power()
    eventually(lambda: not list(titles(settings.state_dir)), 5.0)
    with a_daemon(settings) as stage.daemon:
        stage.wait()
        assert stage.daemon.status()["revision"] == 2
        assert stage.daemon.get()[1].split()[2:4] == ["2", "7"]


def test_the_post_mortem_of_a_crash_tells_signal_age_open_requests_and_last_words(probes: Probes) -> None:
    probes.deploy()
    waiting = ask_and_leave(probes.daemon, "/?do=wait")
    eventually(lambda: probes.status()["replicas"][0]["ongoing"] == 1)
    (victim,) = probes.status()["replicas"]
    crashing = ask_and_leave(probes.daemon, "/?do=crash")
    (dead,) = eventually(lambda: probes.status()["recent_dead_replicas"])[:1]
    waiting.close()
    crashing.close()
    assert dead["replica_id"] == victim["replica_id"]
    assert dead["signal"] == signal.SIGSEGV
    assert dead["age_s"] > 0
    assert dead["open_requests"] >= 1
    assert any("Segmentation fault" in line for line in dead["log_lines"]), dead["log_lines"]
    assert any("probe.py" in line for line in dead["log_lines"])


@pytest.mark.long
def test_a_stuck_handler_leaves_its_stack(probes: Probes) -> None:
    probes.deploy()
    stuck = ask_and_leave(probes.daemon, "/?do=block")
    (victim,) = eventually(
        lambda: [r for r in probes.status()["replicas"] if "queue.SimpleQueue().get()" in r["message"]], 20.0
    )
    assert "probe.py" in victim["message"]
    os.kill(victim["pid"], signal.SIGKILL)
    (dead,) = eventually(lambda: probes.status()["recent_dead_replicas"])
    stuck.close()
    assert (dead["signal"], dead["open_requests"]) == (signal.SIGKILL, 1)
    assert "queue.SimpleQueue().get()" in dead["stack"]


def test_a_replica_above_its_memory_limit_is_replaced_and_nobody_notices(probes: Probes) -> None:
    limit = 150 * 2**20
    probes.deploy(memory_limit_bytes=limit)
    before = probes.said()["pid"]
    for _ in range(3):
        assert probes.daemon.get("/?do=grow")[0] == 200
    answers: list[int] = []

    def is_replaced() -> bool:
        answers.append(probes.daemon.get()[0])
        return bool(probes.said()["pid"] != before)

    eventually(is_replaced)
    (dead,) = eventually(lambda: probes.status()["recent_dead_replicas"])
    assert set(answers) == {200}
    assert (dead["pid"], dead["exit_code"]) == (before, 0)
    assert f"memory_limit_bytes {limit}" in dead["reason"]
    used = int(dead["reason"].split()[1])
    assert limit < used < 400 * 2**20
    eventually(probes.runs)


def test_thread_counts_follow_num_cpus(probes: Probes) -> None:
    probes.deploy(ray_actor_options={"num_cpus": 3})
    said = probes.said()
    assert said["start"]["OMP_NUM_THREADS"] == "3"
    own = {"env_vars": {"OMP_NUM_THREADS": "5"}}
    probes.deploy(ray_actor_options={"num_cpus": 3, "runtime_env": own})
    said = probes.said()
    assert said["start"]["OMP_NUM_THREADS"] == "5", "what the user wrote wins"
    assert said["start"]["MKL_NUM_THREADS"] == "3"
    probes.deploy()
    assert probes.said()["start"]["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS")


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_replica_sees_its_own_devices_only(probes: Probes, start_method: str) -> None:
    probes.deploy(ray_actor_options={"num_gpus": 1}, num_replicas=2, start_method=start_method)
    seen = set()

    def both_seen() -> bool:
        seen.add(probes.said()["start"]["CUDA_VISIBLE_DEVICES"])
        return seen == {"0", "1"}

    eventually(both_seen)


def test_a_killed_replica_is_replaced_in_a_blink(probes: Probes) -> None:
    probes.deploy()
    (victim,) = probes.status()["replicas"]
    os.kill(victim["pid"], signal.SIGKILL)
    assert probes.said()["pid"] != victim["pid"]


def test_a_daemon_that_cannot_start_a_controller_goes_on_and_starts_it_as_soon_as_it_can(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    with a_daemon(settings_in(tmp_path)) as daemon:
        daemon.deploy(tmp_path)
        (controller,) = daemon.pids("controller")
        # enough to accept a client, too few for a process
        none_left = Descriptors("daemon", 2)
        none_left.begin(daemon)
        os.kill(controller, signal.SIGKILL)
        eventually(lambda: "the controller cannot be started: " in daemon.errors)
        assert daemon.get()[0] == 200
        code, text = daemon.ask("PUT", "/api/serve/applications/", {"applications": []})
        assert code == 503
        assert "the controller cannot be started: " in text
        with pytest.raises(RefusedError, match="answered 503: the controller cannot be started: "):
            AdminClient(f"http://127.0.0.1:{daemon.settings.admin_port}").probe()
        none_left.end()
        eventually(daemon.is_ready)
        daemon.wait_until_running()


def test_clients_of_the_admin_plane_that_are_gone_hold_no_descriptor(daemon: RunningDaemon) -> None:
    (controller,) = daemon.pids("controller")
    daemon.status()
    before = len(os.listdir(f"/proc/{controller}/fd"))
    for _ in range(30):
        daemon.status()
    eventually(lambda: len(os.listdir(f"/proc/{controller}/fd")) <= before + 2, 5.0)
