"""Updates that fail leave the others serving, cost no request and say why."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.scenarios import a_stage
from tests.faults.stage import Stage
from tests.system.running_daemon import eventually

pytestmark = pytest.mark.slow


def put(stage: Stage, **changes: Any) -> None:
    """Send the stage's document with something changed that it would not send itself."""
    document = {**stage.document(version=stage.version), **changes}
    code, text = stage.daemon.ask("PUT", "/api/serve/applications/", {"applications": [document]})
    assert code == 200, text


def message(stage: Stage) -> str:
    return str(stage.work()["message"])


@pytest.mark.long
def test_a_config_that_raises_takes_one_replica_and_a_good_one_heals(tmp_path: Path) -> None:
    with a_stage(tmp_path, replicas=3) as stage:
        before = {replica["pid"] for replica in stage.running()}
        load = stage.load("/?hold=0.02")
        bad = [{"name": "Work", "num_replicas": 3, "user_config": {"no": "colour"}}]
        put(stage, deployments=bad)
        eventually(lambda: "KeyError: 'colour'" in message(stage))
        eventually(lambda: "failed to start" in message(stage))
        left = {replica["pid"] for replica in stage.running()}
        assert len(left) == 2
        assert left < before
        stage.deploy(colour=7)
        assert left < {replica["pid"] for replica in stage.running()}
        counts = load.stop()
        assert counts.failures == []


def test_code_that_does_not_start_leaves_the_old_one_serving(tmp_path: Path) -> None:
    with a_stage(tmp_path, replicas=1) as stage:
        before = [replica["pid"] for replica in stage.running()]
        load = stage.load("/")
        # there is no such directory, so the constructor cannot open its journal
        put(stage, args={"version": 1, "journal": str(tmp_path / "no" / "journal"), "graph": False})
        eventually(lambda: "FileNotFoundError" in message(stage))
        assert [replica["pid"] for replica in stage.running()] == before
        stage.deploy()
        assert [replica["pid"] for replica in stage.running()] == before
        counts = load.stop()
        assert counts.failures == []
