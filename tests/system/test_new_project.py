"""`servd init`: what it writes works at once, its test, its config and its image's command."""

import ast
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from servd.commands.new_project import write_project
from servd.exceptions import ConfigError
from servd.ground.package import DISTRIBUTION, VERSION
from tests.ports import free_port
from tests.system.running_daemon import eventually


@pytest.mark.parametrize("name", ["my app", "1app", "ä", "x" * 65])
def test_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a project: give up to 64"):
        write_project(str(tmp_path / name))


def test_a_folder_that_is_in_use_or_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ConfigError, match="holds files already: give the name of a new folder"):
        write_project(str(tmp_path / "used"))
    with pytest.raises(ConfigError, match=r"cannot write .*: Not a directory"):
        write_project(str(tmp_path / "used" / "file" / "shop"))


def test_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "Fruit-Shop.2"
    assert sorted(write_project(str(folder))) == sorted(path.name for path in folder.iterdir())
    assert (folder / "requirements.txt").read_text() == f"{DISTRIBUTION}=={VERSION}\n"
    assert "name: Fruit-Shop.2\n" in (folder / "serve.yaml").read_text()
    assert "docker build -t fruit-shop.2 ." in (folder / "Dockerfile").read_text()


@pytest.mark.long
def test_its_test_passes(tmp_path: Path) -> None:
    write_project(str(tmp_path / "shop"))
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path / "shop", env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "4 passed" in done.stdout) == (0, True), done.stdout + done.stderr


@pytest.mark.long
def test_its_image_serves_until_sigterm_and_fails_where_the_code_does(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    write_project(str(folder))
    (line,) = [line for line in (folder / "Dockerfile").read_text().splitlines() if line.startswith("CMD ")]
    port = free_port()
    command = [sys.executable, "-m", *ast.literal_eval(line.removeprefix("CMD ")), "--port", str(port)]
    environment = {**os.environ, "SERVD_STATE_DIR": str(tmp_path / "state"), "SERVD_DASHBOARD_PORT": "0"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert eventually(lambda: asked(f"http://127.0.0.1:{port}/score?text=great")) == {"score": 2}
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/-/healthz").status == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    (folder / "main.py").write_text("import nothing_of_that_name\n")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "nothing_of_that_name" in done.stderr) == (1, True), done.stderr


def asked(url: str) -> object:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None
