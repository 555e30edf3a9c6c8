"""What a turn costs follows from what there is to decide, not from how many deployments share the host."""

from typing import Any

import pytest

from servd.controller.plan import events
from servd.controller.plan.facts import ForkServerTable, ReplicaFact, ReplicaTable
from servd.controller.plan.observed import Observed
from servd.controller.shown.status import instance_view
from servd.wire.messages import REPLICA
from tests.core.build import IDENTITY, World, a_build, a_goal, an_app, report

ZERO = {"autoscaling_config": {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}}


def crowded(deployments: int, **options: Any) -> World:
    world = World(a_goal(an_app()))
    names = [f"D{number}" for number in range(deployments)]
    told: dict[str, Any] = dict.fromkeys(names, options)
    world.builds["app"] = a_build(*names, **told)
    return world.run()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry each time that somebody goes through all replicas, or all fork servers."""
    found: list[int] = []

    def counted(table: dict[str, Any]) -> Any:
        found.append(len(table))
        return dict.values(table)

    for table in (ReplicaTable, ForkServerTable):
        monkeypatch.setattr(table, "values", counted, raising=False)
    return found


def test_all_replicas_are_gone_through_as_often_for_many_deployments_as_for_two(looks: list[int]) -> None:
    counts = []
    for deployments in (2, 30):
        world = crowded(deployments, num_replicas=2)
        looks.clear()
        world.turn(events.Exited(REPLICA, world.replicas("D1")[0].replica_id, -9))
        counts.append(len(looks))
    assert counts[0] == counts[1]


def test_they_are_gone_through_as_often_for_a_view_of_many_applications_as_of_two(looks: list[int]) -> None:
    counts = []
    for apps in (2, 10):
        names = [f"app{number}" for number in range(apps)]
        world = World(a_goal(*(an_app(name) for name in names)))
        world.builds.update(dict.fromkeys(names, a_build("D", "E")))
        world.run(limit=100)
        looks.clear()
        view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=world.now)
        assert len(view.applications) == apps
        counts.append(len(looks))
    assert counts[0] == counts[1]


def test_what_is_at_zero_asks_for_no_replicas_place(monkeypatch: pytest.MonkeyPatch) -> None:
    world = crowded(30, **ZERO)
    monkeypatch.setattr("servd.controller.plan.replica_plan.next_step", None)
    assert not world.turn().actions


def test_a_replica_that_reports_after_a_restart_is_no_reason_to_look_at_the_others() -> None:
    world = crowded(1, num_replicas=5)
    first = world.replicas("D0")[0]
    for waiting, sampled in ((0, {first.replica_id}), (3, {r.replica_id for r in world.replicas("D0")})):
        restored = Observed.restore(world.observed.replicas.values(), 0.0, world.now)
        for other in world.replicas("D0")[1:]:
            restored.apply(report(other), world.now)
        if waiting:
            restored.apply(events.QueueReported("proxy:p", "app_D0", waiting), world.now)
        restored.samples.clear()
        restored.apply(report(first), world.now)
        assert restored.samples.keys() == sampled


def test_the_table_finds_the_replicas_of_each_deployment_oldest_first() -> None:
    world = crowded(3, num_replicas=3)
    victim = world.replicas("D1")[0]
    world.turn(events.Exited(REPLICA, victim.replica_id, -9))
    world.observed.apply(report(world.replicas("D2")[1], ongoing=5), world.now)
    table = world.observed.replicas
    for name in ("D0", "D1", "D2"):
        scanned: list[ReplicaFact] = [fact for fact in table.values() if fact.deployment == name]
        assert table.of("app", name) == scanned
        assert len(scanned) == 3
    assert table.of("app", "D3") == []
    for fact in table.of("app", "D0"):
        assert table.pop(fact.replica_id) == fact
    assert ("app", "D0") not in table.deployments()
    assert table.pop(victim.replica_id, None) is None


def test_the_successor_of_a_dead_replica_is_ordered_first() -> None:
    world = crowded(1, num_replicas=3)
    plan = world.turn(events.Exited(REPLICA, world.replicas("D0")[0].replica_id, -9))
    assert [type(action).__name__ for action in plan.actions] == ["StartReplica", "Publish"]
