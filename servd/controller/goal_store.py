"""The accepted goal on disk: every revision, chained, so that a damaged or emptied store is refused and never obeyed.

One SQLite file in the state directory, WAL, synchronous FULL, checkpointed after each revision. Each row carries a SHA-256
over itself and the sum of the row before: SQLite's own check does not see a changed or lost row. Replica counts set by
`scale` are no revision: they stand beside the latest one until the next. What became of each revision stands beside them too.
"""

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from servd.controller.plan.goal import ApplicationGoal, Goal, HttpGoal
from servd.documents.control_plane import ApplicationDocument, HttpWish
from servd.exceptions import GoalNotSavedError, InvariantError, StateError
from servd.ground.quick_dataclass import dataclass
from servd.ground.states import DeployMode, RevisionOutcome

STORE_NAME = "goal.db"
MARKER_NAME = "goal.created"
APPLICATION_ID = 0x53525644
SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE revisions (
    revision INTEGER PRIMARY KEY, goal TEXT NOT NULL, at REAL NOT NULL, origin TEXT NOT NULL,
    previous TEXT NOT NULL, sha256 TEXT NOT NULL
) STRICT
"""
_PINS_SCHEMA = """
CREATE TABLE IF NOT EXISTS pins (revision INTEGER PRIMARY KEY, scale TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT
"""
_OUTCOMES_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (revision INTEGER PRIMARY KEY, outcome TEXT NOT NULL) STRICT
"""

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Revision:
    """One accepted change of the goal. at: wall time, seconds. origin: who asked for it. outcome: what became of it."""

    revision: int
    at: float
    origin: str
    sha256: str
    outcome: RevisionOutcome = RevisionOutcome.UNDECIDED


class GoalStore:
    """All revisions of the goal. Use `open()`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._last: tuple[int, str, Goal] = (0, "", Goal())
        self._file: tuple[int, int] | None = None
        self._max_pages: int | None = None

    def __repr__(self) -> str:
        return f"GoalStore({self._path}, revision {self._last[0]})"

    @classmethod
    def open(cls, state_dir: str, max_pages: int | None = None) -> "GoalStore":
        """Open the store of a state directory, or create it if this is its first start.

        Args:
            max_pages: bound on the size of the store, pages of 4 KiB; None = the disk's.

        Raises:
            StateError: the store cannot be opened, is damaged, emptied, gone though there was one, or of a newer servd.
                It says what to do.
        """
        path = Path(state_dir) / STORE_NAME
        marker = Path(state_dir) / MARKER_NAME
        if not path.exists():
            if marker.exists():
                raise _refusal(path, "it is gone, though this directory was in use")
            _create(path)
        try:
            store = cls(_connect(path), path)
        except sqlite3.Error as error:
            raise _refusal(path, str(error)) from error
        try:
            store._check(max_pages)
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            store.close()
            raise _refusal(path, str(error)) from error
        except StateError:
            store.close()
            raise
        if not marker.exists():
            _write_marker(marker)
        store._file = _file_id(path)
        return store

    def latest(self) -> Goal:
        """The goal in force; the empty goal before the first revision."""
        return self._last[2]

    def save(self, goal: Goal, origin: str, at: float) -> None:
        """Make `goal` the one in force; it is on disk when this returns.

        Args:
            goal: its revision is one more than the latest.
            origin: who asked, for the history.
            at: wall time, seconds.

        Raises:
            GoalNotSavedError: nothing was saved, the goal before is still the latest one.
        """
        revision, previous, _ = self._last
        if goal.revision != revision + 1:
            raise InvariantError(f"revision {goal.revision} cannot follow {revision}")
        self._check_place()
        text = json.dumps(asdict(goal))
        sha256 = _sum(previous, goal.revision, text, at, origin)
        self._write(
            "INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?)", goal.revision, text, at, origin, previous, sha256
        )
        self._last = (goal.revision, sha256, goal)
        self._checkpoint()

    def save_scale(self, goal: Goal) -> None:
        """Make `goal` the one in force: the latest revision with other replica counts set by `scale`.

        Raises:
            GoalNotSavedError: nothing was saved.
        """
        revision, sha256, _ = self._last
        if goal.revision != revision:
            raise InvariantError(f"counts of revision {goal.revision} cannot stand beside {revision}")
        self._check_place()
        text = json.dumps({app.name: app.scale for app in goal.applications})
        row = (revision, text, _sum(sha256, revision, text, 0.0, "scale"))
        self._write("INSERT OR REPLACE INTO pins VALUES (?, ?, ?)", *row, schema=_PINS_SCHEMA)
        self._last = (revision, sha256, goal)
        self._checkpoint()

    def revisions(self) -> list[Revision]:
        """All revisions, oldest first."""
        rows = self._connection.execute("SELECT revision, at, origin, sha256 FROM revisions ORDER BY revision")
        outcomes = self._outcomes()
        return [
            Revision(number, at, origin, sha256, outcomes.get(number, RevisionOutcome.UNDECIDED))
            for number, at, origin, sha256 in rows
        ]

    def save_outcome(self, revision: int, outcome: RevisionOutcome) -> None:
        """Note what became of a revision.

        Raises:
            GoalNotSavedError: it was not noted.
        """
        self._check_place()
        self._write("INSERT OR REPLACE INTO outcomes VALUES (?, ?)", revision, outcome.value, schema=_OUTCOMES_SCHEMA)
        self._checkpoint()

    def _outcomes(self) -> dict[int, RevisionOutcome]:
        if self._connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'outcomes'").fetchone() is None:
            return {}
        rows = self._connection.execute("SELECT revision, outcome FROM outcomes").fetchall()
        return {number: RevisionOutcome(outcome) for number, outcome in rows if outcome in list(RevisionOutcome)}

    def goal_of(self, revision: int) -> Goal | None:
        """The goal of a revision as it was accepted; None if there is no such revision."""
        row = self._connection.execute("SELECT goal FROM revisions WHERE revision = ?", (revision,)).fetchone()
        return None if row is None else goal_from_json(json.loads(row[0]))

    def _check_place(self) -> None:
        # SQLite would go on writing to a file that no later start can find
        if _file_id(self._path) != self._file:
            raise GoalNotSavedError(
                f"the goal was not saved: {self._path} was deleted or replaced while the daemon ran. Put the file back "
                f"and try again; the accepted goal (revision {self._last[0]}) goes on"
            )

    def _write(self, statement: str, *values: Any, schema: str = "") -> None:
        for is_last in (False, True):
            try:
                with self._connection:
                    if schema:
                        self._connection.execute(schema)
                    self._connection.execute(statement, values)
                return
            except sqlite3.Error as error:
                if is_last or not self._is_connected_anew():
                    raise self._not_saved(error) from error

    def _is_connected_anew(self) -> bool:
        """Connect again: a connection made on a read-only disk stays read-only when the disk no longer is."""
        # first of all the old one ends: connections of one process share how they opened the file's index
        self._connection.close()
        try:
            self._connection = _connect(self._path)
            self._set_up(self._connection)
        except sqlite3.Error as error:
            logger.warning("goal_store_not_opened path=%s reason=%s", self._path, error)
            return False
        return True

    def _set_up(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA synchronous=FULL")
        if self._max_pages is not None:
            connection.execute(f"PRAGMA max_page_count={self._max_pages}")

    def _not_saved(self, error: sqlite3.Error) -> GoalNotSavedError:
        return GoalNotSavedError(
            f"the goal was not saved in {self._path}: {error}. Make room there and try again; "
            f"the accepted goal (revision {self._last[0]}) goes on"
        )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _checkpoint(self) -> None:
        # the row is durable in the WAL already; a WAL that stays empty has no tail to lose
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            logger.warning("goal_checkpoint_failed path=%s reason=%s", self._path, error)

    def _check(self, max_pages: int | None) -> None:
        identity = self._pragma("application_id"), self._pragma("user_version")
        if identity[0] != APPLICATION_ID:
            raise _refusal(self._path, "it was emptied, or is no goal store of servd")
        if identity[1] != SCHEMA_VERSION:
            raise _refusal(self._path, f"its version is {identity[1]}, this servd knows {SCHEMA_VERSION}")
        verdict = self._pragma("integrity_check")
        if verdict != "ok":
            raise _refusal(self._path, str(verdict).splitlines()[0])
        rows = self._connection.execute(
            "SELECT revision, goal, at, origin, previous, sha256 FROM revisions ORDER BY revision"
        )
        count, last, text = 0, "", ""
        for revision, text, at, origin, previous, sha256 in rows:
            count += 1
            if revision != count or previous != last or sha256 != _sum(previous, revision, text, at, origin):
                raise _refusal(self._path, f"revision {count} was changed or is missing")
            last = sha256
        if count:
            self._last = (count, last, goal_from_json(json.loads(text)))
        self._max_pages = max_pages
        self._apply_pins()
        self._checkpoint()
        self._set_up(self._connection)

    def _apply_pins(self) -> None:
        revision, sha256, goal = self._last
        if self._connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'pins'").fetchone() is None:
            return
        row = self._connection.execute("SELECT scale, sha256 FROM pins WHERE revision = ?", (revision,)).fetchone()
        if row is None:
            return
        if row[1] != _sum(sha256, revision, row[0], 0.0, "scale"):
            raise _refusal(self._path, f"the replica counts beside revision {revision} were changed")
        counts = json.loads(row[0])
        apps = tuple(replace(app, scale=counts.get(app.name, app.scale)) for app in goal.applications)
        self._last = (revision, sha256, replace(goal, applications=apps))

    def _pragma(self, name: str) -> Any:
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]


def goal_from_json(value: dict[str, Any]) -> Goal:
    """The goal behind its JSON form; keys that this version does not know are left out.

    Raises:
        KeyError, TypeError, ValueError: it is no goal.
    """
    applications = tuple(
        _build(ApplicationGoal, {**app, "document": _document(app["document"])}) for app in value["applications"]
    )
    http = _build(HttpGoal, value["http"]) if value.get("http") else None
    asked = _build(HttpWish, value.get("asked") or {})
    mode = DeployMode(value["mode"])
    return _build(Goal, {**value, "mode": mode, "http": http, "applications": applications, "asked": asked})


def _document(value: dict[str, Any]) -> ApplicationDocument:
    return _build(
        ApplicationDocument,
        {
            **value,
            "deployments": tuple(value.get("deployments", ())),
            "driver_path": tuple(value.get("driver_path", ())),
        },
    )


def _build(kind: type[_T], value: dict[str, Any]) -> _T:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: item for key, item in value.items() if key in known})


def _sum(previous: str, revision: int, text: str, at: float, origin: str) -> str:
    return hashlib.sha256(json.dumps([previous, revision, text, at, origin]).encode()).hexdigest()


def _refusal(path: Path, reason: str) -> StateError:
    return StateError(
        f"the goal store {path} cannot be used: {reason}. Put a good copy back, or move "
        f"{path.parent}/goal.* away to start with an empty goal"
    )


def _file_id(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _connect(path: Path) -> sqlite3.Connection:
    # mode=rw: never create by opening. Only one thread uses it, the loop's.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0)


def _create(path: Path) -> None:
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
            connection.execute(_SCHEMA)
            connection.commit()
        os.chmod(draft, 0o600)
        draft.rename(path)
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"cannot create the goal store {path}: {error}") from error


def _files(path: Path) -> Iterator[Path]:
    for suffix in ("", "-wal", "-shm"):
        yield Path(f"{path}{suffix}")


def _write_marker(marker: Path) -> None:
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
