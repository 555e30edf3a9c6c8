"""The example that preloads, and what becomes of its template: shared memory, handles, deaths, counts."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ROWS = 40_000
TABLE_KB = ROWS * 128 * 4 // 1024
CALLER = """
import os
from servd import deployment

@deployment
class Other:
    def __call__(self, number):
        return number + 1

@deployment(preload=True, num_replicas=2)
class Caller:
    def __init__(self, other):
        self.other, self.made_by = other, os.getpid()
    async def __call__(self):
        return {"answer": await self.other.remote(2), "made_by": self.made_by}

app = Caller.bind(Other.bind())
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("preload")
    (directory / "calls").mkdir()
    (directory / "calls" / "calls.py").write_text(CALLER)
    vectors = {
        "name": "vectors",
        "route_prefix": "/vectors",
        "import_path": "vectors:build",
        "args": {"rows": ROWS},
        "runtime_env": {"working_dir": str(ROOT / "examples" / "vectors")},
    }
    calls = {
        "name": "calls",
        "route_prefix": "/calls",
        "import_path": "calls:app",
        "runtime_env": {"working_dir": str(directory / "calls")},
    }
    with a_daemon(settings_in(directory)) as running:
        document = {"applications": [vectors, calls]}
        assert running.ask("PUT", "/api/serve/applications/", document) == (200, "")
        eventually(lambda: all(app["status"] == "RUNNING" for app in running.status()["applications"].values()), 60.0)
        yield running


def pss_kb(pid: int) -> int:
    """Memory of a process, shared pages divided among those who share them, KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def test_all_replicas_share_one_table(daemon: RunningDaemon) -> None:
    [template] = daemon.pids("template vectors_Neighbours")
    replicas = daemon.pids("replica vectors_Neighbours")
    assert len(replicas) == 8
    status, text = daemon.get("/vectors?row=7")
    assert (status, json.loads(text)["row"], json.loads(text)["nearest"][0]) == (200, 7, 7)
    # eight tables of their own would be 8 * TABLE_KB
    together = sum(pss_kb(pid) for pid in (template, *replicas))
    assert together < 9 * 12_000 + 3 * TABLE_KB


def test_a_handle_of_the_constructor_works_in_every_replica(daemon: RunningDaemon) -> None:
    [template] = daemon.pids("template calls_Caller")
    for _ in range(8):
        status, text = daemon.get("/calls")
        assert (status, json.loads(text)) == (200, {"answer": 3, "made_by": template})


def test_a_killed_template_is_replaced_and_serves_growth(daemon: RunningDaemon) -> None:
    [template] = daemon.pids("template calls_Caller")
    before = set(daemon.pids("replica calls_Caller"))
    os.kill(template, signal.SIGKILL)
    [successor] = eventually(lambda: [pid for pid in daemon.pids("template calls_Caller") if pid != template])
    assert set(daemon.pids("replica calls_Caller")) == before
    assert daemon.get("/calls")[0] == 200
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    fresh = eventually(lambda: set(daemon.pids("replica calls_Caller")) - before)
    parent = Path(f"/proc/{min(fresh)}/stat").read_text().rpartition(")")[2].split()[1]
    assert int(parent) == successor
    eventually(lambda: daemon.status()["applications"]["calls"]["deployments"]["calls_Caller"]["status"] == "HEALTHY")
