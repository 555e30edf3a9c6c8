"""A directory of the daemon's is full, read-only, slow or gone while it serves.

Each cell of the table runs in a mount namespace of its own: nothing outside it sees the small file systems.
"""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.faults.cell import REPLACED_WITHIN_S, Cell, Trouble
from tests.faults.outcome import Outcome
from tests.faults.slow_disk import SlowPlace
from tests.faults.stage import Stage
from tests.system.running_daemon import RunningDaemon, settings_in, titles

_TRIES = 1000
FAULTS = ("full", "no_inodes", "read_only", "remade", "removed", "slow")
PLACES = ("state", "logs", "sockets", "tmp")
CELLS = [f"{fault}:{place}" for place in PLACES for fault in FAULTS]

SLOWLY_REPLACED_WITHIN_S = 5 * REPLACED_WITHIN_S
"""A controller's start writes several times."""
_FILE_SYSTEM = "size=24m,nr_inodes=2000,mode=0700"


def why_not() -> str:
    """Why no cell can run here; "" if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True).stderr.strip()


class Place:
    """A directory that has trouble."""

    def __init__(self, path: Path, fault: str) -> None:
        self._path = path
        self._fault = fault
        self._away = path.with_name(f"{path.name}.away")
        if fault in ("full", "no_inodes", "read_only"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _mount("-t", "tmpfs", "-o", _FILE_SYSTEM, "tmpfs", str(path))

    def begin(self, daemon: RunningDaemon) -> None:
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
            for _ in range(_TRIES):
                shutil.rmtree(self._path, ignore_errors=True)
                try:
                    self._away.rename(self._path)
                    break
                except OSError as error:
                    # somebody has put something there since
                    if error.errno != errno.ENOTEMPTY:
                        raise

    def forget(self) -> None:
        """Leave nothing mounted."""
        while os.path.ismount(self._path):
            subprocess.run(["umount", "-l", str(self._path)], check=True)


def _mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True)


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
def _a_trouble(fault: str, place: str, directory: Path) -> Iterator[tuple[Stage, Trouble]]:
    own = Path(tempfile.mkdtemp(prefix="servd-t-", dir=directory))
    settings = replace(settings_in(own, proxies=2), socket_dir=str(own / "sockets"))
    paths = {"state": own / "state", "logs": own / "state" / "logs", "sockets": own / "sockets", "tmp": own / "tmp"}
    (own / "tmp").mkdir()
    (own / "state").mkdir(mode=0o700)
    path = paths[place]
    troubled: Trouble = SlowPlace(path, own) if fault == "slow" else Place(path, fault)
    try:
        daemon = RunningDaemon(settings, {"TMPDIR": str(own / "tmp")})
        try:
            yield Stage(daemon.ready(), own), troubled
        finally:
            daemon.stop()
    finally:
        troubled.forget()
    left = [
        *titles(settings.state_dir),
        *(os.listdir(settings.socket_dir) if os.path.isdir(settings.socket_dir) else ()),
    ]
    assert not left, left


def play(cell: str, directory: Path) -> Outcome:
    """Play one cell in this very namespace."""
    fault, _, place = cell.partition(":")
    limit_s = SLOWLY_REPLACED_WITHIN_S if fault == "slow" else REPLACED_WITHIN_S
    with _a_trouble(fault, place, directory) as (stage, troubled):
        return Cell(stage, troubled, replaced_within_s=limit_s).play()
