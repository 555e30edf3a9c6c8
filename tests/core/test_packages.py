"""The `pip` field: a virtual environment per distinct list, made once, and what pip says when it fails."""

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from servd.exceptions import DeployError
from servd.ground.clock import SystemClock
from servd.replica.code import packages
from servd.replica.code.environment import apply_environment
from servd.wire.build_messages import BuildOrder
from tests.wheels import a_wheel


@pytest.fixture(autouse=True)
def _same_process_afterwards() -> Iterator[None]:
    """An environment is the process's: take it back."""
    path, cwd, variables = sys.path[:], os.getcwd(), dict(os.environ)
    told = sys.executable, sys.prefix, sys.exec_prefix
    yield
    sys.path[:] = path
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.executable, sys.prefix, sys.exec_prefix = told


class FakePip:
    """Notes what it is told; fails at one word."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.said: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        assert os.path.exists(command[0])
        words = [word for word in command[3:] if word not in ("--no-input", "--disable-pip-version-check")]
        self.said.append(words)
        failed = words[0] == self.fails_at
        text = "a 1 requires b, which is not installed" if failed else ""
        return subprocess.CompletedProcess(command, int(failed), text)


def made(pip: Any, folder: Path) -> packages.VirtualEnvironment | None:
    deadline = SystemClock().now() + 20
    return packages.virtual_environment(pip, str(folder), str(folder), deadline=deadline, clock=SystemClock())


def home(pip: Any, folder: Path) -> Path:
    found = made(pip, folder)
    assert found is not None
    return Path(found.home)


def an_order(folder: Path, pip: Any) -> BuildOrder:
    return BuildOrder(
        "f1", "b1", "shop", "m:app", {}, {"pip": pip}, start_dir=str(folder), state_dir=str(folder / "state")
    )


def test_a_list_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip()
    monkeypatch.setattr(packages.subprocess, "run", pip)
    first = home(["a", "b", "a"], tmp_path)
    assert (first / "requirements.txt").read_text() == "a\nb\n"
    assert home({"packages": ["a", "b"]}, tmp_path) == first
    assert [words[0] for words in pip.said] == ["install"]
    assert home(["b", "a"], tmp_path) != first
    assert made([], tmp_path) is made(None, tmp_path) is made(["# nothing"], tmp_path) is None


def test_an_environment_is_on_disk_before_it_counts_as_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    was_whole: list[bool] = []
    monkeypatch.setattr(packages.subprocess, "run", FakePip())
    monkeypatch.setattr(packages, "sync_tree", lambda path: was_whole.append((Path(path) / "servd-complete").exists()))
    assert (home(["a"], tmp_path) / "servd-complete").exists()
    assert was_whole == [False]


def test_two_builds_at_once_install_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip, together = FakePip(), threading.Barrier(4)
    monkeypatch.setattr(packages.subprocess, "run", pip)

    def build(_: int) -> Path:
        together.wait()
        return home(["a"], tmp_path)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(build, range(4)))) == 1
    assert len(pip.said) == 1


def test_what_a_killed_build_left_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip()
    monkeypatch.setattr(packages.subprocess, "run", pip)
    first = home(["a"], tmp_path)
    (first / "servd-complete").unlink()
    (first / "half").touch()
    assert home(["a"], tmp_path) == first
    assert not (first / "half").exists()
    assert len(pip.said) == 2


def test_another_pip_and_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip()
    monkeypatch.setattr(packages.subprocess, "run", pip)
    there = home({"packages": ["a"], "pip_version": "==23.0", "pip_check": True}, tmp_path)
    assert pip.said == [
        ["install", "--force-reinstall", "pip==23.0"],
        ["install", "-r", str(there / "requirements.txt")],
        ["check"],
    ]


def test_a_check_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.subprocess, "run", FakePip("check"))
    with pytest.raises(DeployError, match="`pip check` failed:\na 1 requires b"):
        made({"packages": ["a"], "pip_check": True}, tmp_path)
    assert not [entry for entry in (tmp_path / "code").iterdir() if entry.is_dir()]


@pytest.mark.slow
def test_the_environment_sees_its_packages_and_servds(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    a_wheel(wheels, "firstone", "import secondone, pydantic\n\ndef main(): print('ran')\n", requires="secondone",
            script="first-one")  # fmt: skip
    a_wheel(wheels, "secondone", "VALUE = 2\n")
    pip = ["--no-index", f"--find-links {wheels}", "firstone  # comment", "pydantic"]
    apply_environment(an_order(tmp_path, pip))
    there = Path(os.environ["VIRTUAL_ENV"])
    assert importlib.import_module("firstone").secondone.VALUE == 2
    # pydantic is servd's: it was there already
    assert not list(there.glob("lib/*/site-packages/pydantic*"))
    code = "import firstone, servd, sys; print(firstone.__file__, sys.prefix)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said == [str(Path(sys.path[1]) / "firstone.py"), str(there)]
    assert subprocess.run(["first-one"], capture_output=True, text=True, check=True).stdout == "ran\n"
    # kept: nothing is asked for again
    for wheel in wheels.iterdir():
        wheel.unlink()
    apply_environment(an_order(tmp_path, {"packages": pip}))
    assert os.environ["VIRTUAL_ENV"] == str(there)


@pytest.mark.long
def test_what_pip_says_is_told_and_the_next_try_is_a_new_one(tmp_path: Path) -> None:
    pip = ["--no-index", f"--find-links {tmp_path / 'wheels'}", "notyet"]
    (tmp_path / "wheels").mkdir()
    with pytest.raises(DeployError, match="notyet") as caught:
        apply_environment(an_order(tmp_path, pip))
    assert str(caught.value).startswith("runtime_env setup failed: pip: `pip install` failed:")
    assert not [entry for entry in (tmp_path / "state" / "code").iterdir() if entry.is_dir()]
    a_wheel(tmp_path / "wheels", "notyet", "VALUE = 1")
    apply_environment(an_order(tmp_path, pip))
    assert importlib.import_module("notyet").VALUE == 1


def test_packages_that_cannot_take_effect_are_named(tmp_path: Path) -> None:
    environment = packages.VirtualEnvironment(str(tmp_path))
    folder = Path(environment.packages)
    (folder / "pytest").mkdir(parents=True)
    (folder / "pytest" / "__init__.py").touch()
    (folder / "unheard_of.py").touch()
    assert environment.shadowed() == ["pytest"]


def test_installing_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(command: list[str], *, timeout: float, **_: Any) -> None:
        assert timeout < 21
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(packages.subprocess, "run", slow)
    with pytest.raises(DeployError, match="setup_timeout_seconds"):
        made(["a"], tmp_path)
