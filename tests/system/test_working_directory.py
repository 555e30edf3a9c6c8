"""What an application writes to its current directory is its own."""

import os
from pathlib import Path

import pytest

from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow

APP = """
import os
from servd import deployment

@deployment(num_replicas=2)
class Writer:
    def __call__(self, request):
        name = request.query_params["name"]
        with open("data.txt", "a") as file:
            file.write(name)
        with open(os.path.join(os.path.dirname(__file__), name), "w") as file:
            file.write("new")
        return sorted(name for name in os.listdir() if not name.startswith("__"))

app = Writer.bind()
"""


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.*") if path.is_file()}


def written(daemon: RunningDaemon, name: str, prefix: str = "/") -> str:
    status, text = daemon.get(f"{prefix}?name={name}")
    assert status == 200, text
    return text.replace(" ", "")


def test_writes_get_into_no_snapshot_and_no_other_application(tmp_path: Path) -> None:
    code = tmp_path / "mine"
    code.mkdir()
    (code / "writer.py").write_text(APP)
    (code / "data.txt").write_text("data")
    with a_daemon(settings_in(tmp_path)) as daemon:
        state = Path(daemon.settings.state_dir)
        env = {"working_dir": str(code)}
        apps = [
            {"name": name, "route_prefix": f"/{name}", "import_path": "writer:app", "runtime_env": env} for name in "ab"
        ]
        assert daemon.ask("PUT", "/api/serve/applications/", {"applications": apps})[0] == 200
        eventually(lambda: {app["status"] for app in daemon.status()["applications"].values()} == {"RUNNING"})
        before = content(state / "code")
        assert written(daemon, "one", "/a") == '["data.txt","one","writer.py"]'
        assert written(daemon, "two", "/a") == '["data.txt","one","two","writer.py"]'
        assert written(daemon, "three", "/b") == '["data.txt","three","writer.py"]'
        assert content(state / "code") == before
        assert (code / "data.txt").read_text() == "data"
        assert len(os.listdir(state / "work")) == 2
        assert daemon.ask("PUT", "/api/serve/applications/", {"applications": apps[1:]})[0] == 200
        eventually(lambda: len(os.listdir(state / "work")) == 1)
        assert written(daemon, "four", "/b") == '["data.txt","four","three","writer.py"]'
        for pid in daemon.pids("fork server"):
            os.kill(pid, 9)
        assert written(daemon, "five", "/b") == '["data.txt","five","four","three","writer.py"]'
        assert daemon.ask("DELETE", "/api/serve/applications/")[0] == 200
        eventually(lambda: not os.listdir(state / "work"))
