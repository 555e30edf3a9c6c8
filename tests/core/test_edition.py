"""Which servd a process is, what differs, and what a process does that is started by another one."""

import os
import pickle
import py_compile
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from servd.daemon import program
from servd.daemon.edition_watch import EditionWatch, notice_of
from servd.ground import edition
from servd.ground.clock import SystemClock
from servd.ground.edition import (
    EXIT_OTHER_PROTOCOL,
    SUFFIXES,
    UNMARKED,
    Edition,
    Stamp,
    difference,
    edition_at,
    edition_of,
)
from servd.ground.package import PACKAGE_DIR, PROTOCOL, VERSION
from servd.wire.messages import Hello


class SteppedClock(SystemClock):
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.time = 1.0

    def now(self) -> float:
        return self.time


OWN = Edition(PROTOCOL, VERSION, "abc")
OTHER = Edition(PROTOCOL, VERSION, "def")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "ground").mkdir(parents=True)
    (home / "ground" / "package.py").write_text('VERSION = "9.8"\nPROTOCOL = 3\n"""Text."""\n')
    (home / "a.py").write_text("one = 1")
    return home


def test_an_edition_is_its_files_whatever_was_compiled(package: Path) -> None:
    first = edition_at(str(package))
    assert (first.version, first.protocol) == ("9.8", 3)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").write_text("compiled")
    os.utime(package / "a.py", (1, 1))
    assert edition_at(str(package)) == first
    (package / "a.py").write_text("two")
    changed = edition_at(str(package))
    assert changed != first
    (package / "a.py").rename(package / "b.py")
    assert edition_at(str(package)) not in (first, changed)


def test_the_files_of_the_page_belong_to_the_edition_and_to_the_copy(tmp_path: Path, package: Path) -> None:
    before = edition_at(str(package))
    (package / "page").mkdir()
    (package / "page" / "page.js").write_text("1")
    changed = edition_at(str(package))
    assert changed != before
    code_dir = Path(program.copy_in(str(tmp_path), str(package)))
    assert (code_dir / "page" / "page.js").read_text() == "1"
    (package / "page" / "page.js").write_text("2")
    assert edition_at(str(package)) not in (before, changed)


def test_what_editors_leave_beside_a_module_is_nothing(package: Path) -> None:
    before = edition_at(str(package))
    (package / ".a.py.swp").write_text("vim")
    (package / ".#a.py").symlink_to("user@host.1:1")
    (package / "a.py~").write_text("old")
    assert edition_at(str(package)) == before


def test_the_real_package_knows_itself_and_holds_nothing_that_a_copy_would_not() -> None:
    known = (*SUFFIXES, ".pyc")
    others = {path.name for path in Path(PACKAGE_DIR).rglob("*") if path.is_file() and path.suffix not in known}
    assert others <= {"py.typed"}, "a copy that a daemon runs from has no such file"
    assert edition_at(PACKAGE_DIR) == Edition(PROTOCOL, VERSION, edition_at(PACKAGE_DIR).digest)


@pytest.mark.parametrize("known", [OWN, Edition(7, "1.2.3", "0123456789ab")])
def test_a_greeting_carries_an_edition(known: Edition) -> None:
    assert edition_of(known.text) == known


@pytest.mark.parametrize(("text", "is_understood"), [("", True), ("x", False), ("2 a b", False), ("-1 a b", False)])
def test_what_speaks_no_known_protocol_is_not_understood(text: str, is_understood: bool) -> None:
    assert (difference(edition_of(text)) == "") is is_understood
    assert edition_of("") == UNMARKED


def test_a_copy_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(*_: object, **__: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "utime", is_full)
    with pytest.raises(OSError, match="no space left"):
        program.copy_in(str(tmp_path), str(package))
    assert os.listdir(tmp_path / program.DIR_NAME) == []


def test_files_that_change_while_they_are_copied_are_not_kept(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.utime

    def change(*given: Any, **named: Any) -> None:
        write(*given, **named)
        (package / "a.py").write_text("another one")
        (package / "ground" / "package.py").write_text("another one")

    monkeypatch.setattr(os, "utime", change)
    with pytest.raises(OSError, match="changed meanwhile"):
        program.copy_in(str(tmp_path), str(package))
    assert os.listdir(tmp_path / program.DIR_NAME) == []


@pytest.mark.parametrize("is_linked", [True, False])
def test_a_copy_has_what_is_compiled_and_neither_side_writes_into_the_other(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch, is_linked: bool
) -> None:
    def another_disk(*_: object) -> None:
        raise OSError(18, "cross-device link")

    if not is_linked:
        monkeypatch.setattr(os, "link", another_disk)
    py_compile.compile(str(package / "a.py"))
    code_dir = Path(program.copy_in(str(tmp_path), str(package)))
    [compiled] = (code_dir / "__pycache__").iterdir()
    before = compiled.read_bytes()
    assert before == (package / "__pycache__" / compiled.name).read_bytes()
    assert int(os.stat(code_dir / "a.py").st_mtime) == int.from_bytes(before[8:12], "little"), "it is valid there"
    (package / "a.py").write_text("two = 2")
    py_compile.compile(str(package / "a.py"))
    assert compiled.read_bytes() == before


def test_a_copy_is_kept_until_the_files_change(tmp_path: Path, package: Path) -> None:
    def copied() -> str:
        return program.copy_in(str(tmp_path), str(package))

    code_dir, first = copied(), edition_at(str(package))
    assert edition_at(code_dir) == first
    inode = os.stat(f"{code_dir}/a.py").st_ino
    os.utime(package / "a.py", (20, 20))
    assert copied() == code_dir
    assert os.stat(f"{code_dir}/a.py").st_ino == inode
    os.truncate(f"{code_dir}/a.py", 0)
    assert copied() == code_dir
    assert edition_at(code_dir) == first, "a damaged copy is made anew"
    Path(f"{code_dir}/gone.py").write_text("a module that the package has no more")
    assert copied() == code_dir
    assert not os.path.exists(f"{code_dir}/gone.py")
    (package / "a.py").write_text("two")
    other = copied()
    assert edition_at(other) == edition_at(str(package)) != first
    assert os.path.isdir(code_dir)
    program.remove_other_copies(other)
    assert os.listdir(tmp_path / program.DIR_NAME) == [os.path.basename(os.path.dirname(other))]


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "code"), [(PROTOCOL, 0), (PROTOCOL + 1, EXIT_OTHER_PROTOCOL)])
def test_a_process_ends_before_it_reads_the_orders_of_another_protocol(protocol: int, code: int) -> None:
    told = pickle.dumps(Stamp(Edition(protocol, "9.9", "abc"), "/nowhere", "/home"))
    text = f"import pickle; pickle.loads({told!r}); from servd.ground.edition import own_edition; print(own_edition())"
    found = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=Path(PACKAGE_DIR).parent)
    assert found.returncode == code, found.stderr
    if code:
        assert "protocol 2" in found.stderr
        assert "servd stop && servd start" in found.stderr
    else:
        # it runs from elsewhere than it was told, so it looks for itself
        assert found.stdout.strip() == str(edition_at(PACKAGE_DIR))


def test_who_is_told_where_its_copy_lies_believes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edition, "_stamps", [])
    assert not edition.is_told()
    pickle.loads(pickle.dumps(Stamp(OTHER, PACKAGE_DIR, "/home")))
    assert edition.is_told()
    assert edition.own_edition() == OTHER
    assert edition.stamp().home == "/home"


@pytest.mark.slow
def test_what_is_not_loaded_yet_is_found_when_the_copy_is_gone(tmp_path: Path) -> None:
    code_dir, made = program.copy_in(str(tmp_path), PACKAGE_DIR), edition_at(PACKAGE_DIR)
    text = (
        "import pickle, shutil, sys, servd.wire\n"
        f"sys.path.remove({os.path.dirname(PACKAGE_DIR)!r})\n"
        f"pickle.loads({pickle.dumps(Stamp(made, code_dir, PACKAGE_DIR))!r})\n"
        "from servd import multiplex\nprint(multiplex.__file__)\n"
        "shutil.rmtree(servd.__path__[0])\n"
        "from servd import batching\nfrom servd.wire import link\nprint(batching.__file__, link.__file__)\n"
        "import servd.nothing"
    )
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(code_dir), os.path.dirname(PACKAGE_DIR)])}
    found = subprocess.run([sys.executable, "-P", "-c", text], capture_output=True, text=True, env=variables)
    expected = [f"{code_dir}/multiplex.py", f"{PACKAGE_DIR}/batching.py", f"{PACKAGE_DIR}/wire/link.py"]
    assert found.stdout.split() == expected, found.stderr
    assert found.stderr.rstrip().endswith("No module named 'servd.nothing'")


@pytest.mark.parametrize(
    ("there", "others", "how", "expected"),
    [
        (OWN, {}, {}, []),
        (OWN, {OWN: 3}, {}, []),
        (OTHER, {}, {}, ["were replaced by"]),
        (None, {}, {}, ["cannot be read"]),
        (OWN, {OTHER: 2}, {}, ["2 of its processes run"]),
        (OWN, {UNMARKED: 1}, {}, ["1 of its processes run", "unmarked"]),
        (OWN, {}, {"is_told": False}, ["the daemon is of an older servd"]),
    ],
)
def test_what_differs_is_said_in_one_line(
    there: Edition | None, others: dict[Edition, int], how: dict[str, bool], expected: list[str]
) -> None:
    said = notice_of(Stamp(OWN, "/copy", "/home"), there, Counter(others), **how)
    assert all(word in said for word in expected), said
    assert "\n" not in said
    assert bool(said) is bool(expected)


def test_the_watch_looks_again_and_reads_only_what_changed(tmp_path: Path, package: Path) -> None:
    clock = SteppedClock()
    hellos = [Hello("caller", "c", 1, 1, "", OTHER.text)]
    stamp = Stamp(edition_at(str(package)), "/copy", str(package))
    watch = EditionWatch(stamp, True, clock, lambda: hellos)
    assert watch.notice() == ""
    (package / "a.py").write_text("other")
    hellos.append(Hello("replica", "r", 1, 1, "", OTHER.text))
    assert watch.notice() == "", "not at every request"
    clock.time += 3
    said = watch.notice()
    assert "were replaced" in said
    assert "1 of its processes" in said
    shutil.rmtree(package)
    clock.time += 3
    assert "cannot be read" in watch.notice()
