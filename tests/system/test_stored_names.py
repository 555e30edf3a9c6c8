"""Applications with names that were stored before there was a rule for names: they are loaded, built and served."""

from pathlib import Path

import pytest

from servd.controller.goal_store import GoalStore
from servd.controller.plan.goal import ApplicationGoal, Goal, HttpGoal
from servd.documents.control_plane import ApplicationDocument
from servd.ground.states import DeployMode
from servd.observability.logs import replica_file
from tests.system.running_daemon import ECHO, a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow

NAMES = ("two\nlines\0", "l" * 700)


def stored(directory: Path, http_port: int) -> None:
    apps = tuple(
        ApplicationGoal(
            ApplicationDocument(
                name,
                "echo:app",
                runtime_env={"working_dir": str(directory)},
                deployments=({"name": "Echo", "num_replicas": 1},),
                route_prefix=f"/{number}",
                route_prefix_given=True,
            ),
            deploy_id=1,
            deployed_at=1.0,
        )
        for number, name in enumerate(NAMES)
    )
    (directory / "state").mkdir(0o700)
    store = GoalStore.open(str(directory / "state"))
    store.save(Goal(1, True, DeployMode.MULTI_APP, HttpGoal("127.0.0.1", http_port), apps), "PUT", 1.0)
    store.close()


def test_stored_names_of_any_kind_are_served(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    settings = settings_in(tmp_path)
    stored(tmp_path, settings.http_port)
    with a_daemon(settings) as daemon:
        eventually(lambda: {a["status"] for a in daemon.status()["applications"].values()} == {"RUNNING"})
        assert [daemon.get(f"/{number}")[0] for number in range(len(NAMES))] == [200] * len(NAMES)
        for name, app in daemon.status()["applications"].items():
            full_name = f"{name}_Echo"
            (replica,) = app["deployments"][full_name]["replicas"]
            assert (tmp_path / "state/logs/serve" / replica_file(full_name, replica["replica_id"])).exists()
