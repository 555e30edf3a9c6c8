"""What is left in the buffers of files is written, once."""

import gc
import os
from pathlib import Path

import pytest

from servd.replica.native import written


@pytest.fixture(autouse=True)
def _own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "_kept", [])


@pytest.mark.parametrize("mode", ["w", "a", "wb", "r+b"])
def test_what_is_left_is_written(tmp_path: Path, mode: str) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open(mode) as file:
        file.write(b"left" if "b" in mode else "left")  # type: ignore[call-overload]
        assert (tmp_path / "file").read_text() == ""
        written.flush()
        assert (tmp_path / "file").read_text() == "left"


def test_a_forked_child_writes_what_it_has_itself(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        file.write("parent ")
        written.flush_and_keep()
        pid = os.fork()
        if not pid:
            gc.freeze()
            file.write("child")
            written.flush()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "file").read_text() == "parent child"


def test_what_cannot_be_written_keeps_nothing_else_back(tmp_path: Path) -> None:
    closed = (tmp_path / "closed").open("w")
    ours, theirs = os.pipe()
    os.close(ours)
    nobodys = os.fdopen(theirs, "w")
    nobodys.write("nobody reads it")
    with (tmp_path / "file").open("w") as file:
        file.write("left")
        written.flush_and_keep()
        closed.close()
        file.write(", and more")
        written.flush()
        assert (tmp_path / "file").read_text() == "left, and more"
    with pytest.raises(BrokenPipeError):
        nobodys.close()


def test_files_that_are_read_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("some text")
    with (tmp_path / "file").open() as file:
        assert file.read(2) == "so"
        written.flush_and_keep()
        assert file.read() == "me text"
