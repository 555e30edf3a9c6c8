"""A request that waits for a thread which the fork left behind is answered all the same, by a spawned replica."""

from pathlib import Path

import pytest

from tests.system.running_daemon import a_daemon, settings_in

pytestmark = pytest.mark.long

APP = """
import polars as pl
from servd import deployment
from servd.replica.native import fork_safety, lost_waits

# a wrong claim, and little patience
fork_safety.SURVIVE["_polars_runtime"] = "not so"
lost_waits.LOOK_S, lost_waits.SURE_S = 0.1, 0.3

def total():
    return pl.DataFrame({"a": [1, 2, 3]}).lazy().filter(pl.col("a") > 1).select(pl.col("a").sum()).collect().item()

total()

@deployment
class Model:
    def __call__(self):
        return total()

app = Model.bind()
"""


def test_the_request_is_answered_by_a_spawned_replica_and_the_status_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(APP)
    with a_daemon(settings_in(tmp_path)) as daemon:
        daemon.deploy(tmp_path, "model:app")
        assert daemon.get("/") == (200, "5")
        daemon.wait_until_running()
        deployment = daemon.status()["applications"]["default"]["deployments"]["default_Model"]
        [dead] = deployment["recent_dead_replicas"]
        assert dead["reason"].startswith("waits in _polars_runtime")
        assert "in total\n" in dead["stack"]
        name = dead["replica_id"]
        assert deployment["message"] == f"replicas are spawned until the next version: replica {name} {dead['reason']}"
        assert "called in model.py:" in dead["reason"]
        assert daemon.get("/")[0] == 200
