"""Files that are open before a fork: children read them at places of their own."""

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from servd.ground.process import open_fds
from servd.replica.native import open_files as module
from servd.replica.native.open_files import let_open_in_children, open_files, open_inherited

TEXT = bytes(range(256))


@pytest.fixture(autouse=True)
def _own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_found", [])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(TEXT)
    return tmp_path / "file"


def in_child(work: Callable[[], Any]) -> None:
    """`work` in a forked child, which has opened anew what it inherits."""
    pid = os.fork()
    if not pid:
        try:
            open_inherited()
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_goes_on_from_where_its_parent_was_and_moves_nobody_else(path: Path) -> None:
    before = open_fds()
    with path.open("rb", buffering=0) as file, path.open("rb") as buffered:
        file.seek(10)
        assert buffered.read(2) == TEXT[:2]
        path.unlink()
        let_open_in_children(open_files(open_fds() - before))

        def work() -> None:
            assert file.read(5) == TEXT[10:15]
            assert buffered.read() == TEXT[2:]
            assert not os.get_inheritable(file.fileno())

        in_child(work)
        assert file.tell() == 10
        # the place before which it was noted, not where somebody else has gone since
        file.seek(99)
        in_child(work)
        assert file.tell() == 99


def opened_for_both(path: Path) -> IO[bytes]:
    return path.open("r+b", buffering=0)


def with_a_lock(path: Path) -> IO[bytes]:
    file = opened_for_both(path)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def without_a_name(_: Path) -> IO[bytes]:
    return tempfile.TemporaryFile()


def of_no_contents(_: Path) -> IO[bytes]:
    return Path(os.devnull).open("rb")


@pytest.mark.parametrize(
    ("opened", "is_own"),
    [
        (lambda path: path.open("rb"), True),
        (opened_for_both, True),
        (with_a_lock, False),
        (lambda path: path.open("wb"), False),
        (lambda path: path.open("ab"), False),
        (without_a_name, True),
        (of_no_contents, False),
    ],
)
def test_which_are_opened_anew(path: Path, opened: Callable[[Path], IO[bytes]], is_own: bool) -> None:
    before = open_fds()
    with opened(path):
        assert bool(open_files(open_fds() - before)) == is_own


def test_what_has_come_in_the_place_of_one_is_left_alone(path: Path) -> None:
    before = open_fds()
    with path.open("rb", buffering=0) as file, tempfile.TemporaryFile() as other:
        let_open_in_children(open_files(open_fds() - before)[:1])
        other.write(b"other")
        other.flush()
        os.dup2(other.fileno(), file.fileno())
        in_child(lambda: os.lseek(file.fileno(), 3, os.SEEK_SET))
        assert os.lseek(other.fileno(), 0, os.SEEK_CUR) == 3


def test_what_may_not_be_opened_stays_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    with path.open("rb", buffering=0) as file:
        let_open_in_children(open_files(open_fds() - before))

        def refuse(*_: object) -> int:
            raise PermissionError

        monkeypatch.setattr(os, "open", refuse)

        def work() -> None:
            assert file.read(1) == TEXT[:1]

        in_child(work)
        assert file.tell() == 1
