"""Directories that take no files are told from those that do, without writing one."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servd.ground.places import NEEDED_BYTES, trouble_of

PLENTY: dict[str, Any] = {
    "f_frsize": 4096,
    "f_bfree": 1000,
    "f_bavail": 1000,
    "f_flag": 0,
    "f_files": 2000,
    "f_ffree": 1000,
}


@pytest.mark.parametrize(
    ("found", "is_root", "told"),
    [
        ({}, True, ""),
        ({"f_flag": os.ST_RDONLY}, True, "the log directory /x is read-only"),
        ({"f_bfree": 3, "f_bavail": 3}, True, "the log directory /x is full"),
        ({"f_bavail": 0}, True, ""),
        ({"f_bavail": 0}, False, "the log directory /x is full"),
        ({"f_bfree": NEEDED_BYTES // 4096, "f_bavail": NEEDED_BYTES // 4096}, False, ""),
        ({"f_ffree": 0}, False, "the log directory /x is full: it has no inode left"),
        ({"f_files": 0, "f_ffree": 0}, False, ""),
    ],
)
def test_what_is_wrong_with_a_directory(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, int], is_root: bool, told: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**{**PLENTY, **found}))
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    assert trouble_of("log directory", "/x") == told


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    assert trouble_of("state directory", str(tmp_path)) == ""
    gone = str(tmp_path / "gone")
    assert (
        trouble_of("state directory", gone) == f"the state directory {gone} cannot be used: No such file or directory"
    )
