"""Private directories: made, checked, never taken from somebody."""

import os
import pwd
import stat
from pathlib import Path

import pytest

from servd.daemon.launch import log_out_notice
from servd.exceptions import StateError
from servd.ground.settings import make_private_dir


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_directory_is_closed_to_others(tmp_path: Path) -> None:
    make_private_dir(str(tmp_path / "a" / "b"))
    assert mode_of(tmp_path / "a" / "b") == 0o700


@pytest.mark.parametrize("content", [None, "daemon.lock"])
def test_an_empty_one_or_a_daemons_is_closed(tmp_path: Path, content: str | None) -> None:
    tmp_path.chmod(0o755)
    if content:
        (tmp_path / content).touch()
    make_private_dir(str(tmp_path))
    assert mode_of(tmp_path) == 0o700


def test_somebodys_folder_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StateError, match="chmod 700"):
        make_private_dir(str(tmp_path))
    assert mode_of(tmp_path) == 0o755


def test_links_and_files_are_no_directories(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for name, text in (("file", "File exists"), ("link", f"is a link, .* {tmp_path}$")):
        with pytest.raises(StateError, match=text):
            make_private_dir(str(tmp_path / name))


@pytest.mark.parametrize(
    ("place", "lingers", "is_told"), [("runtime", False, True), ("runtime", True, False), ("tmp", False, False)]
)
def test_what_a_log_out_does_is_told_where_it_does_something(
    tmp_path: Path, place: str, lingers: bool, is_told: bool
) -> None:
    if lingers:
        (tmp_path / pwd.getpwuid(os.getuid()).pw_name).touch()
    socket_dir = f"{tmp_path}/{place}/{os.getuid()}/servd-0"
    notice = log_out_notice(socket_dir, runtime_root=f"{tmp_path}/runtime", linger_dir=str(tmp_path))
    assert ("enable-linger" in notice) == is_told
    assert (f"{tmp_path}/runtime/{os.getuid()}" in notice) == is_told
