"""Intents and process records, and the goal in force, for the next controller of the same daemon.

They are kept in memory that the daemon holds, which nobody can remove or damage. Records lie in a file as well, for a
controller whose daemon is of a version that holds none; they are worthless after a reboot, so the file lies in the runtime
directory, and the daemon removes it at each start.

The next controller may be of another version all the same, so both say in which form the records are.
"""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servd.controller.goal_json import goal_from_json, goal_to_json
from servd.controller.plan.goal import Goal
from servd.daemon.keepsake import Keepsake
from servd.daemon.unix_sockets import place_of
from servd.exceptions import ProtocolError
from servd.ground.package import PROTOCOL
from servd.wire.codec import Renew, decode_message, encode_message

STORE_NAME = "facts.db"
_Where = tuple[str, str]
_GOAL = ("goal", "")
_MARK = ("form", "")

logger = logging.getLogger(__name__)


MIGRATIONS: dict[int, Renew] = {}
"""Protocol -> what makes the values of a message of it those of the next protocol. Each one before today's has its own."""


def renewal(form: int) -> Renew | None:
    """What makes a message of protocol `form` one of today's; None if it is one, or is of a later one."""
    if form >= PROTOCOL:
        return None

    def renew(name: str, values: list[Any]) -> list[Any]:
        for step in range(form, PROTOCOL):
            values = MIGRATIONS[step](name, values)
        return values

    return renew


class FactStore:
    """Facts by (kind, key).

    Without a file that can be written the control loop goes on, or no dead replica would be replaced any more: all facts are
    kept here as well, and written as soon as they can be, into a new file if the old one is gone.

    Args:
        keepsake: the daemon's memory; None where it has none.
    """

    def __init__(self, socket_dir: str, keepsake: Keepsake | None = None) -> None:
        self._path = f"{socket_dir}/{STORE_NAME}"
        self._keepsake = keepsake
        self._kept: dict[_Where, bytes] = keepsake.load() if keepsake is not None else {}
        self._facts: dict[_Where, bytes] = {_MARK: f"protocol {PROTOCOL}".encode()}
        self._unsaved: dict[_Where, bytes | None] = {**self._facts}
        self._is_file_old = bool(self._kept)
        self._place: tuple[int, int] | None = None
        self._trouble = ""
        self._connection = self._opened()

    def __repr__(self) -> str:
        return f"FactStore({self._path}, {len(self._unsaved)} unsaved)"

    def goal(self) -> Goal | None:
        """The goal in force when the controller before ended, None if that is unknown."""
        text = self._kept.get(_GOAL)
        if text is None:
            return None
        try:
            return goal_from_json(text)
        except (ValueError, KeyError, TypeError) as error:
            logger.error("goal_unreadable reason=%r", error)
            return None

    def load(self) -> list[Any]:
        """All facts, in the order in which they were first saved."""
        rows: dict[_Where, bytes] = dict(self._kept or self._in_file())
        rows.pop(_GOAL, None)
        mark = rows.pop(_MARK, b"")
        form = _form_of(mark)
        found = []
        for where, value in rows.items():
            try:
                fact = decode_message(value, renewal(form))
            except ProtocolError as error:
                logger.error("fact_unreadable kind=%s key=%s protocol=%d reason=%s", *where, form, error)
                continue
            found.append(fact)
            self._facts[where] = value if form == PROTOCOL else encode_message(fact)
        self._is_file_old |= form != PROTOCOL
        if not self._kept or mark != self._facts[_MARK]:
            self._keep(self._facts)
        return found

    def save_goal(self, goal: Goal) -> None:
        """Remember the goal in force, in case its store is lost."""
        self._keep({_GOAL: goal_to_json(goal).encode()})

    def save(self, changes: Mapping[_Where, Any]) -> None:
        """Write changed facts, None = forget; what cannot be written now is tried again at the next call."""
        found = {where: None if fact is None else encode_message(fact) for where, fact in changes.items()}
        for where, value in found.items():
            self._facts[where] = value or b""
            if value is None:
                del self._facts[where]
        if found:
            self._keep(found)
        self._unsaved.update(found)
        if self._connection is None or place_of(self._path) != self._place:
            self.close()
            self._connection = self._opened()
            self._unsaved = {**self._unsaved, **self._facts}
        if (self._unsaved or self._is_file_old) and self._connection is not None:
            self._save(self._connection)

    def _keep(self, changes: Mapping[_Where, bytes | None]) -> None:
        if self._keepsake is None:
            return
        try:
            self._keepsake.save(changes)
        except OSError as error:
            # the file has them too
            logger.error("facts_not_kept count=%d reason=%s", len(changes), error)

    def _in_file(self) -> list[tuple[_Where, bytes]]:
        rows = _rows(self._connection) if self._connection is not None else _rows_read_only(self._path)
        return [((kind, key), value) for kind, key, value in rows]

    def _save(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("BEGIN")
            if self._is_file_old:
                connection.execute("DELETE FROM facts")
            for (kind, key), value in (self._facts if self._is_file_old else self._unsaved).items():
                self._write(connection, kind, key, value)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            self._tell(str(error))
            return
        self._unsaved.clear()
        self._is_file_old = False
        self._tell("")

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened(self) -> sqlite3.Connection | None:
        try:
            connection = _open(self._path)
        except sqlite3.OperationalError as error:
            # no room, read-only, no directory: what is there stays
            self._tell(str(error))
            return None
        except sqlite3.DatabaseError as error:
            logger.error("facts_lost path=%s reason=%s", self._path, error)
            with contextlib.suppress(OSError):
                for path in fact_files(os.path.dirname(self._path)):
                    Path(path).unlink(missing_ok=True)
                connection = _open(self._path)
                self._place = place_of(self._path)
                return connection
            return None
        except OSError as error:
            self._tell(str(error))
            return None
        self._place = place_of(self._path)
        return connection

    def _tell(self, trouble: str) -> None:
        """Say once what is wrong, and that it is over."""
        if trouble != self._trouble:
            if trouble:
                logger.error("facts_not_saved count=%d path=%s reason=%s", len(self._unsaved), self._path, trouble)
            else:
                logger.info("facts_saved_again path=%s", self._path)
        self._trouble = trouble

    @staticmethod
    def _write(connection: sqlite3.Connection, kind: str, key: str, value: bytes | None) -> None:
        if value is None:
            connection.execute("DELETE FROM facts WHERE kind = ? AND key = ?", (kind, key))
            return
        # an upsert keeps the row number, so the order of first saving stays
        connection.execute(
            "INSERT INTO facts VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value",
            (kind, key, value),
        )


def _form_of(mark: bytes) -> int:
    """The protocol whose form a store has; one without a mark is of before there were any."""
    return int(mark.removeprefix(b"protocol ") or b"1")


def _rows(connection: sqlite3.Connection) -> list[tuple[str, str, bytes]]:
    return connection.execute("SELECT kind, key, value FROM facts ORDER BY rowid").fetchall()


def _rows_read_only(path: str) -> list[tuple[str, str, bytes]]:
    # where nothing can be written, what an earlier controller wrote still tells whom to adopt
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return _rows(connection)
    except sqlite3.Error as error:
        logger.error("facts_not_read path=%s reason=%s", path, error)
        return []


def fact_files(socket_dir: str) -> list[str]:
    """The files of the store, there or not."""
    return [f"{socket_dir}/{STORE_NAME}{suffix}" for suffix in ("", "-wal", "-shm")]


def _open(path: str) -> sqlite3.Connection:
    # SQLite gives the files beside it the same mode
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS facts (kind TEXT, key TEXT, value BLOB, PRIMARY KEY (kind, key))"
        )
        connection.execute("SELECT COUNT(*) FROM facts").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection
