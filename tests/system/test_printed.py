"""What is printed by a daemon in the background and its children stays within bounds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from servd.commands.log_files import Tail

PRINTS = """
import os, subprocess, sys
from servd.daemon.printed import PrintedLog

log = PrintedLog(sys.argv[1], max_bytes=100)
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
for command in sys.argv[2:]:
    if command == "tend":
        log.tend()
    elif command == "rename":
        os.rename(sys.argv[1] + "/daemon.log", sys.argv[1] + "/renamed")
    else:
        print(command * 40, flush=True)
child.communicate(b"the child's\\n")
"""


def printed(folder: Path, *commands: str, name: str = "daemon.log") -> None:
    with open(folder / name, "ab") as file:
        subprocess.run([sys.executable, "-c", PRINTS, str(folder), *commands], stdout=file, stderr=file, check=True)


@pytest.mark.slow
def test_a_long_file_begins_anew_for_all_who_print(tmp_path: Path) -> None:
    printed(tmp_path, "a", "tend", "b", "c", "tend", "d", "tend")
    assert (tmp_path / "daemon.log").read_text() == f"{'d' * 40}\nthe child's\n"
    # the newest 100 bytes of it
    assert (tmp_path / "daemon.log.1").read_text() == f"{'a' * 17}\n{'b' * 40}\n{'c' * 40}\n"
    assert sorted(os.listdir(tmp_path)) == ["daemon.log", "daemon.log.1"]


@pytest.mark.slow
def test_a_renamed_file_is_opened_anew_at_its_place(tmp_path: Path) -> None:
    printed(tmp_path, "a", "rename", "tend", "b")
    assert (tmp_path / "daemon.log").read_text() == "b" * 40 + "\n"
    assert (tmp_path / "renamed").read_text() == f"{'a' * 40}\nthe child's\n"


@pytest.mark.slow
def test_streams_that_go_elsewhere_are_left_alone(tmp_path: Path) -> None:
    printed(tmp_path, *"abcd", "tend", name="somebodys")
    assert (tmp_path / "somebodys").stat().st_size == 4 * 41 + len("the child's\n")


def test_who_follows_a_file_that_begins_anew_sees_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    path.write_text("one\ntwo\n")
    tail = Tail(str(path))
    assert tail.last(1) == ["two\n"]
    path.write_text("a\n")
    assert tail.more() == ["a\n"]
    assert tail.more() == []
    tail._file.close()
