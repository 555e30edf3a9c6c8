"""What an earlier version left behind: it starts and serves, whatever moved since in the code."""

import fcntl
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from servd.ground.settings import socket_dir_for
from tests.system.kept_state.make import HOME
from tests.system.running_daemon import a_daemon, eventually, settings_in

ARCHIVES = sorted(Path(__file__).with_name("kept_state").glob("*.tar.gz"))
pytestmark = pytest.mark.slow


@pytest.fixture
def home() -> Iterator[Path]:
    """The directory that the stores name, for this test alone."""
    with open(f"{HOME}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(HOME, ignore_errors=True)
        HOME.mkdir(0o700)
        yield HOME
        shutil.rmtree(HOME)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def test_what_an_earlier_version_left_is_served(home: Path, archive: Path) -> None:
    with tarfile.open(archive) as kept:
        kept.extractall(home, filter="data")
    sockets = Path(socket_dir_for(str(home / "state")))
    shutil.rmtree(sockets, ignore_errors=True)
    (home / "sockets").rename(sockets)
    sockets.chmod(0o700)
    with a_daemon(settings_in(home)) as daemon:
        # an application by value is read by the minor version of Python that wrote it
        expected = {"words"} if sys.version_info[:2] != (3, 11) else {"words", "shipped", "graph"}
        eventually(
            lambda: expected <= {n for n, a in daemon.status()["applications"].items() if a["status"] == "RUNNING"}
        )
        assert daemon.get("/words") == (200, "snapshot!")
        if "shipped" in expected:
            assert daemon.get("/shipped/?word=hello") == (200, json.dumps("hello?"))
        assert len(daemon.ask("GET", "/api/servd/v1/revisions")[1]["revisions"]) == 3
