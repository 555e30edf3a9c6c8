"""What `make wheel` builds, in an empty environment: the quick start works, and a foreign package `servd` is named."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import servd
import servd_entry
from servd.ground.edition import files_at
from servd.ground.package import DISTRIBUTION, PACKAGE_DIR, VERSION
from tests.ports import free_port
from tests.system.running_daemon import eventually
from tests.wheels import a_wheel, built_wheel

ROOT = Path(__file__).parents[2]
HELLO = """
from servd import deployment

@deployment(num_replicas=2)
class Hello:
    async def __call__(self, request):
        return f"Hello, {request.query_params.get('name', 'world')}!"

app = Hello.bind()
"""


def test_name_and_version_stand_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["name"] == DISTRIBUTION
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "servd.ground.package.VERSION"}
    assert servd.__version__ == VERSION
    readme = (ROOT / "README.md").read_text()
    assert f"dist/{DISTRIBUTION.replace('-', '_')}-{VERSION}-py3-none-any.whl" in readme
    assert DISTRIBUTION in servd_entry._sentence()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("servd.py", "__version__ = '1.0.0'"),
        ("servd/__init__.py", "from servd.daemonizer import Daemon"),
        ("servd/__init__.py", "print 'old'"),
        ("servd/nothing", ""),
    ],
    ids=["a module", "a package", "of old", "a folder"],
)
def test_another_package_of_the_name_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    # without the path entry of the editable install: whoever is first on the path is there alone
    shutil.copy(servd_entry.__file__, tmp_path)
    code = "import servd_entry; servd_entry.main()"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "another package of that name" in done.stderr
    assert "pip uninstall servd" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def home(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with nothing but the wheel, and what it asks for."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    pip = [home / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel]
    subprocess.run(pip, check=True, capture_output=True, timeout=600)
    yield home
    shutil.rmtree(home)


@pytest.mark.long
def test_it_has_every_file_that_a_daemon_runs_from(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        there = {name.removeprefix("servd/") for name in archive.namelist()}
    assert set(files_at(PACKAGE_DIR)) - there == set()


@pytest.mark.long
def test_the_quick_start_works_in_an_empty_environment(home: Path, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(HELLO)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SERVD", "VIRTUAL"))}
    environment = {**clean, "SERVD_STATE_DIR": str(tmp_path / "state"), "SERVD_DASHBOARD_PORT": "0"}
    port = free_port()

    def command(*words: str) -> str:
        done = subprocess.run(
            [home / "bin" / "servd", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert command("version") == f"servd {VERSION}\n"
    command("start", "--detach", "--http-port", str(port), "--admin-port", str(free_port()))
    try:
        command("deploy", "hello:app", "--wait")
        get = [
            "-c",
            f"from urllib.request import urlopen as u; print(u('http://127.0.0.1:{port}/?name=Ada').read().decode())",
        ]
        answer = subprocess.run([home / "bin" / "python", *get], capture_output=True, text=True)
        assert answer.stdout == "Hello, Ada!\n", answer.stderr
        code = "from ray import serve; print(serve.__name__)"
        assert command("exec", str(home / "bin" / "python"), "-c", code) == "servd\n"
    finally:
        command("stop")
    eventually(lambda: not (tmp_path / "state" / "control.sock").exists())


@pytest.mark.long
def test_a_package_that_takes_the_files_over_is_named(home: Path, tmp_path: Path) -> None:
    foreign = a_wheel(tmp_path, "servd", {"servd/__init__.py": "__version__ = '1.0.0'\n"})
    pip = [home / "bin" / "python", "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-index", foreign], check=True, capture_output=True)
    done = subprocess.run([home / "bin" / "servd", "version"], capture_output=True, text=True)
    assert (done.returncode, "another package of that name" in done.stderr) == (1, True)
