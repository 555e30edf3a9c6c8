"""A daemon with one application, for scenarios under load."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from servd.daemon.life import SETTLED_AFTER_S
from servd.ground.clock import SystemClock
from tests.faults.load import Load
from tests.system.running_daemon import RunningDaemon, eventually

_QUICK_KILLS = 3

APPLICATION = '''
import asyncio
import os
import queue

from servd import deployment


@deployment
class Work:
    """Answers with the request's mark, the length of its body and who it is; notes every POST that it begins."""

    def __init__(self, version, journal):
        self.version = version
        self.journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.colour = ""

    def reconfigure(self, config):
        self.colour = config["colour"]

    async def __call__(self, request):
        mark = request.headers.get("x-mark", "-")
        # first of all: a replica that dies while the body is on its way had begun too
        if request.method == "POST":
            os.write(self.journal, f"{mark}\\n".encode())
        body = await request.body()
        if "block" in request.query_params:
            queue.SimpleQueue().get()
        if hold := request.query_params.get("hold"):
            await asyncio.sleep(float(hold))
        return f"{mark} {len(body)} {self.version} {self.colour} {os.getpid()}"


    async def echo(self, mark, size):
        return f"{mark} {size} {self.version} {self.colour} {os.getpid()}"


@deployment
class Front:
    def __init__(self, work):
        self.work = work

    async def __call__(self, request):
        return await self.work.echo.remote(request.headers.get("x-mark", "-"), len(await request.body()))


def build(args):
    work = Work.bind(args["version"], args["journal"])
    return Front.bind(work) if args["graph"] else work
'''


class Stage:
    """The application "work" on a running daemon. Every change waits until it holds.

    Args:
        is_graph: the ingress is a deployment of its own and calls `Work` by its handle.
    """

    def __init__(self, daemon: RunningDaemon, directory: Path, *, is_graph: bool = False) -> None:
        self.daemon = daemon
        self._is_graph = is_graph
        self._code = directory / "code"
        self._code.mkdir(exist_ok=True)
        (self._code / "work.py").write_text(APPLICATION)
        self._journal = directory / "journal"
        self._journal.touch()
        self.version = 0
        self.colour = 0
        self.replicas = 0
        self.slowest_recovery_s: float | None = None
        self._controller_kills = 0

    def begun(self) -> list[str]:
        """Marks of the POSTs that a handler began, as often as it did."""
        return self._journal.read_text().split()

    def load(self, path: str, **options: Any) -> Load:
        """Begin to load the application."""
        port = self.daemon.settings.http_port
        assert port is not None
        return Load(port, path, **options)

    def put(self, *, version: int | None = None, colour: int | None = None, replicas: int | None = None) -> None:
        """Send a document; what is not given stays as it is."""
        self.version = self.version if version is None else version
        self.colour = self.colour if colour is None else colour
        self.replicas = self.replicas if replicas is None else replicas
        applications = [self.document(version=self.version)]
        code, text = self.daemon.ask("PUT", "/api/serve/applications/", {"applications": applications})
        assert code == 200, text

    def document(self, *, version: int) -> dict[str, Any]:
        """The application as a document has it."""
        deployments = [{"name": "Work", "num_replicas": self.replicas, "user_config": {"colour": self.colour}}]
        if self._is_graph:
            deployments.append({"name": "Front", "num_replicas": 2})
        return {
            "name": "work",
            "route_prefix": "/",
            "import_path": "work:build",
            "args": {"version": version, "journal": str(self._journal), "graph": self._is_graph},
            "runtime_env": {"working_dir": str(self._code)},
            "deployments": deployments,
        }

    def deploy(self, **changes: int) -> None:
        """Send a document and wait until exactly that runs."""
        self.put(**changes)
        self.wait()

    def wait(self) -> None:
        """Wait until the application is as it was last wanted and nothing is under way."""
        eventually(self.is_settled, 60.0)

    def is_settled(self) -> bool:
        """Whether all replicas run, and no other process of the application is left."""
        try:
            status = self.daemon.status()
        except OSError:
            return False
        app = status["applications"].get("work")
        if app is None:
            return False
        assert app["status"] != "DEPLOY_FAILED", app
        work = app["deployments"].get("work_Work")
        if app["status"] != "RUNNING" or work is None or work["status"] != "HEALTHY":
            return False
        states = [replica["state"] for replica in work["replicas"]]
        return states == ["RUNNING"] * self.replicas and proxies_are_well(status, self)

    def work(self) -> dict[str, Any]:
        """Status of the deployment."""
        return dict(self.daemon.status()["applications"]["work"]["deployments"]["work_Work"])

    def running(self) -> list[dict[str, Any]]:
        """Its RUNNING replicas."""
        return [replica for replica in self.work()["replicas"] if replica["state"] == "RUNNING"]

    def idle(self) -> int:
        """Pid of a replica whose reported count is 0."""
        return int(eventually(lambda: [r["pid"] for r in self.running() if not r["ongoing"]])[0])

    def busy(self) -> int:
        """Pid of a replica whose reported count is not 0."""
        return int(eventually(lambda: [r["pid"] for r in self.running() if r["ongoing"]])[0])

    def controller(self) -> int:
        """Pid of the controller."""
        return self.daemon.pids("controller")[0]

    def controller_to_kill(self) -> int:
        """Its pid, once it is old enough: many that die young are started ever more seldom, and that is not what is measured."""
        pid = self.controller()
        self._controller_kills += 1
        if self._controller_kills % _QUICK_KILLS == 0:
            eventually(lambda: SystemClock().wall_time() - psutil.Process(pid).create_time() > SETTLED_AFTER_S + 1.0)
        return pid

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        os.kill(pid, signal.SIGKILL)

    def kill_and_replace(self, title: str, pid: int) -> None:
        """SIGKILL a process, wait for its successor (by the title) and until all is well again."""
        others = set(self.daemon.pids(title)) - {pid}
        with self.recovery():
            self.kill(pid)
            eventually(lambda: set(self.daemon.pids(title)) - others - {pid})
            self.wait()

    def kill_controller(self) -> None:
        """SIGKILL the controller; returns when its successor has all in its hands."""
        old = self.controller_to_kill()
        with self.recovery():
            self.kill(old)
            eventually(lambda: self.says(lambda status: status["controller_info"]["pid"] != old))
            self.wait()

    @contextmanager
    def recovery(self) -> Iterator[None]:
        """Measures the way back to normal, which begins at its start."""
        clock = SystemClock()
        began = clock.now()
        yield
        self.slowest_recovery_s = max(self.slowest_recovery_s or 0.0, clock.now() - began)

    def ports_of(self, proxy: int) -> set[int]:
        """Clients' ports of its connections; it is stopped first, so that it accepts nothing between the look and its end."""
        os.kill(proxy, signal.SIGSTOP)
        return {c.raddr.port for c in psutil.Process(proxy).net_connections("tcp") if c.raddr}

    def says(self, fact: Callable[[dict[str, Any]], bool]) -> bool:
        """Whether the status says so; False while nobody answers."""
        try:
            return fact(self.daemon.status())
        except OSError:
            return False


def proxies_are_well(status: dict[str, Any], stage: Stage) -> bool:
    """Whether as many proxies as there shall be listen, and no other one is there."""
    return [proxy["status"] for proxy in status["proxies"]] == ["HEALTHY"] * stage.daemon.settings.proxies
