"""Directories that take no files are told from those that do, without writing one."""

import asyncio
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servd.controller.shown.advice import chosen_log_directories
from servd.ground import places
from servd.ground.ids import DeploymentID
from servd.ground.places import NEEDED_BYTES, Places, trouble_of
from tests.core.build import some_settings
from tests.fakes import wait_until

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


def a_target(name: str, logs_dir: str | None) -> Any:
    return SimpleNamespace(id=DeploymentID(name, "shop"), options={"logging_config": {"logs_dir": logs_dir}})


def test_directories_for_logs_are_called_after_the_deployments_that_chose_them() -> None:
    targets = [a_target(name, "/x") for name in "edcba"]
    assert chosen_log_directories([*targets, a_target("f", "/y"), a_target("g", None)]) == {
        "/x": "log directory of shop_a, shop_b, shop_c and 2 more",
        "/y": "log directory of shop_f",
    }


async def test_a_full_directory_that_an_application_chose_is_told_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def trouble(what: str, directory: str) -> str:
        if directory != str(tmp_path / "chosen"):
            return ""
        # as of a host that does not answer
        assert answers.wait(5.0)
        return f"the {what} is full"

    monkeypatch.setattr(places, "trouble_of", trouble)
    home = str(tmp_path)
    looks = Places(asyncio.get_running_loop(), some_settings(state_dir=home, socket_dir=home))
    # the other one will be made by the first replica
    chosen = {str(tmp_path / "chosen"): "log directory of shop_a", str(tmp_path / "later"): "log directory of shop_b"}
    (tmp_path / "chosen").mkdir()
    assert looks.look(chosen) == looks.look(chosen) == []
    answers.set()
    await wait_until(lambda: bool(looks.look(chosen)))
    assert looks.look(chosen) == ["the log directory of shop_a is full"]
    assert looks.look({}) == []
