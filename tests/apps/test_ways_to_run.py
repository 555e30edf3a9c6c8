"""`run` from a script, from a function, from a notebook cell; and a changed source file that is deployed again."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in, titles

RAY_STYLE = Path(__file__).parent / "ray_style"
SCRIPT = """
import servd.compat.ray
from ray import serve
from helper import greeting

@serve.deployment
class Greeter:
    def greet(self, name):
        return greeting(name) + SUFFIX

SUFFIX = "!"

def main():
    handle = serve.run(Greeter.bind(), name="script", route_prefix=None)
    print(handle.greet.remote("script").result())
    serve.shutdown()

if __name__ == "__main__":
    main()
"""
CELLS = """
import json, servd
namespace = {"__name__": "__main__"}
exec("import servd\\n@servd.deployment\\nclass Cell:\\n    def say(self): return NAME\\nNAME = 'cell'", namespace)
handle = servd.run(namespace["Cell"].bind(), route_prefix=None)
print(handle.say.remote().result())
try:
    import sys
    sys.ps1 = ">>> "
    servd.build(namespace["Cell"].bind())
except RuntimeError as error:
    print("refused")
"""
EDITED = """
from servd import deployment
from part import word

@deployment
def say():
    return word

app = say.bind()
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with a_daemon(settings_in(tmp_path_factory.mktemp("ways"))) as running:
        yield running


def run_python(folder: Path, code: str, state_dir: str) -> str:
    """What a program prints, started in `folder`."""
    (folder / "program.py").write_text(code)
    return run_command([sys.executable, "program.py"], folder, state_dir)


def run_command(command: list[str], folder: Path, state_dir: str) -> str:
    """What a command prints, started in `folder`."""
    removed = ("SERVD_ADDRESS", "RAY_AGENT_ADDRESS", "RAY_DASHBOARD_ADDRESS")
    environment = {key: value for key, value in os.environ.items() if key not in removed}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, "SERVD_STATE_DIR": state_dir},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def helper(folder: Path) -> None:
    (folder / "helper.py").write_text("def greeting(name):\n    return f'hello {name}'\n")


def test_a_script_without_a_daemon_brings_its_own(tmp_path: Path) -> None:
    helper(tmp_path)
    assert run_python(
        tmp_path, SCRIPT.replace("route_prefix=None", "route_prefix=None, port=0"), str(tmp_path / "s")
    ) == ("hello script!\n")


DETACHED = """
import servd

@servd.deployment
def say(): return "still here"

client = servd.start(detached=True, http_options={"port": 0})
servd.run(say.bind())
print(client.root_url)
"""


SESSION = """
import servd.compat.ray
import os, ray
from ray import serve

@serve.deployment
def say(): return os.environ.get("SAID")

def once(**env):
    assert not ray.is_initialized()
    if not ray.is_initialized():
        ray.init(runtime_env={"env_vars": env})
    handle = serve.run(say.bind(), port=0)
    print(ray.get(handle.remote()), bool(serve.context._global_client))
    ray.shutdown()
    print(serve.status().applications, serve.context._global_client)

once(SAID="first")
once(SAID="second")
"""


@pytest.mark.long
def test_the_end_of_a_session_ends_what_the_program_started(tmp_path: Path) -> None:
    said = run_python(tmp_path, SESSION, str(tmp_path / "s"))
    assert said == "first True\n{} None\nsecond True\n{} None\n"
    assert list(titles(str(tmp_path / "s"))) == []


@pytest.mark.long
def test_the_end_of_a_session_leaves_a_daemon_of_others(daemon: RunningDaemon, tmp_path: Path) -> None:
    code = SESSION.replace("port=0", "name='mine', route_prefix=None").replace('once(SAID="second")', "")
    said = run_python(tmp_path, code, daemon.settings.state_dir)
    assert said.startswith("first True\n{'mine'")
    assert daemon.status()["applications"]["mine"]["status"] == "RUNNING"
    daemon.ask("DELETE", "/api/servd/v1/applications/mine")


FORKED = """
import os, sys
import servd

@servd.deployment
class Counter:
    def __init__(self): self.count = 0
    def add(self): self.count += 1; return self.count

servd.start(http_options={"port": 0})
handle = servd.run(Counter.bind(), route_prefix=None)
one_step = servd.get_app_handle("default")
print(handle.add.remote().result(20), flush=True)
for _ in range(2):
    child = os.fork()
    if child == 0:
        print(handle.add.remote().result(20), one_step.add.remote().result(20), flush=True)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
print(handle.add.remote().result(20), [*servd.status().applications])
"""


def test_children_that_a_program_forks_have_lines_of_their_own_and_end_nothing(tmp_path: Path) -> None:
    assert run_python(tmp_path, FORKED, str(tmp_path / "s")) == "1\n2 3\n4 5\n6 ['default']\n"


@pytest.mark.long
def test_a_detached_daemon_stays(tmp_path: Path) -> None:
    state_dir = str(tmp_path / "s")
    url = run_python(tmp_path, DETACHED, state_dir).strip()
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.read() == b"still here"
    finally:
        run_command([sys.executable, "-m", "servd.cli", "stop"], tmp_path, state_dir)
    assert list(titles(state_dir)) == []


@pytest.mark.long
def test_a_script_with_a_daemon_leaves_it_running(daemon: RunningDaemon, tmp_path: Path) -> None:
    helper(tmp_path)
    assert run_python(tmp_path, SCRIPT, daemon.settings.state_dir) == "hello script!\n"
    assert daemon.status()["applications"] == {}
    assert daemon.process.poll() is None


def test_code_of_a_cell_travels_by_value(daemon: RunningDaemon, tmp_path: Path) -> None:
    assert run_python(tmp_path, CELLS, daemon.settings.state_dir) == "cell\nrefused\n"
    assert list(daemon.status()["applications"]) == ["default"]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        pytest.param(["script_today.py"], '{"a": "b", "c": "d"} RUNNING\n', marks=pytest.mark.long),
        pytest.param(
            ["-W", "ignore", "script_legacy.py"],
            "['Alone_Alone', 'chain_Chain', 'chain_Model', 'chain_Model_1', 'default_DAGDriver', 'default_Model',"
            " 'default_Model_1', 'default_combine'] RUNNING\n",
            marks=pytest.mark.long,
        ),
        (["-m", "shop.main"], "['Shop HEALTHY', 'kiwi HEALTHY', 'mango HEALTHY']\n"),
    ],
)
def test_programs_written_for_ray_serve(daemon: RunningDaemon, program: list[str], said: str) -> None:
    prefix = [sys.executable, "-m", "servd.cli", "exec", sys.executable]
    port = str(daemon.settings.http_port)
    assert run_command([*prefix, *program, port], RAY_STYLE, daemon.settings.state_dir) == said


@pytest.mark.long
def test_an_edited_file_is_a_new_version(daemon: RunningDaemon, tmp_path: Path) -> None:
    (tmp_path / "edited.py").write_text(EDITED)
    (tmp_path / "part.py").write_text("word = 'one'")
    (tmp_path / "other.py").write_text(
        "from servd import deployment\n\n@deployment\ndef pid():\n"
        "    import os\n    return str(os.getpid())\n\napp = pid.bind()\n"
    )
    env = {"working_dir": str(tmp_path)}
    document: dict[str, Any] = {
        "applications": [
            {"name": "edited", "route_prefix": "/edited", "import_path": "edited:app", "runtime_env": env},
            {"name": "other", "route_prefix": "/other", "import_path": "other:app", "runtime_env": env},
        ]
    }
    document["applications"][1]["runtime_env"] = {**env, "excludes": ["part.py"]}
    daemon.ask("DELETE", "/api/serve/deployments/")
    assert daemon.ask("PUT", "/api/serve/applications/", document) == (200, "")
    eventually(lambda: daemon.get("/edited") == (200, "one"))
    eventually(lambda: daemon.get("/other")[0] == 200)
    before = daemon.get("/other")
    (tmp_path / "part.py").write_text("word = 'two'")
    assert daemon.get("/edited") == (200, "one")
    assert daemon.ask("PUT", "/api/serve/applications/", document) == (200, "")
    eventually(lambda: daemon.get("/edited") == (200, "two"))
    # what did not change was not restarted
    assert daemon.get("/other") == before


def test_start_takes_the_options_of_both_eras(daemon: RunningDaemon, tmp_path: Path) -> None:
    code = """
import servd
for options in ({"http_port": 1}, {"http_options": {"middlewares": [1]}}):
    try:
        servd.start(**options)
    except ValueError as error:
        print("refused")
client = servd.start(proxy_location="Disabled", http_options={"root_path": "/root"}, dedicated_cpu=True)
print(client.http_config.location, client.root_url.rpartition("/")[2])
servd.shutdown()
servd.shutdown()
try:
    client.get_serve_status()
except servd.exceptions.RayServeException:
    print("closed")
"""
    said = run_python(tmp_path, code, str(tmp_path / "state"))
    assert said == "refused\nrefused\nNoServer root\nclosed\n"
