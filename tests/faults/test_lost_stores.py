"""A controller dies, and what it had written down is lost: what lives is adopted all the same, and the goal goes on."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from servd.controller.fact_store import STORE_NAME as FACTS
from servd.controller.goal_store import STORE_NAME as GOAL
from servd.daemon.launch import daemon_command
from servd.daemon.state_lock import running_pid
from tests.faults.scenarios import a_stage
from tests.faults.stage import Stage
from tests.system.running_daemon import eventually

pytestmark = pytest.mark.slow
KINDS = ("proxy", "fork server", "replica")


def facts_gone(stage: Stage) -> None:
    for path in Path(stage.daemon.settings.socket_dir).glob(f"{FACTS}*"):
        path.unlink()


def facts_damaged(stage: Stage) -> None:
    for path in Path(stage.daemon.settings.socket_dir).glob(f"{FACTS}*"):
        path.write_bytes(os.urandom(8192))


def state_gone(stage: Stage) -> None:
    state = Path(stage.daemon.settings.state_dir)
    state.rename(state.with_name("away"))


def state_remade(stage: Stage) -> None:
    state_gone(stage)
    Path(stage.daemon.settings.state_dir).mkdir(mode=0o700)


def goal_damaged(stage: Stage) -> None:
    state = Path(stage.daemon.settings.state_dir)
    shutil.copytree(state, state.with_name("away"))
    (state / GOAL).write_bytes(b"no goal")


def all_gone(stage: Stage) -> None:
    state_gone(stage)
    facts_gone(stage)


@pytest.mark.parametrize(
    "loss",
    [
        all_gone,
        *(pytest.param(loss, marks=pytest.mark.long) for loss in (facts_gone, facts_damaged)),
        *(pytest.param(loss, marks=pytest.mark.long) for loss in (state_gone, state_remade, goal_damaged)),
    ],
)
def test_all_that_lives_is_adopted_and_no_request_fails(tmp_path: Path, loss: Callable[[Stage], None]) -> None:
    with a_stage(tmp_path, replicas=2, proxies=2) as stage:
        daemon = stage.daemon
        before = {title: sorted(daemon.pids(title)) for title in KINDS}
        load = stage.load("/", post_pause_s=0.05)
        try:
            old = stage.controller()
            os.kill(old, signal.SIGSTOP)
            loss(stage)
            os.kill(old, signal.SIGKILL)
            eventually(lambda: stage.says(lambda status: status["controller_info"]["pid"] != old))
            stage.wait()
            assert {title: sorted(daemon.pids(title)) for title in KINDS} == before
            is_lost = Path(daemon.settings.state_dir).with_name("away").exists()
            assert ("goal store" in daemon.status()["notice"]) is is_lost
            if is_lost:
                refuses_and_exports(stage)
        except BaseException:
            load.kill()
            raise
        assert load.stop().failures == []
        # what it adopted it also commands
        stage.kill_and_replace("replica", stage.idle())
        assert sorted(daemon.pids("fork server")) == before["fork server"]
        if is_lost:
            takes_what_is_put_back(stage)


def refuses_and_exports(stage: Stage) -> None:
    settings = stage.daemon.settings
    assert running_pid(settings.state_dir) == stage.daemon.process.pid
    second = subprocess.run(daemon_command(settings), capture_output=True, text=True, timeout=30)
    assert "already runs" in second.stderr
    code, text = stage.daemon.ask("PUT", "/api/serve/applications/", {"applications": [stage.document(version=9)]})
    assert code == 507
    assert "`servd config`" in str(text)
    known = stage.daemon.ask("GET", "/api/serve/applications/")[1]["applications"]["work"]["deployed_app_config"]
    assert known["args"] == stage.document(version=stage.version)["args"]


def takes_what_is_put_back(stage: Stage) -> None:
    state = Path(stage.daemon.settings.state_dir)
    # processes that live make their folders of logs anew
    eventually(lambda: is_put_back(state))
    eventually(lambda: not stage.daemon.status()["notice"], 5.0)
    stage.deploy(version=stage.version + 1)
    assert len(stage.daemon.ask("GET", "/api/servd/v1/revisions")[1]["revisions"]) == 2


def is_put_back(state: Path) -> bool:
    shutil.rmtree(state, ignore_errors=True)
    try:
        state.with_name("away").rename(state)
    except OSError:
        return False
    return True
