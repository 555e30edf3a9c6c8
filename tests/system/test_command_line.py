"""The commands against a real daemon: start, deploy and wait, run and interrupt, stop."""

import functools
import http.client
import json
import os
import pty
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from servd.commands import run as run_command
from servd.commands.run import RunOptions, daemon_for
from servd.daemon import launch
from servd.daemon.state_lock import running_pid
from servd.exceptions import ServdError
from servd.ground.settings import Settings, socket_dir_for
from tests.ports import free_port
from tests.warm_command import servd_command

ROOT = Path(__file__).parents[2]
FRUIT = ROOT / "examples" / "fruit"

pytestmark = pytest.mark.slow


class Shell:
    """Runs commands on one state directory of its own."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = str(state_dir)
        self.http_port, self.admin_port = free_port(), free_port()
        names = ("SERVD_ADDRESS", "RAY_AGENT_ADDRESS", "RAY_DASHBOARD_ADDRESS")
        self.environment = {key: value for key, value in os.environ.items() if key not in names}
        self.environment["SERVD_STATE_DIR"] = self.state_dir

    def popen(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "servd.cli", *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        return servd_command(arguments, ROOT, self.environment)

    def start(self, *options: str) -> tuple[int, str, str]:
        ports = ("--http-port", str(self.http_port), "--admin-port", str(self.admin_port))
        return self("start", "--detach", *ports, *options)

    def ask(self, path: str, order: object) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=20)
        try:
            connection.request("POST", path, json.dumps(order))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Shell]:
    """No daemon runs yet."""
    shell = Shell(tmp_path / "state")
    try:
        yield shell
    finally:
        assert shell("stop")[0] == 0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Its daemon runs, for all tests that leave it as it is."""
    shell = Shell(tmp_path_factory.mktemp("running") / "state")
    try:
        assert shell.start()[0] == 0
        yield shell
    finally:
        assert shell("stop")[0] == 0


@pytest.fixture
def shell(running: Shell) -> Iterator[Shell]:
    """A daemon that runs nothing, and afterwards runs nothing again."""
    yield running
    assert running("shutdown", "--yes")[0] == 0


def test_from_start_to_stop(fresh: Shell) -> None:
    code, out, err = fresh.start("--show-tracebacks")
    assert (code, err) == (0, "")
    pid = running_pid(fresh.state_dir)
    assert f"pid {pid}; `servd stop` ends it" in out
    assert f"admin API: http://127.0.0.1:{fresh.admin_port} and unix:///" in out
    assert f"live page: http://127.0.0.1:{fresh.admin_port}/\n" in out
    assert f"HTTP: http://127.0.0.1:{fresh.http_port}\n" in out
    assert f"state: {fresh.state_dir}\n" in out
    log = Path(fresh.state_dir) / "logs" / "daemon.log"
    before = log.read_bytes()
    code, _, err = fresh.start()
    assert code == 1
    assert str(pid) in err
    assert log.read_bytes() == before, "it is the running daemon's file"
    code, out, err = fresh("deploy", "configs/multi.yaml", "--wait")
    assert code == 0, err
    assert "calculator/Router: HEALTHY 1/1 replicas" in out
    assert fresh.ask("/fruit/", ["MANGO", 2]) == (200, "14")
    assert fresh.ask("/math", ["ADD", 10]) == (200, "15 pizzas please!")
    status, text = fresh.ask("/math", ["ADD"])
    assert status == 500
    assert text.startswith("Internal Server Error (request id ")
    assert f'File "{FRUIT}/conditional_dag.py"' in text
    code, out, _ = fresh("status", "--name", "fruit_stand")
    assert code == 0
    assert "name: fruit_stand_MangoStand" in out
    assert f"working_dir: file://{FRUIT}" in fresh("config")[1]
    assert fresh("shutdown", "--yes")[0] == 0
    assert "no applications" in fresh("status")[1]
    assert fresh("stop")[0] == 0
    assert running_pid(fresh.state_dir) is None
    assert not os.path.exists(socket_dir_for(fresh.state_dir))


def test_a_command_in_another_environment_than_the_daemons_finds_it(shell: Shell, tmp_path: Path) -> None:
    # a job of cron has no XDG_RUNTIME_DIR, say, or another session has its own
    elsewhere = {**shell.environment, "XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    code, out, err = servd_command(("status",), ROOT, elsewhere)
    assert code == 0, err
    assert "There are no applications running" in out


@pytest.mark.long
def test_a_run_that_is_interrupted_takes_its_application_back(shell: Shell) -> None:
    assert shell("deploy", "configs/fruit.yaml", "--wait")[0] == 0
    options = ("--app-dir", str(FRUIT), "--name", "calculator", "--route-prefix", "/math")
    with shell.popen("run", "conditional_dag:serve_dag", *options) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Deployed application" in line:
                break
        assert shell.ask("/math", ["MUL", 10])[0] == 200
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert shell("status", "--name", "calculator")[0] == 1 or wait_until_gone(shell, "calculator")
    assert shell.ask("/", ["MANGO", 2]) == (200, "14")


def wait_until_gone(shell: Shell, name: str) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if shell("status", "--name", name)[0] == 1:
            return True
    return False


ECHO = """
import os
from servd import deployment

@deployment
class Echo:
    def __call__(self, request):
        return str(os.getpid())

app = Echo.bind()
"""


def test_a_daemon_in_the_background_starts_without_a_file_for_what_it_prints(fresh: Shell) -> None:
    # as on a disk of its own for logs that has become read-only
    (Path(fresh.state_dir) / "logs" / "daemon.log").mkdir(parents=True)
    for folder in (Path(fresh.state_dir) / "logs", Path(fresh.state_dir)):
        folder.chmod(0o700)
    code, out, err = fresh.start()
    assert (code, err) == (0, "")
    assert "The daemon runs in the background" in out
    assert fresh("status")[0] == 0


STAYING = """
import os, signal
from servd.commands import run

class Daemon:
    def probe(self):
        pass

run.LOOK_EVERY_S = 0.0
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
for _ in range(200):
    with run._interrupts() as interrupted:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            run._stay(Daemon(), run.RunOptions("m:app", False), interrupted)
        except KeyboardInterrupt:
            # on a busy host the signal may come before it stays
            pass
    assert interrupted == [signal.SIGTERM]
"""


def test_a_run_ends_whatever_it_is_about_when_the_signal_comes() -> None:
    # a wait for an event of `threading` deadlocked with the handler of the signal now and then
    subprocess.run([sys.executable, "-c", STAYING], check=True, timeout=30)


def test_a_run_takes_its_application_back_when_its_terminal_is_closed(shell: Shell) -> None:
    pid, terminal = pty.fork()
    if not pid:
        options = ("--app-dir", str(FRUIT), "--name", "calculator", "--route-prefix", "/math")
        os.execve(
            sys.executable,
            [sys.executable, "-m", "servd.cli", "run", "conditional_dag:serve_dag", *options],
            shell.environment,
        )
    shown = b""
    while b"Deployed application" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    os.waitpid(pid, 0)
    assert shell("status", "--name", "calculator")[0] == 1 or wait_until_gone(shell, "calculator")


def test_a_count_in_the_config_file_beside_the_code_restarts_nothing(shell: Shell, tmp_path: Path) -> None:
    code = tmp_path / "my code"
    code.mkdir()
    (code / "echo.py").write_text(ECHO)
    config = code / "serve.yaml"
    document = "import_path: echo:app\nruntime_env: {working_dir: .}\ndeployments: [{name: Echo, num_replicas: %d}]\n"
    config.write_text(document % 1)
    assert shell("deploy", str(config), "--wait")[::2] == (0, "")
    before = shell.ask("/", {})[1]
    config.write_text(document % 2)
    plan = shell("deploy", str(config), "--plan")[1]
    assert "1 -> 2" in plan
    assert "restarted" not in plan
    assert shell("deploy", str(config), "--wait")[::2] == (0, "")
    assert before in {shell.ask("/", {})[1] for _ in range(50)}
    (code / "echo.py").write_text(ECHO + "# changed\n")
    for command in (("deploy", "--plan"), ("diff",)):
        out = shell(command[0], str(config), *command[1:])[1]
        assert f"changed {code}/echo.py\n" in out
        assert "serve.yaml" not in out.partition("because of")[2]


ONCE = """
import os
from servd import deployment

@deployment(num_replicas=2)
class Echo:
    def __init__(self):
        os.mkdir({place!r})

    def __call__(self, request):
        return "new"

app = Echo.bind()
"""


@pytest.mark.long
def test_an_update_of_which_only_the_first_replica_starts_ends_and_a_rollback_heals(
    shell: Shell, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    config = tmp_path / "serve.yaml"
    config.write_text("import_path: echo:app\nruntime_env: {working_dir: code}\n")
    (code / "echo.py").write_text(ECHO.replace("str(os.getpid())", "'old'").replace("1", "2"))
    assert shell("deploy", str(config), "--wait")[0] == 0
    (code / "echo.py").write_text(ONCE.format(place=str(tmp_path / "place")))
    exit_code, _, err = shell("deploy", str(config), "--wait")
    assert (exit_code, "FileExistsError" in err) == (1, True)
    assert "older replicas keep their share until the application is deployed again" in err
    assert {shell.ask("/", {}) for _ in range(60)} == {(200, "old"), (200, "new")}
    assert shell("rollback", "--wait")[0] == 0
    assert {shell.ask("/", {}) for _ in range(30)} == {(200, "old")}


@pytest.mark.long
def test_rollback_passes_by_what_never_ran(fresh: Shell, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    config = tmp_path / "serve.yaml"
    config.write_text("import_path: echo:app\nruntime_env: {working_dir: code}\n")
    assert fresh.start()[0] == 0
    outcomes = []
    for text in (ECHO.replace("str(os.getpid())", "'good'"), "1 / 0", "raise SystemExit(3)"):
        (code / "echo.py").write_text(text)
        outcomes.append(fresh("deploy", str(config), "--wait")[0])
    assert outcomes == [0, 1, 1]
    shown = fresh("history")[1]
    assert [word for line in shown.splitlines() for word in line.split() if word in ("ran", "failed")] == [
        "failed",
        "failed",
        "ran",
    ]
    out = fresh("rollback", "--wait")[1]
    assert "Rolled back to revision 1; this is revision 4." in out
    assert fresh.ask("/", {}) == (200, "good")
    code_, _, err = fresh("rollback")
    assert (code_, "name one" in err) == (1, True)
    # what it is known by outlives the daemon
    assert fresh("stop")[0] == 0
    assert fresh.start()[0] == 0
    assert fresh("history")[1].count("ran") >= 2


@pytest.mark.parametrize("more", [(), pytest.param(("--multi-app",), marks=pytest.mark.long)])
def test_what_build_writes_is_served_as_it_is(shell: Shell, tmp_path: Path, more: tuple[str, ...]) -> None:
    # something runs already: a document with another port would be refused
    assert shell("deploy", "conditional_dag:serve_dag", "--app-dir", str(FRUIT), "--wait")[0] == 0
    (tmp_path / "conf").mkdir()
    path = str(tmp_path / "conf" / "built.yaml")
    code, _, err = shell("build", "fruit:deployment_graph", "-d", str(FRUIT), "-o", path, *more)
    assert code == 0, err
    assert shell("deploy", path, "--wait")[::2] == (0, "")
    assert shell.ask("/", ["MANGO", 2]) == (200, "6")


@pytest.mark.long
def test_a_run_that_fails_leaves_the_rest_alone(shell: Shell) -> None:
    assert shell("deploy", "configs/fruit.yaml", "--wait")[0] == 0
    code, _, err = shell("run", "nothing.here:app", "--name", "n", "--route-prefix", "/n")
    assert code == 1
    assert "No module named 'nothing'" in err
    assert wait_until_gone(shell, "n")
    assert shell.ask("/", ["MANGO", 2]) == (200, "14")


def test_run_starts_a_daemon_that_lives_as_long_as_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVD_ADDRESS", "RAY_AGENT_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    port = free_port()
    monkeypatch.setattr(run_command, "Settings", functools.partial(Settings, admin_port=port))
    monkeypatch.setattr("servd.daemon.admin_client.DEFAULT_ADDRESS", f"http://127.0.0.1:{port}")
    state_dir = str(tmp_path / "state")
    options = RunOptions("m:a", is_document=False, port=free_port())
    with daemon_for(options, None, state_dir, is_blocking=True) as client:
        assert client.is_unix
        assert client.details()["applications"] == {}
        assert running_pid(state_dir) is not None
    assert running_pid(state_dir) is None
    with pytest.raises(ServdError, match="failed to connect"):
        with daemon_for(options, f"http://127.0.0.1:{port}", state_dir, is_blocking=True):
            pass


@pytest.mark.parametrize("answers", [b"HTTP/1.1 404 Not Found", b"HTTP/1.1 200 OK", b"SSH-2.0-x"])
def test_run_starts_a_daemon_where_another_program_has_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answers: bytes
) -> None:
    for name in ("SERVD_ADDRESS", "RAY_AGENT_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SERVD_STATE_DIR", str(tmp_path))

    class Other(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(answers + b"\r\nConnection: close\r\n\r\n<html>another program</html>")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        port = other.server_address[1]
        monkeypatch.setattr(launch, "DEFAULT_ADMIN_PORT", port)
        monkeypatch.setattr(run_command, "DEFAULT_ADMIN_PORT", port)
        # as without a state directory that is named
        monkeypatch.setattr(run_command, "find_address", lambda *_: f"http://127.0.0.1:{port}")
        options = RunOptions("m:a", is_document=False, port=free_port())
        try:
            with daemon_for(options, None, None, is_blocking=True) as client:
                assert client.is_unix
                assert client.details()["applications"] == {}
            assert (
                f"Another program has port {port}: the live page will be at http://127.0.0.1:"
                in capsys.readouterr().out
            )
            with pytest.raises(ServdError, match=r"no admin API there|failed to connect"):
                with daemon_for(options, f"http://127.0.0.1:{port}", None, is_blocking=True):
                    pass
        finally:
            other.shutdown()


@pytest.mark.parametrize(
    ("encoding", "redirection", "shown"),
    [("ascii", "", "caf\\xe9\n"), ("latin-1", "", "café\n"), ("utf-8", ">&-", ""), ("utf-8", ">&- 2>&-", "")],
)
def test_a_command_prints_whatever_its_output_is(tmp_path: Path, encoding: str, redirection: str, shown: str) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "daemon.log").write_text("café\n", encoding="utf-8")
    tmp_path.chmod(0o700)
    command = f"exec {sys.executable} -m servd logs daemon {redirection}"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "SERVD_STATE_DIR": str(tmp_path)}
    environment["SERVD_ADDRESS"] = f"http://127.0.0.1:{free_port()}"
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.decode(encoding)) == (0, shown), done.stderr
