"""A daemon becomes another edition of servd in its own place, under load; or stays what it is, and says why."""

import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from servd.commands.waiting import wait_until_running
from servd.daemon.admin_client import AdminClient
from servd.daemon.launch import start_tied
from servd.daemon.presence import Presence
from servd.daemon.state_lock import running_pid
from servd.ground.clock import block_for
from servd.ground.package import PACKAGE_DIR, PROTOCOL, VERSION
from servd.ground.settings import Settings, admin_socket
from servd.ground.states import UpgradeStage
from tests.fakes import make_certificate
from tests.system.running_daemon import ECHO, RunningDaemon, a_daemon, eventually, settings_in, titles

pytestmark = pytest.mark.long


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, which a daemon is started from."""
    installed = tmp_path / "installed" / "servd"
    shutil.copytree(PACKAGE_DIR, installed, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "echo.py").write_text(ECHO)
    return installed


@contextmanager
def serving(package: Path, **options: Any) -> Iterator[RunningDaemon]:
    """A daemon of that package with an application of two replicas."""
    directory = package.parents[1]
    with a_daemon(settings_in(directory, **options), {"PYTHONPATH": str(package.parent)}) as daemon:
        daemon.deploy(directory / "code")
        yield daemon


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def install(package: Path, version: str) -> None:
    """Another version of the package, which differs in nothing else."""
    change(package / "ground" / "package.py", f'VERSION = "{VERSION}"', f'VERSION = "{version}"')


def upgrade(daemon: RunningDaemon, package: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`servd upgrade` of what is installed."""
    with upgrading(daemon.settings, package, *options) as command:
        return ended(command)


@contextmanager
def upgrading(settings: Settings, package: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """`servd upgrade` at work."""
    line = [sys.executable, "-P", "-m", "servd", "upgrade", "--state-dir", settings.state_dir, *options]
    variables = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    with command:
        try:
            yield command
        finally:
            command.kill()


def ended(command: "subprocess.Popen[str]") -> subprocess.CompletedProcess[str]:
    """What it said, and its exit code."""
    said, errors = command.communicate(timeout=120)
    return subprocess.CompletedProcess(command.args, command.returncode, said, errors)


def others(daemon: RunningDaemon) -> set[int]:
    """All its processes but the daemon itself."""
    return set(daemon.pids()) - {daemon.process.pid}


def stage_of(daemon: RunningDaemon) -> tuple[str, str]:
    """Stage and message of the latest upgrade, once a controller answers that knows of one."""

    def found() -> dict[str, Any] | None:
        try:
            state: dict[str, Any] | None = daemon.status()["upgrade"]
        except (OSError, http.client.HTTPException):
            return None
        return state

    state = eventually(found)
    return state["stage"], state["message"]


class Load:
    """Clients that ask without a pause, over connections that stay and over fresh ones; what they were answered.

    Args:
        trust: whom clients of a port with TLS believe.
    """

    def __init__(self, port: int, trust: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._trust = trust
        self._is_over = threading.Event()
        self.answers: Counter[str] = Counter()
        self._clients = [threading.Thread(target=self._ask, args=(kept,)) for kept in (True, True, False)]

    def __enter__(self) -> "Load":
        for client in self._clients:
            client.start()
        eventually(lambda: self.answers["200"] > 50)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for client in self._clients:
            client.join(30)

    def _ask(self, is_kept: bool) -> None:
        connection = (
            http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            if self._trust is None
            else http.client.HTTPSConnection("127.0.0.1", self._port, timeout=30, context=self._trust)
        )
        while not self._is_over.is_set():
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
                response.read()
                self.answers[str(response.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                self.answers[repr(error)] += 1
                connection.close()
            if not is_kept:
                connection.close()
        connection.close()


@pytest.mark.parametrize("proxies", [1, 2])
def test_everything_becomes_the_new_version_and_no_request_fails(package: Path, proxies: int) -> None:
    with serving(package, proxies=proxies) as daemon:
        before = others(daemon)
        with Load(daemon.settings.http_port or 0) as load:
            install(package, "0.2.0")
            assert "servd upgrade" in eventually(lambda: daemon.status()["notice"])
            done = upgrade(daemon, package, "--wait", "--timeout", "60")
            assert done.returncode == 0, done
            asked = load.answers["200"]
            eventually(lambda: load.answers["200"] > asked + 50)
        assert set(load.answers) == {"200"}
        assert "Everything runs servd 0.2.0+" in done.stdout
        assert daemon.process.poll() is None
        eventually(lambda: not before & others(daemon))
        assert len(daemon.pids("replica")) == 2
        assert len(daemon.pids("proxy")) == proxies
        status = daemon.status()
        assert status["edition"].startswith("0.2.0+")
        assert status["notice"] == ""
        # a second one has nothing to do, and deploys go on
        assert "already" in upgrade(daemon, package, "--wait").stdout
        daemon.deploy(package.parents[1] / "code")
        # and back again
        change(package / "ground" / "package.py", '"0.2.0"', f'"{VERSION}"')
        assert upgrade(daemon, package, "--wait", "--timeout", "60").returncode == 0
        assert daemon.status()["edition"].startswith(f"{VERSION}+")


def test_connections_with_tls_are_served_all_the_while(package: Path, tmp_path: Path) -> None:
    certificate, key = map(str, make_certificate(tmp_path, "data"))
    trust = ssl.create_default_context(cafile=certificate)
    tls = {"http_tls_cert": certificate, "http_tls_key": key, "admin_tls_cert": certificate, "admin_tls_key": key}
    with serving(package, **tls) as daemon:
        before = others(daemon)
        with Load(daemon.settings.http_port or 0, trust) as load:
            install(package, "0.2.0")
            done = upgrade(daemon, package, "--wait", "--timeout", "60")
            assert done.returncode == 0, done
            asked = load.answers["200"]
            eventually(lambda: load.answers["200"] > asked + 50)
        assert set(load.answers) == {"200"}
        eventually(lambda: not before & others(daemon))
        with socket_of(daemon.settings.admin_port, trust) as admin:
            assert admin.version()


def socket_of(port: int, trust: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection whose handshake is done."""
    return trust.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1")


@pytest.mark.parametrize("stage", [None, UpgradeStage.PROXIES, UpgradeStage.REPLICAS])
def test_a_controller_that_is_killed_in_the_midst_of_it_ends_nothing(package: Path, stage: UpgradeStage | None) -> None:
    with serving(package) as daemon:
        before = others(daemon)
        [old] = daemon.pids("controller")

        def has_come() -> bool:
            if stage is None:
                return bool(set(daemon.pids("controller")) - {old})
            if stage is UpgradeStage.PROXIES:
                # they may be there before the new controller answers
                proxies = set(daemon.pids("proxy"))
                return bool(proxies - before and proxies & before)
            try:
                state = daemon.status()["upgrade"]
            except (OSError, http.client.HTTPException):
                return False
            return state is not None and state["stage"] == stage

        with Load(daemon.settings.http_port or 0) as load:
            install(package, "0.2.0")
            with upgrading(daemon.settings, package, "--wait", "--timeout", "60") as command:
                eventually(has_come)
                [victim] = daemon.pids("controller")
                os.kill(victim, signal.SIGKILL)
                done = ended(command)
            assert done.returncode == 0, done
            asked = load.answers["200"]
            eventually(lambda: load.answers["200"] > asked + 50)
        assert set(load.answers) == {"200"}
        eventually(lambda: not before & others(daemon))
        assert len(daemon.pids("replica")) == 2
        assert daemon.status()["edition"].startswith("0.2.0+")
        assert daemon.status()["upgrade"]["stage"] == UpgradeStage.DONE


def test_a_daemon_that_is_tied_to_a_command_becomes_it_too_and_still_ends_with_the_command(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = package.parents[1]
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    settings = settings_in(directory)
    with start_tied(settings) as tied:
        client = AdminClient(f"unix://{admin_socket(settings.socket_dir)}")
        order = {"import_path": "echo:app", "runtime_env": {"working_dir": str(directory / "code")}}
        revision = client.put_application("default", order)
        wait_until_running(client, revision, ("default",), None)
        with Load(settings.http_port or 0) as load:
            install(package, "0.2.0")
            with upgrading(settings, package, "--wait", "--timeout", "60") as command:
                # what `servd run` does all the while
                presence = Presence(client)
                while command.poll() is None:
                    presence.look()
                    block_for(0.1)
                done = ended(command)
            assert done.returncode == 0, done
        assert set(load.answers) == {"200"}
        assert client.status()["edition"].startswith("0.2.0+")
        assert running_pid(settings.state_dir) == tied.pid
    eventually(lambda: not list(titles(settings.state_dir)))


BROKEN = {
    "does not compile": ("proxy/main.py", "import asyncio", "import asyncio what"),
    "needs what is not there": ("rest/app.py", "import asyncio", "import asyncio, servd_of_tomorrow"),
    "is of another protocol": ("ground/package.py", f"PROTOCOL = {PROTOCOL}", f"PROTOCOL = {PROTOCOL + 1}"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_version_that_does_not_load_is_refused_and_nothing_happens(package: Path, fault: str) -> None:
    with serving(package) as daemon:
        before = set(daemon.pids())
        install(package, "0.2.0")
        file, old, new = BROKEN[fault]
        change(package / file, old, new)
        refused = upgrade(daemon, Path(PACKAGE_DIR), "--wait")
        assert refused.returncode == 1
        assert "409" in refused.stderr
        expected = ("SyntaxError", "servd_of_tomorrow", "servd stop && servd start")
        assert any(word in refused.stderr for word in expected), refused
        assert set(daemon.pids()) == before
        assert daemon.get("/")[0] == 200
        assert daemon.status()["upgrade"] is None


DEADLY = {
    "its daemon": ("daemon/boot.py", "    left = parse_handover(handover)\n", "    raise ValueError('of tomorrow')\n"),
    "its controller": ("controller/main.py", "        self._devices = device_names()\n", "        raise ValueError\n"),
}


@pytest.mark.parametrize("who", DEADLY)
def test_a_version_that_loads_and_does_not_come_up_makes_room_for_the_old_one(package: Path, who: str) -> None:
    with serving(package) as daemon:
        processes = set(daemon.pids("proxy")) | set(daemon.pids("replica"))
        with Load(daemon.settings.http_port or 0) as load:
            install(package, "0.2.0")
            file, old, new = DEADLY[who]
            change(package / file, old, new)
            failed = upgrade(daemon, Path(PACKAGE_DIR), "--wait")
            assert failed.returncode == 1, failed
            assert "the old one goes on" in failed.stderr
            expected = "ValueError: of tomorrow" if who == "its daemon" else "its controller exited with 1"
            assert expected in failed.stderr
            assert stage_of(daemon)[0] == "FAILED"
        assert set(load.answers) == {"200"}
        assert daemon.process.poll() is None
        assert set(daemon.pids("proxy")) | set(daemon.pids("replica")) == processes
        assert daemon.status()["edition"].startswith(f"{VERSION}+")
        # once it is mended it is taken
        change(package / file, new, old)
        done = upgrade(daemon, Path(PACKAGE_DIR), "--wait", "--timeout", "60")
        assert done.returncode == 0, done
        assert daemon.status()["edition"].startswith("0.2.0+")
