"""Files that are locked for one process alone before a fork: they forbid it."""

import fcntl
from pathlib import Path

from servd.ground.process import open_fds
from servd.replica.native.fork_safety import judge
from servd.replica.native.locked_files import locked_files


def test_who_alone_may_write_is_found(tmp_path: Path) -> None:
    before, path = open_fds(), tmp_path / "file.db"
    with path.open("a") as database, path.open("a") as read, (tmp_path / "other").open("a") as other:
        fcntl.lockf(other, fcntl.LOCK_EX)
        fcntl.lockf(other, fcntl.LOCK_UN)
        # of what was opened: a child has it too
        fcntl.flock(read, fcntl.LOCK_SH)
        assert locked_files(open_fds() - before) == []
        fcntl.lockf(database, fcntl.LOCK_EX)
        assert locked_files(open_fds() - before) == [str(path)]


def test_the_reason_names_them_and_the_ways_out() -> None:
    reason = judge([], [], locked=["/data/a.duckdb"], hook="`on_replica_start(self)`")
    assert "/data/a.duckdb locked for one process alone" in reason
    assert "read only, or after the fork, in `on_replica_start(self)`" in reason
    assert judge([], []) == ""


def test_locks_of_readers_are_not_meant(tmp_path: Path) -> None:
    before, path = open_fds(), tmp_path / "file.db"
    path.touch()
    with path.open("r") as database:
        fcntl.lockf(database, fcntl.LOCK_SH)
        assert locked_files(open_fds() - before) == []
