"""Intents and process records on disk, for the next controller of the same daemon.

They are worthless after a reboot, so the file lies in the runtime directory; the daemon removes it at each start.
"""

import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servd.exceptions import ProtocolError
from servd.wire.codec import decode_message, encode_message

STORE_NAME = "facts.db"

logger = logging.getLogger(__name__)


class FactStore:
    """Facts by (kind, key)."""

    def __init__(self, socket_dir: str) -> None:
        self._path = f"{socket_dir}/{STORE_NAME}"
        try:
            self._connection = _open(self._path)
        except sqlite3.DatabaseError as error:
            # without facts every living process is a stray, and is replaced
            logger.error("facts_lost path=%s reason=%s", self._path, error)
            for path in fact_files(socket_dir):
                Path(path).unlink(missing_ok=True)
            self._connection = _open(self._path)
        self._unsaved: dict[tuple[str, str], Any] = {}

    def __repr__(self) -> str:
        return f"FactStore({self._path}, {len(self._unsaved)} unsaved)"

    def load(self) -> list[Any]:
        """All facts, in the order in which they were first saved."""
        facts = []
        for kind, key, value in self._connection.execute("SELECT kind, key, value FROM facts ORDER BY rowid"):
            try:
                facts.append(decode_message(value))
            except ProtocolError as error:
                logger.error("fact_unreadable kind=%s key=%s reason=%s", kind, key, error)
        return facts

    def save(self, changes: Mapping[tuple[str, str], Any]) -> None:
        """Write changed facts, None = forget.

        A full disk does not stop the control loop, or no dead replica would be replaced any more: what could not be
        written is tried again with the next change.
        """
        self._unsaved.update(changes)
        if not self._unsaved:
            return
        try:
            self._connection.execute("BEGIN")
            for (kind, key), fact in self._unsaved.items():
                self._write(kind, key, fact)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            logger.error("facts_not_saved count=%d path=%s reason=%s", len(self._unsaved), self._path, error)
            return
        self._unsaved.clear()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _write(self, kind: str, key: str, fact: Any) -> None:
        if fact is None:
            self._connection.execute("DELETE FROM facts WHERE kind = ? AND key = ?", (kind, key))
            return
        # an upsert keeps the row number, so the order of first saving stays
        self._connection.execute(
            "INSERT INTO facts VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value",
            (kind, key, encode_message(fact)),
        )


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
