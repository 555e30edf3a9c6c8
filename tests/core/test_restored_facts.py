"""What the next controller makes of its predecessor's facts."""

import pytest

from servd.controller.plan import events
from servd.ground.states import ApplicationStatus, ReplicaState
from servd.wire.messages import REPLICA
from tests.core.build import (
    deployed,
    redeployed,
    report,
    restart_controller,
    starting_world,
    status_of,
    verbs,
)


def test_restored_replicas_recover_and_keep_their_processes() -> None:
    world = deployed(num_replicas=2)
    before = {r.replica_id: r.pid for r in world.replicas()}
    restart_controller(world)
    plan = world.turn()
    assert verbs(plan) == []
    assert {r.state for r in world.replicas()} == {ReplicaState.RECOVERING}
    assert world.observed.published is not None
    assert all(len(t.endpoints) == 2 for t in world.observed.published.targets), "adopted replicas stay routed"
    world.turn(*(world.running(r.start.goal) for r in world.replicas()))
    assert {r.state for r in world.replicas()} == {ReplicaState.RUNNING}
    assert {r.replica_id: r.pid for r in world.replicas()} == before
    assert status_of(world) is ApplicationStatus.RUNNING


def test_what_was_starting_when_the_controller_died_starts_on_and_a_lost_order_is_no_failed_start() -> None:
    world = starting_world()
    [lost] = world.replicas()
    restart_controller(world)
    assert [r.state for r in world.replicas()] == [ReplicaState.STARTING]
    world.turn(events.StartLost(REPLICA, lost.replica_id))
    [successor] = world.replicas()
    assert successor.replica_id != lost.replica_id
    fact = world.observed.deployments[("app", "D")]
    assert (fact.failures, fact.trouble, fact.dead) == (0, "", ())
    assert status_of(world) is ApplicationStatus.DEPLOYING


def test_a_restored_replica_that_stays_silent_is_killed_after_30_s() -> None:
    world = deployed()
    restart_controller(world)
    world.turn()
    assert world.wake_at == pytest.approx(30.0)
    world.now = 30.0
    assert "KillReplica" in verbs(world.turn())


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        ("running", ReplicaState.RUNNING),
        ("updating", ReplicaState.UPDATING),
        ("starting", ReplicaState.STARTING),
        ("draining", ReplicaState.STOPPING),
        ("failed", ReplicaState.STOPPING),
    ],
)
def test_what_the_first_report_makes_of_a_recovering_replica(phase: str, state: ReplicaState) -> None:
    world = restart_controller(deployed())
    [replica] = world.replicas()
    world.turn(report(replica, phase))
    assert world.observed.replicas[replica.replica_id].state is state


def test_a_reconfigure_that_failed_while_no_controller_was_there_counts() -> None:
    world = restart_controller(redeployed(deployed(), user_config={"a": 1}))
    [replica] = world.replicas()
    assert replica.state is ReplicaState.RECOVERING
    plan = world.turn(report(replica, "failed", error="KeyError: 'a'"))
    assert {"DrainReplica", "StartReplica"} <= set(verbs(plan))
    assert world.observed.deployments[("app", "D")].last_error == "KeyError: 'a'"


def test_a_drain_whose_order_was_lost_is_still_bounded() -> None:
    world = redeployed(deployed(), code_version="c2")
    [old, new] = world.replicas()
    assert verbs(world.turn(world.running(new.start.goal))) == ["DrainReplica"]
    restart_controller(world)
    world.turn(report(old, "draining"))
    assert world.wake_at == pytest.approx(20.0)
    world.now = 20.0
    assert "KillReplica" in verbs(world.turn())


def test_a_replica_that_came_up_and_was_sent_sigterm_meanwhile_is_not_taken_for_a_failed_start() -> None:
    world = restart_controller(starting_world())
    [replica] = world.replicas()
    world.turn(report(replica, "draining"), events.Exited(REPLICA, replica.replica_id, 0))
    assert world.observed.deployments[("app", "D")].failures == 0
