"""Lay an archive of `make.py` where its stores say that they are."""

import fcntl
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servd.ground.settings import socket_dir_for
from tests.system.kept_state.make import HOME

ARCHIVES = sorted(Path(__file__).parent.glob("*.tar.gz"))


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """The directory that the stores name, for this caller alone: `state` in it, and the facts where a daemon looks for them."""
    with open(f"{HOME}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(HOME, ignore_errors=True)
        HOME.mkdir(0o700)
        try:
            with tarfile.open(archive) as kept:
                kept.extractall(HOME, filter="data")
            sockets = Path(socket_dir_for(str(HOME / "state")))
            shutil.rmtree(sockets, ignore_errors=True)
            (HOME / "sockets").rename(sockets)
            sockets.chmod(0o700)
            yield HOME
        finally:
            shutil.rmtree(HOME)
