"""The `pip` field: what pip is asked to do, in which order, and that it is asked once."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from servd.clock import SystemClock
from servd.exceptions import DeployError
from servd.replica import packages


class FakePip:
    """Notes what it is told; fails at one word."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.said: list[tuple[list[str], str]] = []

    def __call__(self, command: list[str], *, env: dict[str, str], **_: Any) -> "subprocess.CompletedProcess[str]":
        words = [word for word in command[3:] if word not in ("--no-input", "--disable-pip-version-check")]
        self.said.append((words, env.get("PYTHONPATH", "")))
        if words[0] == "install":
            os.makedirs(words[words.index("--target") + 1], exist_ok=True)
        failed = words[0] == self.fails_at
        return subprocess.CompletedProcess(
            command, int(failed), "a 1 requires b, which is not installed" if failed else ""
        )


def install(pip: Any, folder: Path) -> list[str]:
    deadline = SystemClock().now() + 20
    return packages.installed_packages(pip, str(folder), str(folder), deadline=deadline, clock=SystemClock())


def test_a_list_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip()
    monkeypatch.setattr(packages.subprocess, "run", pip)
    first = install(["a", "b", "a"], tmp_path)
    assert install({"packages": ["a", "b"]}, tmp_path) == first
    assert [words[0] for words, _ in pip.said] == ["install"]
    assert install(["b", "a"], tmp_path) != first
    assert install([], tmp_path) == install(None, tmp_path) == []


def test_another_pip_and_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip()
    monkeypatch.setattr(packages.subprocess, "run", pip)
    (content,) = install({"packages": ["a"], "pip_version": "==23.0", "pip_check": True}, tmp_path)
    (own, path_0), (wanted, path_1), (check, path_2) = pip.said
    assert (own[0], own[-1]) == ("install", "pip==23.0")
    # the wanted pip installs and checks
    assert wanted[0] == "install"
    assert path_1 == own[own.index("--target") + 1] != path_0
    assert check == ["check"]
    assert path_2.split(os.pathsep)[1:] == [path_1]
    assert Path(content).is_dir()


def test_a_check_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.subprocess, "run", FakePip("check"))
    with pytest.raises(DeployError, match="`pip check` failed:\na 1 requires b"):
        install({"packages": ["a"], "pip_check": True}, tmp_path)
