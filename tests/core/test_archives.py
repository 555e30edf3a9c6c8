"""The zip rule, and what an archive may not do."""

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest

from servd.exceptions import DeployError
from servd.replica.code import archives
from servd.replica.code.archives import unpack


def a_zip(path: Path, entries: dict[str, str], modes: dict[str, int] | None = None) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, 0) << 16
            made.writestr(info, content)
    return str(path)


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["top/a.py", "top/sub/b.py"], ["a.py", "sub/b.py"]),
        (["top/", "top/a.py"], ["a.py"]),
        (["top/a.py", "__MACOSX/top/._a.py"], ["a.py"]),
        (["__MACOSX/a.py"], ["a.py"]),
        (["./top/a.py"], ["a.py"]),
        (["top\\a.py"], ["a.py"]),
        (["top/top/a.py"], ["top/a.py"]),
        (["a.py", "top/b.py"], ["a.py", "top/b.py"]),
        (["a.py", "__MACOSX/b.py"], ["__MACOSX/b.py", "a.py"]),
        (["one/a.py", "two/b.py"], ["one/a.py", "two/b.py"]),
        (["one/a.py", "two/b.py", "__MACOSX/c"], ["__MACOSX/c", "one/a.py", "two/b.py"]),
        ([], []),
    ],
)
def test_a_single_top_level_directory_is_lifted(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    archive = a_zip(tmp_path / "a.zip", {name: "" if name.endswith("/") else name for name in names})
    unpack(archive, str(tmp_path / "out"))
    assert sorted(tree(tmp_path / "out")) == expected


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../out.py", "a/../../out.py", "C:\\out.py", "..\\out.py", "\\\\host\\out.py", "a/.."]
)
def test_paths_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    archive = a_zip(tmp_path / "a.zip", {"a/fine.py": "x", name: "bad"})
    with pytest.raises(DeployError, match="unsafe path"):
        unpack(archive, str(tmp_path / "in" / "out"))
    assert not (tmp_path / "in").exists()
    assert not (tmp_path / "out.py").exists()


LINK = stat.S_IFLNK | 0o777


@pytest.mark.parametrize("aim", ["/etc", "../..", "../../etc", "a/../../..", ""])
def test_links_that_lead_outside_are_refused(tmp_path: Path, aim: str) -> None:
    archive = a_zip(tmp_path / "a.zip", {"d/fine.py": "x", "e.py": "x", "d/link": aim}, {"d/link": LINK})
    with pytest.raises(DeployError, match="leads outside"):
        unpack(archive, str(tmp_path / "out"))


def test_a_link_inside_is_made(tmp_path: Path) -> None:
    archive = a_zip(tmp_path / "a.zip", {"d/fine.py": "x", "e.py": "x", "d/link": "../e.py"}, {"d/link": LINK})
    unpack(archive, str(tmp_path / "out"))
    assert os.readlink(tmp_path / "out" / "d" / "link") == "../e.py"


def test_a_chain_of_links_that_leads_outside_is_refused(tmp_path: Path) -> None:
    entries = {"a/b/c/x": "x", "y": "y", "up": "a/b/c", "out": "up/../../../.."}
    archive = a_zip(tmp_path / "a.zip", entries, {"up": LINK, "out": LINK})
    with pytest.raises(DeployError, match="leads outside"):
        unpack(archive, str(tmp_path / "target"))


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    entries = {"link": str(outside), "link/file": "bad", "x": "x"}
    archive = a_zip(tmp_path / "a.zip", entries, {"link": LINK})
    with pytest.raises(DeployError, match="behind a link"):
        unpack(archive, str(tmp_path / "out"))
    assert not list(outside.iterdir())


def test_devices_are_refused(tmp_path: Path) -> None:
    archive = a_zip(tmp_path / "a.zip", {"pipe": "", "x": ""}, {"pipe": stat.S_IFIFO | 0o600})
    with pytest.raises(DeployError, match="neither a file, a directory nor a link"):
        unpack(archive, str(tmp_path / "out"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x", "1")
        made.writestr("y", "1")
        made.writestr("x", "2")
    with pytest.raises(DeployError, match="twice"):
        unpack(str(path), str(tmp_path / "out"))


def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    archive = a_zip(tmp_path / "a.zip", {"x": "1", "x/y": "2"})
    with pytest.raises(DeployError, match="cannot be unpacked"):
        unpack(archive, str(tmp_path / "out"))


def test_no_zip_file_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"<html>404</html>")
    with pytest.raises(DeployError, match="no zip file"):
        unpack(str(tmp_path / "a.zip"), str(tmp_path / "out"))


def test_damaged_content_is_noticed(tmp_path: Path) -> None:
    archive = a_zip(tmp_path / "a.zip", {"x": "content " * 100})
    data = bytearray(Path(archive).read_bytes())
    data[40] ^= 0xFF
    Path(archive).write_bytes(data)
    with pytest.raises(DeployError, match="damaged"):
        unpack(archive, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("MAX_ENTRIES", 2, "3 entries"),
        ("MAX_UNPACKED_BYTES", 10_000, "unpacks to"),
        ("RATIO_FREE_BYTES", 100, "times its size"),
    ],
)
def test_bounds_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, reason: str) -> None:
    monkeypatch.setattr(archives, limit, value)
    monkeypatch.setattr(archives, "MAX_RATIO", 5)
    archive = a_zip(tmp_path / "a.zip", {"x": "0" * 50_000, "y": "", "z": ""})
    with pytest.raises(DeployError, match=reason):
        unpack(archive, str(tmp_path / "out"))


def test_a_size_that_lies_is_noticed(tmp_path: Path) -> None:
    archive = Path(a_zip(tmp_path / "a.zip", {"x": "0" * 5000}))
    size = (5000).to_bytes(4, "little")
    archive.write_bytes(archive.read_bytes().replace(size, (50).to_bytes(4, "little")))
    with pytest.raises(DeployError):
        unpack(str(archive), str(tmp_path / "out"))


def test_the_executable_bit_stays_and_nobody_else_reads(tmp_path: Path) -> None:
    archive = a_zip(tmp_path / "a.zip", {"run.sh": "x", "data": "y"}, {"run.sh": 0o100777, "data": 0o100644})
    unpack(archive, str(tmp_path / "out"))
    assert stat.S_IMODE((tmp_path / "out" / "run.sh").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "out" / "data").stat().st_mode) == 0o600


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("x", "1")
    data = bytearray(buffer.getvalue())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DeployError, match="encrypted"):
        unpack(str(tmp_path / "a.zip"), str(tmp_path / "out"))


@pytest.mark.parametrize(("limit", "value"), [("MAX_LIST_BYTES", 100), ("MAX_ENTRIES", 4)])
def test_a_list_of_entries_too_long_is_not_even_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    archive = a_zip(tmp_path / "a.zip", {f"file{number}.py": "" for number in range(5)})
    monkeypatch.setattr(archives, limit, value)
    monkeypatch.setattr(zipfile.ZipFile, "infolist", lambda _: pytest.fail("it was read"))
    with pytest.raises(DeployError, match="5 entries"):
        unpack(archive, str(tmp_path / "out"))
