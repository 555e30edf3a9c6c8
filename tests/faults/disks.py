"""`python -m tests.faults.disks [FAULT:PLACE...]`: a directory of the daemon's is full, read-only or gone while it serves.

Each cell of the table runs in a mount namespace of its own: nothing outside it sees the small file systems.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil

from servd.ground.clock import SystemClock, block_for
from tests.faults.load import Counts, Load
from tests.faults.scenarios import Outcome, beside_begun_posts
from tests.faults.stage import Stage
from tests.system.running_daemon import RunningDaemon, settings_in, titles

FAULTS = ("full", "no_inodes", "read_only", "remade", "removed")
PLACES = ("state", "logs", "sockets", "tmp")
CELLS = [
    f"{fault}:{place}"
    for place in PLACES
    for fault in FAULTS
    # a controller that restarts without the state directory begins with an empty goal
    if place != "state" or fault not in ("remade", "removed")
]
QUICK_CELLS = ["removed:sockets"]

REPLACED_WITHIN_S = 12.0
NORMAL_WITHIN_S = 10.0
"""From the end of the fault until every process is there again."""
_FILE_SYSTEM = "size=24m,nr_inodes=2000,mode=0700"
VICTIMS = ("controller", "proxy", "fork server", "replica")


def why_not() -> str:
    """Why no cell can run here; "" if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True)
    return tried.stderr.strip()


def run_apart(cell: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run one cell in a namespace of its own; its exit code is 1 if anything was not as it must be."""
    command = ["unshare", "-m", "--propagation", "private", sys.executable, "-m", "tests.faults.disks"]
    return subprocess.run([*command, "--here", str(directory), cell], capture_output=True, text=True)


class Place:
    """A directory that has trouble."""

    def __init__(self, path: Path, fault: str) -> None:
        self._path = path
        self._fault = fault
        self._away = path.with_name(f"{path.name}.away")
        if fault in ("full", "no_inodes", "read_only"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _mount("-t", "tmpfs", "-o", _FILE_SYSTEM, "tmpfs", str(path))

    def begin(self) -> None:
        """From now on it has it."""
        if self._fault == "full":
            _fill(self._path / "filler")
        elif self._fault == "no_inodes":
            _use_up(self._path)
        elif self._fault == "read_only":
            # over the old one: with files that are open for writing it could not become read-only
            _mount("--bind", str(self._path), str(self._path))
            _mount("-o", "remount,bind,ro", str(self._path))
        else:
            self._path.rename(self._away)
            if self._fault == "remade":
                self._path.mkdir(mode=0o700)

    def end(self) -> None:
        """All is as it was. Who is removed for good stays so, but for the state, which somebody puts back."""
        if self._fault == "full":
            (self._path / "filler").unlink()
        elif self._fault == "no_inodes":
            shutil.rmtree(self._path / "fillers")
        elif self._fault == "read_only":
            _mount("-o", "remount,bind,rw", str(self._path))
        elif self._path.name == "state":
            shutil.rmtree(self._path, ignore_errors=True)
            self._away.rename(self._path)

    def forget(self) -> None:
        """Leave nothing mounted."""
        while os.path.ismount(self._path):
            _umount("-l", str(self._path))


def _mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True)


def _umount(*options: str) -> None:
    subprocess.run(["umount", *options], check=True)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                pass


def _use_up(path: Path) -> None:
    home = path / "fillers"
    home.mkdir()
    try:
        for number in range(10_000):
            (home / str(number)).touch()
    except OSError:
        pass


@contextmanager
def _a_trouble(fault: str, place: str, directory: Path) -> Iterator[tuple[Stage, Place]]:
    own = Path(tempfile.mkdtemp(prefix="servd-t-", dir=directory))
    settings = replace(settings_in(own, proxies=2), socket_dir=str(own / "sockets"))
    paths = {"state": own / "state", "logs": own / "state" / "logs", "sockets": own / "sockets", "tmp": own / "tmp"}
    (own / "tmp").mkdir()
    (own / "state").mkdir(mode=0o700)
    troubled = Place(paths[place], fault)
    daemon = RunningDaemon(settings, {"TMPDIR": str(own / "tmp")})
    try:
        yield Stage(daemon.ready(), own), troubled
    finally:
        daemon.stop()
        troubled.forget()
        left = list(titles(settings.state_dir))
        assert not left, left


class _Cell:
    def __init__(self, name: str, stage: Stage, place: Place) -> None:
        self.outcome = Outcome(name, 1, Counts())
        self.explained: list[str] = []
        self.normal_after_s = 0.0
        self._stage = stage
        self._place = place
        self._clock = SystemClock()
        self._own_ports: set[int] = set()
        self._is_accepted = False

    def play(self) -> None:
        stage, began = self._stage, self._clock.now()
        stage.deploy(replicas=2)
        before = {title: len(stage.daemon.pids(title)) for title in VICTIMS}
        load = stage.load("/", post_pause_s=0.1)
        try:
            self._place.begin()
            self._is_so("the daemon answers", NORMAL_WITHIN_S, lambda: stage.says(bool))
            for title in VICTIMS:
                self._kill(title, before[title])
            self._put()
            ended = self._clock.now()
            self._place.end()
            self._is_so("all is normal again", NORMAL_WITHIN_S, self._is_normal)
            self.normal_after_s = self._clock.now() - ended
            self._is_so("the numbers of processes are as before", NORMAL_WITHIN_S, lambda: self._counts() == before)
        except BaseException:
            load.kill()
            raise
        self._judge(load)
        self.outcome.seconds = self._clock.now() - began

    def _counts(self) -> dict[str, int]:
        return {title: len(self._stage.daemon.pids(title)) for title in VICTIMS}

    def _kill(self, title: str, count: int) -> None:
        daemon = self._stage.daemon
        victim = self._stage.idle() if title == "replica" else sorted(daemon.pids(title))[0]
        others = set(daemon.pids(title)) - {victim}
        if title == "proxy":
            # so that it accepts nothing between the look and its end
            os.kill(victim, signal.SIGSTOP)
            self._own_ports.update(c.raddr.port for c in psutil.Process(victim).net_connections("tcp") if c.raddr)
        self._stage.kill(victim)
        if not _within(REPLACED_WITHIN_S, lambda: self._is_replaced(title, victim, others, count)):
            said = self._explanation()
            if said:
                self.explained.append(f"{title}: {said}")
            else:
                self.outcome.notes.append(f"{title} killed, neither replaced nor explained: {self._counts()}")

    def _is_replaced(self, title: str, victim: int, others: set[int], count: int) -> bool:
        pids = set(self._stage.daemon.pids(title)) - {victim}
        if len(pids) < count or not pids - others:
            return False
        return self._stage.says(lambda status: _is_well(status, self._stage.replicas))

    def _explanation(self) -> str:
        try:
            status = self._stage.daemon.status()
        except OSError:
            return ""
        app = status["applications"].get("work", {})
        found = [app.get("message", ""), *(d["message"] for d in app.get("deployments", {}).values())]
        return "; ".join(filter(None, found))

    def _put(self) -> None:
        stage = self._stage
        body = {"applications": [stage.document(version=stage.version + 1)]}
        try:
            code, text = stage.daemon.ask("PUT", "/api/serve/applications/", body)
        except OSError as error:
            code, text = 0, error
        if code == 200:
            stage.version += 1
        elif code == 507:
            self.explained.append(f"PUT: {str(text)[:100]}")
        else:
            self.outcome.notes.append(f"PUT answers {code}: {str(text)[:200]}")

    def _is_normal(self) -> bool:
        stage = self._stage
        if not self._is_accepted:
            body = {"applications": [stage.document(version=stage.version)]}
            try:
                self._is_accepted = stage.daemon.ask("PUT", "/api/serve/applications/", body)[0] == 200
            except OSError:
                return False
        return self._is_accepted and stage.says(lambda status: _is_well(status, stage.replicas))

    def _is_so(self, what: str, limit_s: float, fact: Callable[[], bool]) -> None:
        if not _within(limit_s, fact):
            self.outcome.notes.append(f"not so within {limit_s} s: {what}; {self._counts()}, {self._explanation()}")

    def _judge(self, load: Load) -> None:
        counts = self.outcome.counts = load.stop()
        failures = [failure for failure in counts.failures if failure.port not in self._own_ports]
        self.outcome.unexpected = beside_begun_posts(failures, set(self._stage.begun()), 1)


def _is_well(status: dict[str, object], replicas: int) -> bool:
    app = status["applications"].get("work")  # type: ignore[attr-defined]
    if app is None or app["status"] != "RUNNING":
        return False
    work = app["deployments"]["work_Work"]
    return [r["state"] for r in work["replicas"]] == ["RUNNING"] * replicas and all(
        proxy["status"] == "HEALTHY"
        for proxy in status["proxies"]  # type: ignore[attr-defined]
    )


def _within(limit_s: float, fact: Callable[[], bool]) -> bool:
    clock = SystemClock()
    deadline = clock.now() + limit_s
    while not fact():
        if clock.now() > deadline:
            return False
        block_for(0.05)
    return True


def play(cell: str, directory: Path) -> int:
    """Play one cell in this very namespace and print what came of it."""
    fault, _, place = cell.partition(":")
    with _a_trouble(fault, place, directory) as (stage, troubled):
        played = _Cell(cell, stage, troubled)
        try:
            played.play()
        except (AssertionError, OSError) as error:
            played.outcome.notes.append(f"ended early: {error!r}")
        errors = stage.daemon.errors
    print(f"{played.outcome}, normal again after {played.normal_after_s:.1f} s")
    for line in played.explained:
        print(f"    explained: {line}")
    if not played.outcome.is_good:
        print(errors)
    return 0 if played.outcome.is_good else 1


def main(arguments: list[str]) -> int:
    """Exit code 1 if anything failed that must not."""
    if arguments[:1] == ["--here"]:
        return play(arguments[2], Path(arguments[1]))
    failed = play_all(arguments or CELLS)
    print(f"not as it must be: {', '.join(failed)}" if failed else "all as it must be")
    return 1 if failed else 0


def play_all(cells: Sequence[str]) -> list[str]:
    """Play them one after the other and print what came of each; gives those that were not as they must be."""
    if reason := why_not():
        print(f"directories in trouble: not tried, {reason}")
        return []
    failed = []
    for cell in cells:
        with tempfile.TemporaryDirectory(prefix="servd-disks-") as directory:
            done = run_apart(cell, Path(directory))
        print((done.stdout + done.stderr).rstrip(), flush=True)
        if done.returncode:
            failed.append(cell)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
