"""What is printed by a daemon in the background and its children stays within bounds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from servd.observability.log_lines import Source, Wish

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


REPLICA = """
import atexit, logging, os, subprocess, sys
from servd.observability import logs

file = logs.setup("replica", "r", sys.argv[1], "x.log", runs_application=True)
logs.catch_descriptors(file)
print("printed")
os.write(1, b"of native code\\n")
subprocess.run(["sh", "-c", "echo of a child >&2"])
os.rename(sys.argv[1] + "/serve/x.log", sys.argv[1] + "/serve/renamed")
logging.getLogger("mine").info("logged")
subprocess.run(["echo", "of another child"])
os.abort()
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
    source = Source(str(path), Wish(), is_followed=True)
    assert [line.text for line in source.lines(1)] == ["one", "two"]
    path.write_text("a\nhal")
    assert [line.text for line in source.more()] == ["a"]
    assert source.more() == []
    with path.open("a") as file:
        file.write("f\n")
    assert [line.text for line in source.more()] == ["half"]
    source.close()


@pytest.mark.slow
def test_what_native_code_and_children_of_a_replica_print_lies_in_its_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPLICA, str(tmp_path)],
        capture_output=True,
        env={**os.environ, "SERVD_LOG_TO_STDERR": "0"},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-6, b"", b"")
    lines = [(tmp_path / "serve" / name).read_text().splitlines() for name in ("renamed", "x.log")]
    assert [line.rpartition(" - ")[2] for line in lines[0]] == ["printed", "of native code", "of a child"]
    assert [line.rpartition(" - ")[2] for line in lines[1]] == ["logged", "of another child"]
