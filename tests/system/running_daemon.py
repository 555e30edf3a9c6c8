"""A whole daemon for a test: started, asked, stopped, and nothing of it left."""

import http.client
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from servd.daemon import launch
from servd.daemon.admin_client import UnixConnection
from servd.ground.clock import SystemClock, block_for
from servd.ground.settings import Settings, admin_socket, socket_dir_for
from tests.ports import free_port
from tests.processes import command_line, pids

LIMIT_S = 30.0
ECHO = """
import os
from servd import deployment

@deployment(num_replicas=2)
class Echo:
    async def __call__(self, request):
        return str(os.getpid())

app = Echo.bind()
"""

_LOST_WORK = re.compile(r"\b(reply_callback_failed|failure_callback_failed|turn_failed)\b")

T = TypeVar("T")


def eventually(fact: Callable[[], T], limit_s: float = LIMIT_S, *, every_s: float = 0.02) -> T:
    """The first true value of `fact()`; AssertionError when there is none in time. every_s: between two looks."""
    clock = SystemClock()
    deadline = clock.now() + limit_s
    while True:
        value = fact()
        if value:
            return value
        assert clock.now() < deadline, f"never so within {limit_s} s; last value {value!r}"
        block_for(every_s)


class RunningDaemon:
    """A daemon in the foreground of the test. variables: added to the environment; command: another one that starts it."""

    def __init__(
        self, settings: Settings, variables: dict[str, str] | None = None, *, command: list[str] | None = None
    ) -> None:
        self.settings = settings
        self.errors_path = Path(f"{settings.state_dir}.stderr")
        with open(self.errors_path, "wb") as errors:
            self.process = subprocess.Popen(
                command or launch.daemon_command(settings),
                stdin=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, **(variables or {})},
            )

    @property
    def errors(self) -> str:
        """What it wrote on stderr."""
        return self.errors_path.read_text(errors="replace")

    def ready(self) -> "RunningDaemon":
        """Itself, once both planes answer."""
        eventually(lambda: self.process.poll() is not None or self.is_ready())
        assert self.process.poll() is None, self.errors
        return self

    def is_ready(self) -> bool:
        """Whether both planes answer."""
        try:
            listening = self.status()["http"]["listening"]
        except OSError:
            return False
        return listening or not self.settings.open_http

    def ask(self, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status code and body (JSON where it is) of a request to the admin plane."""
        connection = UnixConnection(admin_socket(self.settings.socket_dir), LIMIT_S)
        try:
            connection.request(verb, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def status(self) -> dict[str, Any]:
        """Body of `/api/servd/v1/status`. OSError: there is no controller, or it takes nobody in; the text says why."""
        code, body = self.ask("GET", "/api/servd/v1/status")
        if code in (503, 507):
            raise ConnectionError(body)
        assert code == 200, body
        return dict(body)

    def deploy(self, code_dir: Path, import_path: str = "echo:app") -> None:
        """Deploy the application "default" and wait until it runs."""
        document = {"import_path": import_path, "runtime_env": {"working_dir": str(code_dir)}}
        assert self.ask("PUT", "/api/serve/deployments/", document) == (200, "")
        self.wait_until_running()

    def wait_until_running(self) -> None:
        """Wait for the application "default", all replicas included."""

        def runs() -> bool:
            try:
                app = self.status()["applications"]["default"]
            except (OSError, KeyError):
                return False
            assert app["status"] != "DEPLOY_FAILED", app
            deployments = app["deployments"].values()
            return app["status"] == "RUNNING" and all(d["status"] == "HEALTHY" for d in deployments)

        eventually(runs)

    def get(self, path: str = "/") -> tuple[int, str]:
        """Status code and text of a GET to the data plane."""
        return self.request("GET", path)

    def request(self, method: str, path: str = "/") -> tuple[int, str]:
        """Status code and text of a request to the data plane."""
        connection = http.client.HTTPConnection("127.0.0.1", self.settings.http_port, timeout=LIMIT_S)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def pids(self, title: str = "") -> list[int]:
        """Living processes of this daemon, by the begin of their title after `servd: `."""
        return [pid for pid, name in titles(self.settings.state_dir) if name.startswith(f"servd: {title}")]

    def cut_the_power(self) -> None:
        """Kill it and all its processes: itself first, so that it starts nobody again."""
        for pid in (self.process.pid, *self.pids()):
            # who has noticed that the daemon is gone ends by itself
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Stop it as Ctrl-C does; gives the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            # all others end with it
            self.process.kill()
            self.process.wait()
            raise


def titles(state_dir: str) -> Iterator[tuple[int, str]]:
    """Pid and title of every process whose title ends with this state directory."""
    for pid in pids():
        line = command_line(pid).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        if line.startswith("servd: ") and line.endswith(state_dir):
            yield pid, line


def settings_in(directory: Path, **options: Any) -> Settings:
    """Settings of a daemon that is in nobody's way."""
    state_dir = str(directory / "state")
    settings = Settings(
        state_dir,
        socket_dir_for(state_dir),
        http_port=free_port(),
        admin_port=free_port(),
        start_dir=str(directory),
    )
    return replace(settings, **options)


@contextmanager
def a_daemon(settings: Settings, variables: dict[str, str] | None = None) -> Iterator[RunningDaemon]:
    """A daemon that is ready; afterwards it is stopped and nothing of it is left."""
    daemon = RunningDaemon(settings, variables)
    try:
        yield daemon.ready()
    finally:
        daemon.stop()
        eventually(lambda: not list(titles(settings.state_dir)), 10.0)
    assert not os.path.exists(settings.socket_dir)
    # a request is lost, or a plan not carried out: nothing that a daemon meets is a reason for that
    assert _LOST_WORK.search(daemon.errors) is None, daemon.errors
