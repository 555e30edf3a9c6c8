"""Descriptors, processes and memory at their limits."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.cell import Cell
from tests.faults.outcome import Outcome
from tests.faults.scenarios import a_stage, under_load
from tests.system.running_daemon import RunningDaemon, eventually

LASTS_S = 4.0
DESCRIPTORS = ("daemon", "fork server", "replica")
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
    """All processes with a title have no descriptor left."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._before: dict[int, tuple[int, int]] = {}

    def begin(self, daemon: RunningDaemon) -> None:
        """From now on they have as many as they have."""
        for pid in daemon.pids(self._title):
            used = 1 + max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            self._before[pid] = soft, hard
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(used, hard), hard))

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
        return Cell(stage, Descriptors(title), victims=(), lasts_s=LASTS_S).play()


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
