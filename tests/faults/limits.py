"""Descriptors, processes and memory at their limits."""

import http.client
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from servd.ground.clock import SystemClock
from tests.faults.cell import Cell
from tests.faults.outcome import Outcome
from tests.faults.scenarios import a_stage, under_load
from tests.faults.stage import Stage
from tests.system.running_daemon import RunningDaemon, eventually

LASTS_S = 4.0
DESCRIPTORS = {"daemon": 0, "controller": 4, "fork server": 0, "replica": 0}
"""Title -> descriptors that are left. A controller without any could not even say so: it lets nobody take the last ones."""
CROWD = 150
CROWD_DESCRIPTORS = 60
CROWD_PATIENCE_S = 60.0
CROWD_STAYS_S = 15.0
EATER = """
from servd import deployment


@deployment
class Eater:
    def __init__(self):
        self.eaten = []

    def __call__(self, request):
        while True:
            self.eaten.append(bytearray(b"x" * 2**23))


app = Eater.bind()
"""
_FREE_BYTES = 200 * 2**20


class Descriptors:
    """All processes with a title have few descriptors left, or none."""

    def __init__(self, title: str, left: int = 0) -> None:
        self._title = title
        self._left = left
        self._before: dict[int, tuple[int, int]] = {}

    def begin(self, daemon: RunningDaemon) -> None:
        """From now on they have no more than so many."""
        for pid in daemon.pids(self._title):
            most = 1 + max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + self._left
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            self._before[pid] = soft, hard
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(most, hard), hard))

    def end(self) -> None:
        """As many as before."""
        for pid, limits in self._before.items():
            try:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            except ProcessLookupError:
                pass

    def forget(self) -> None:
        """Limits end with their processes."""


def descriptors(title: str, directory: Path) -> Outcome:
    """One kind of process has no descriptor left for some seconds: who waits is served afterwards."""
    with a_stage(directory, replicas=2, proxies=2) as stage:
        return Cell(stage, Descriptors(title, DESCRIPTORS[title]), victims=(), lasts_s=LASTS_S).play()


def crowd(directory: Path) -> Outcome:
    """More clients than the proxy has descriptors, none of whom leaves: they are served in turn, as others are all the while."""
    with a_stage(directory, replicas=2) as stage:
        few = Descriptors("proxy", CROWD_DESCRIPTORS)
        failures: list[str] = []
        notices: list[str] = []

        def once(_: int) -> None:
            few.begin(stage.daemon)
            clients = [threading.Thread(target=_visit, args=(stage, failures)) for _ in range(CROWD)]
            for client in clients:
                client.start()
            notices.append(eventually(lambda: stage.daemon.status()["notice"]))
            for client in clients:
                client.join()
            few.end()
            with stage.recovery():
                eventually(lambda: not stage.daemon.status()["notice"])

        outcome = under_load(stage, 1, once, post_pause_s=0.1)
        outcome.notes += [f"{len(failures)} of {CROWD} were not served, as: {failures[0]}"] if failures else []
        outcome.explained += notices
        pauses = [
            line for line in stage.daemon.ask("GET", "/metrics")[1].splitlines() if "accept_pauses_total " in line
        ]
        if not float(pauses[-1].split()[1]) > 0:
            outcome.notes.append(f"no pause was counted: {pauses}")
        said = (directory / "state" / "logs" / "serve" / "http_proxy_127.0.0.1.log").read_text().count("accept_paused")
        if said != 1:
            outcome.notes.append(f"the log has {said} lines of it")
        return outcome


def _visit(stage: Stage, failures: list[str]) -> None:
    clock = SystemClock()
    began = clock.now()
    connection = http.client.HTTPConnection("127.0.0.1", stage.daemon.settings.http_port, timeout=CROWD_PATIENCE_S)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            failures.append(f"answer {answer.status}")
        # it stays until the proxy sends it away; the last ones need not go
        if connection.sock is not None:
            connection.sock.settimeout(CROWD_STAYS_S)
            with suppress(TimeoutError):
                connection.sock.recv(1)
    except OSError as error:
        failures.append(f"after {clock.now() - began:.1f} s: {error!r}")
    finally:
        connection.close()


class Group:
    """A control group of the first or second kind.

    Args:
        controller: "memory" or "pids".
    """

    def __init__(self, controller: str) -> None:
        root = _home_of(controller)
        self._is_old = root.name == controller
        self._controller = controller
        self.path = root / f"servd-faults-{os.getpid()}"
        self.path.mkdir()

    def take(self, pids: list[int]) -> None:
        """From now on these, and what they start, belong to it."""
        for pid in pids:
            (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def used(self) -> int:
        """Bytes or processes and threads."""
        name = (
            "memory.usage_in_bytes" if self._is_old and self._controller == "memory" else f"{self._controller}.current"
        )
        return int((self.path / name).read_text())

    def limit(self, value: int | None) -> None:
        """Bytes or processes and threads; None: none."""
        is_old_memory = self._is_old and self._controller == "memory"
        name = "memory.limit_in_bytes" if is_old_memory else f"{self._controller}.max"
        none = "-1" if is_old_memory else "max"
        (self.path / name).write_text(none if value is None else str(value))

    def forget(self) -> None:
        """Leave nothing of it; its processes are gone."""
        eventually(lambda: not (self.path / "cgroup.procs").read_text())
        self.path.rmdir()


def _home_of(controller: str) -> Path:
    old = Path("/sys/fs/cgroup", controller)
    return old if old.is_dir() else Path("/sys/fs/cgroup")


def why_no_group(controller: str) -> str:
    """Why no control group can be made here; "" if it can."""
    if os.geteuid() != 0:
        return "a control group needs root"
    home = _home_of(controller)
    if home.name == controller:
        return ""
    try:
        known = (home / "cgroup.subtree_control").read_text().split()
    except OSError as error:
        return f"no control groups: {error}"
    return "" if controller in known else f"the system hands out no control groups for {controller}"


class Processes:
    """The whole daemon has no process and no thread left."""

    def __init__(self) -> None:
        self._group = Group("pids")

    def begin(self, daemon: RunningDaemon) -> None:
        """From now on nobody can fork."""
        # twice: somebody may have come while the others were written down
        for _ in range(2):
            self._group.take(daemon.pids())
        self._group.limit(1)

    def end(self) -> None:
        """As many as anybody wants."""
        self._group.limit(None)

    def forget(self) -> None:
        """Leave no group."""
        self._group.forget()


def processes(directory: Path) -> Outcome:
    """The daemon may not start another process: the other proxy takes the connections of a dead one."""
    trouble = Processes()
    try:
        with a_stage(directory, replicas=2, proxies=2) as stage:
            return Cell(stage, trouble, victims=("proxy", "replica", "fork server", "controller")).play()
    finally:
        trouble.forget()


@contextmanager
def _a_memory_group() -> Iterator[Group]:
    group = Group("memory")
    try:
        yield group
    finally:
        group.forget()


def memory(directory: Path, times: int) -> Outcome:
    """The memory of the whole daemon ends because of one replica that eats it: the system ends it, requests to others go on.

    While the memory of one victim is being given back, the system may take a second one: that costs no request either.
    """
    code = directory / "eater"
    code.mkdir()
    (code / "eater.py").write_text(EATER)
    with _a_memory_group() as group, a_stage(directory, replicas=2, proxies=2) as stage:
        eater = {"route_prefix": "/eat", "import_path": "eater:app", "runtime_env": {"working_dir": str(code)}}
        assert stage.daemon.ask("PUT", "/api/servd/v1/applications/eater", eater)[0] == 200

        def replica() -> int:
            app = stage.daemon.status()["applications"].get("eater")
            found = app["deployments"].get("eater_Eater") if app else None
            running = [r["pid"] for r in found["replicas"] if r["state"] == "RUNNING"] if found else []
            return running[0] if running else 0

        eventually(replica)
        daemon = stage.daemon.process.pid
        for _ in range(2):
            group.take(stage.daemon.pids())
        group.limit(group.used + _FREE_BYTES)

        def eat(_: int) -> None:
            victim = eventually(replica)
            # not a GET, which would be sent to the next replica as well
            code, text = stage.daemon.request("POST", "/eat")
            assert code == 502, text
            with stage.recovery():
                eventually(lambda: replica() not in (0, victim))
                stage.wait()

        outcome = under_load(stage, times, eat)
        if daemon not in stage.daemon.pids("daemon"):
            outcome.notes.append("the daemon itself ended")
        group.limit(None)
        return outcome
