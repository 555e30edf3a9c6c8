"""Files that are locked for one process alone before a fork: they forbid it."""

import fcntl
import sqlite3
import sys
from pathlib import Path

import pytest

from servd.ground.process import open_fds
from servd.replica.native.fork_safety import judge
from servd.replica.native.locked_files import LockedFile, locked_files


def test_who_alone_may_write_is_found(tmp_path: Path) -> None:
    before, path = open_fds(), tmp_path / "file.db"
    with path.open("a") as database, path.open("a") as read, (tmp_path / "other").open("a") as other:
        fcntl.lockf(other, fcntl.LOCK_EX)
        fcntl.lockf(other, fcntl.LOCK_UN)
        # of what was opened: a child has it too
        fcntl.flock(read, fcntl.LOCK_SH)
        assert locked_files(open_fds() - before) == []
        fcntl.lockf(database, fcntl.LOCK_EX)
        assert locked_files(open_fds() - before) == [LockedFile(str(path))]


def test_the_reason_names_them_and_the_ways_out() -> None:
    reason = judge([], [], locked=[LockedFile("/data/a.duckdb")], hook="`on_replica_start(self)`")
    assert "/data/a.duckdb locked for one process alone" in reason
    assert "read only, or after the fork, in `on_replica_start(self)`" in reason
    assert judge([], []) == ""


def test_locks_of_readers_are_not_meant(tmp_path: Path) -> None:
    before, path = open_fds(), tmp_path / "file.db"
    path.touch()
    with path.open("r") as database:
        fcntl.lockf(database, fcntl.LOCK_SH)
        assert locked_files(open_fds() - before) == []


def test_databases_of_sqlite_are_meant_while_they_are_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, path = open_fds(), tmp_path / "a.db"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("create table t(a)")
    database.executemany("insert into t values (?)", [(number,) for number in range(9)])
    assert locked_files(open_fds() - before) == []
    query = database.execute("select * from t")
    assert next(query) == (0,)
    assert locked_files(open_fds() - before) == [LockedFile(str(path), is_shared=True)]
    query.close()
    assert locked_files(open_fds() - before) == []
    database.execute("pragma journal_mode=wal")
    database.execute("insert into t values (9)")
    found = locked_files(open_fds() - before)
    assert found == [LockedFile(str(path), is_shared=True)]
    database.row_factory = sqlite3.Row
    assert locked_files(open_fds() - before) == found
    monkeypatch.setitem(sys.modules, "sqlite3", sys)
    assert locked_files(open_fds() - before) == [], "a library that brings its own sees to it"
    database.close()
    reason = judge([], [], locked=found)
    assert reason.startswith(
        f"the import left a database of SQLite open, {path}, in WAL mode or with a query under way"
    )
    assert reason.endswith("open it after the fork, in the constructor, or close it, to have replicas forked")
