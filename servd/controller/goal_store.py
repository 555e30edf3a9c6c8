"""The accepted goal on disk: every revision, chained, so that a damaged or emptied store is refused and never obeyed.

One SQLite file in the state directory, WAL, synchronous FULL, checkpointed after each revision. Each row carries a SHA-256
over itself and the sum of the row before: SQLite's own check does not see a changed or lost row. Replica counts set by
`scale` are no revision: they stand beside the latest one until the next. What became of each revision stands beside them too.

A daemon that runs goes on without its store: a controller that starts and finds none that holds what was in force serves what it
was told instead, accepts nothing, and looks for the store again.
"""

import hashlib
import json
import logging
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

from servd.controller import goal_file
from servd.controller.goal_file import (
    APPLICATION_ID,
    MARKER_NAME,
    SCHEMA,
    SCHEMA_VERSION,
    STORE_NAME,
    Refusal,
    create,
    file_id,
    refusal_of,
    write_marker,
)
from servd.controller.goal_json import goal_from_json, goal_to_json
from servd.controller.plan.goal import Goal
from servd.exceptions import GoalNotSavedError, InvariantError, StateError
from servd.ground.host_limits import descriptors_left, no_descriptor
from servd.ground.quick_dataclass import dataclass
from servd.ground.states import RevisionOutcome

_PINS_SCHEMA = """
CREATE TABLE IF NOT EXISTS pins (revision INTEGER PRIMARY KEY, scale TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT
"""
_OUTCOMES_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (revision INTEGER PRIMARY KEY, outcome TEXT NOT NULL) STRICT
"""

logger = logging.getLogger(__name__)


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
        self._lost = ""
        self._looked_at: tuple[int, int] | None = None
        self._told = ""

    def __repr__(self) -> str:
        return f"GoalStore({self._path}, revision {self._last[0]})"

    @classmethod
    def open(cls, state_dir: str, max_pages: int | None = None, known: Goal | None = None) -> "GoalStore":
        """Open the store of a state directory, or create it if this is its first start.

        Args:
            max_pages: bound on the size of the store, pages of 4 KiB; None = the disk's.
            known: the goal that this daemon accepted last, as the controller before left it: if the store is lost, or holds
                an older one, this stands in for it; None = no controller was before.

        Raises:
            StateError: nothing is known, and the store cannot be opened, is damaged, emptied, gone though there was one, or of a
                newer servd. It says what to do.
        """
        path = Path(state_dir) / STORE_NAME
        if known is None:
            return cls._opened(path, max_pages, may_create=True)
        try:
            store = cls._opened(path, max_pages, may_create=not known.revision)
        except StateError as error:
            return cls._standing_in(path, max_pages, known, _reason_of(error))
        if store._last[0] < known.revision:
            reason = f"it holds an older goal (revision {store._last[0]})"
            store.close()
            return cls._standing_in(path, max_pages, known, reason)
        return store

    @classmethod
    def _opened(cls, path: Path, max_pages: int | None, *, may_create: bool) -> "GoalStore":
        try:
            return cls._found(path, max_pages, may_create=may_create)
        except OSError as error:
            # a broken disk, or a directory that may not be looked into
            raise refusal_of(path, error) from error

    @classmethod
    def _found(cls, path: Path, max_pages: int | None, *, may_create: bool) -> "GoalStore":
        marker = path.with_name(MARKER_NAME)
        if not path.exists():
            if marker.exists() or not may_create:
                raise Refusal(path, "it is gone, though this directory was in use")
            create(path)
        try:
            store = cls(goal_file.connect(path), path)
        except sqlite3.Error as error:
            raise refusal_of(path, error) from error
        try:
            store._check(max_pages)
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            store.close()
            raise refusal_of(path, error) from error
        except StateError:
            store.close()
            raise
        if not marker.exists():
            write_marker(marker)
        store._file = file_id(path)
        return store

    @classmethod
    def _standing_in(cls, path: Path, max_pages: int | None, known: Goal, reason: str) -> "GoalStore":
        connection = sqlite3.connect(":memory:")
        connection.execute(SCHEMA)
        if known.revision:
            at = max((app.deployed_at for app in known.applications), default=0.0)
            row = (known.revision, goal_to_json(known), at, "what the daemon remembers", "", "")
            connection.execute("INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?)", row)
        store = cls(connection, path)
        store._last = (known.revision, "", known)
        store._max_pages = max_pages
        store._lost = reason
        store._looked_at = file_id(path)
        return store

    @property
    def is_stand_in(self) -> bool:
        """Whether the store is lost, and only the goal in force is known."""
        return bool(self._lost)

    def trouble(self) -> str:
        """What is wrong with the store while the daemon runs, and what to do, for people; "" if nothing is. Logged once."""
        reason = self._lost
        if not reason and file_id(self._path) != self._file:
            reason = "it was deleted or replaced while the daemon ran"
        text = ""
        if reason:
            text = (
                f"the goal store {self._path} cannot be used: {reason}. The accepted goal (revision {self._last[0]}) goes on, "
                "and no other is taken. Put the file back as it was; or keep what `servd config` prints, stop the daemon, "
                "start it and deploy that"
            )
        if text != self._told:
            (logger.error if text else logger.warning)("goal_store %s", text or f"is back: {self._path}")
            self._told = text
        return text

    def look_again(self) -> None:
        """Where a goal stands in for the store: take the store if it lies there again as it was."""
        if not self._lost:
            return
        found = file_id(self._path)
        is_first = not self._last[0]
        if found == self._looked_at and not (is_first and found is None and self._path.parent.is_dir()):
            return
        self._looked_at = found
        try:
            store = GoalStore._opened(self._path, self._max_pages, may_create=is_first)
        except StateError as error:
            self._lost = _reason_of(error)
            return
        if store.latest() != self._last[2]:
            self._lost = f"it holds another goal (revision {store._last[0]})"
            store.close()
            return
        self._connection.close()
        self._connection, self._last, self._file = store._connection, store._last, store._file
        self._lost = ""

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
        self.look_again()
        revision, previous, _ = self._last
        if goal.revision != revision + 1:
            raise InvariantError(f"revision {goal.revision} cannot follow {revision}")
        self.check_place()
        text = goal_to_json(goal)
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
        self.look_again()
        revision, sha256, _ = self._last
        if goal.revision != revision:
            raise InvariantError(f"counts of revision {goal.revision} cannot stand beside {revision}")
        self.check_place()
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
        self.check_place()
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
        return None if row is None else goal_from_json(row[0])

    def check_place(self) -> None:
        """Check that the store is where the next start finds it.

        Raises:
            GoalNotSavedError: it is not; SQLite would go on writing to a file that nobody finds any more.
        """
        if text := self.trouble():
            raise GoalNotSavedError(f"the goal was not saved: {text}")

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
            self._connection = goal_file.connect(self._path)
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
        # SQLite only says that it cannot open a file
        limit = "" if descriptors_left() else f", {no_descriptor()}"
        return GoalNotSavedError(
            f"the goal was not saved in {self._path}: {error}{limit or '. Make room there and try again'}; "
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
            raise Refusal(self._path, "it was emptied, or is no goal store of servd")
        if identity[1] != SCHEMA_VERSION:
            raise Refusal(self._path, f"its version is {identity[1]}, this servd knows {SCHEMA_VERSION}")
        verdict = self._pragma("integrity_check")
        if verdict != "ok":
            raise Refusal(self._path, str(verdict).splitlines()[0])
        rows = self._connection.execute(
            "SELECT revision, goal, at, origin, previous, sha256 FROM revisions ORDER BY revision"
        )
        count, last, text = 0, "", ""
        for revision, text, at, origin, previous, sha256 in rows:
            count += 1
            if revision != count or previous != last or sha256 != _sum(previous, revision, text, at, origin):
                raise Refusal(self._path, f"revision {count} was changed or is missing")
            last = sha256
        if count:
            self._last = (count, last, goal_from_json(text))
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
            raise Refusal(self._path, f"the replica counts beside revision {revision} were changed")
        counts = json.loads(row[0])
        apps = tuple(replace(app, scale=counts.get(app.name, app.scale)) for app in goal.applications)
        self._last = (revision, sha256, replace(goal, applications=apps))

    def _pragma(self, name: str) -> Any:
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]


def _sum(previous: str, revision: int, text: str, at: float, origin: str) -> str:
    return hashlib.sha256(json.dumps([previous, revision, text, at, origin]).encode()).hexdigest()


def _reason_of(error: StateError) -> str:
    return error.reason if isinstance(error, Refusal) else str(error)
