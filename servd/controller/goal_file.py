"""The file of the goal store: how it is made, found and refused."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from servd.exceptions import StateError
from servd.ground.places import trouble_of

STORE_NAME = "goal.db"
MARKER_NAME = "goal.created"
APPLICATION_ID = 0x53525644
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE revisions (
    revision INTEGER PRIMARY KEY, goal TEXT NOT NULL, at REAL NOT NULL, origin TEXT NOT NULL,
    previous TEXT NOT NULL, sha256 TEXT NOT NULL
) STRICT
"""


class Refusal(StateError):
    """A store that cannot be used. reason: why not."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"the goal store {self.path} cannot be used: {self.reason}. Put a good copy back, or move "
            f"{self.path.parent}/goal.* away to start with an empty goal"
        )


def refusal_of(path: Path, error: Exception) -> StateError:
    """What to say where SQLite cannot read it: nothing is wrong with a store that only lacks room."""
    if trouble := trouble_of("state directory", str(path.parent)):
        return StateError(
            f"the goal store {path} cannot be opened: {error}, for {trouble}. Change that and start again"
        )
    return Refusal(path, str(error))


def file_id(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def connect(path: Path) -> sqlite3.Connection:
    """A connection to a store that is there, and can be read.

    Raises:
        sqlite3.Error: it cannot.
    """
    connection = _connected(path)
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        connection.close()
        if not error.sqlite_errorname.startswith("SQLITE_IOERR_SHM"):
            raise
        # a full disk has no room for the index of the WAL: who has the file alone keeps it in memory
        connection = _connected(path)
        connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchone()
    return connection


def _connected(path: Path) -> sqlite3.Connection:
    # mode=rw: never create by opening. Only one thread uses it, the loop's.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0)


def create(path: Path) -> None:
    """Make an empty store under another name first: a half-made one must never stand under the real name."""
    draft = path.with_name(f"{path.name}.new")
    for leftover in _files(draft):
        leftover.unlink(missing_ok=True)
    # of a store that is gone: SQLite would take them for the new one's
    for leftover in list(_files(path))[1:]:
        leftover.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(draft)) as connection:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            connection.execute(SCHEMA)
            connection.commit()
        os.chmod(draft, 0o600)
        draft.rename(path)
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"cannot create the goal store {path}: {error}") from error


def _files(path: Path) -> Iterator[Path]:
    for suffix in ("", "-wal", "-shm"):
        yield Path(f"{path}{suffix}")


def write_marker(marker: Path) -> None:
    """Note that there is a store beside it.

    Raises:
        StateError: it cannot be written.
    """
    try:
        fd = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.write("the goal store next to this file was created; if it is gone, it was lost\n")
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(marker.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StateError(f"cannot write {marker}: {error.strerror}") from error
