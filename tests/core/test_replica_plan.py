"""States, failed starts, health and ends of replicas."""

import pytest

from servd.controller.plan import actions, events
from servd.controller.plan.restarts import EARLY_DEATH_S, BackOff, failure_threshold, retry_delay_s
from servd.controller.plan.settle import deployment_status
from servd.ground.states import ApplicationStatus, DeploymentStatus, ReplicaState
from servd.wire.messages import REPLICA, ProxyReport
from tests.core.build import (
    a_goal,
    deployed,
    fail_starts,
    message_of,
    redeploy,
    redeployed,
    report,
    restart_controller,
    starting_world,
    status_of,
    verbs,
)


def test_a_dead_replica_is_replaced_and_shows() -> None:
    world = deployed()
    dead = world.replicas()[0].replica_id
    world.turn(events.Exited(REPLICA, dead, -9))
    fact, target = world.observed.deployments[("app", "D")], world.observed.targets[("app", "D")]
    assert deployment_status(target, fact, world.observed) is DeploymentStatus.UNHEALTHY
    assert "signal 9" in fact.trouble
    [successor] = world.replicas()
    assert successor.replica_id != dead
    world.turn(events.Started(REPLICA, successor.replica_id, 7, 1), world.running(successor.start.goal))
    fact = world.observed.deployments[("app", "D")]
    assert deployment_status(target, fact, world.observed) is DeploymentStatus.HEALTHY
    assert status_of(world) is ApplicationStatus.RUNNING


def test_failing_starts_make_the_deployment_unhealthy_and_back_off() -> None:
    world = starting_world()
    fail_starts(world, 2)
    assert status_of(world) is ApplicationStatus.DEPLOYING
    fail_starts(world, 1)
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert "3 times in a row" in world.observed.applications["app"].message
    assert "no mangos" in world.observed.applications["app"].message
    assert world.replicas() == []
    assert 1.0 <= world.wake_at <= 4.0
    world.now = world.wake_at
    assert verbs(world.turn()) == ["StartReplica"]


def test_requests_wait_for_the_successor_of_a_dead_replica_but_not_for_a_failing_start() -> None:
    world = deployed()
    world.turn(events.Exited(REPLICA, world.replicas()[0].replica_id, -9))
    assert world.observed.published is not None
    assert world.observed.published.targets[0].unavailable == ""
    failing = starting_world()
    fail_starts(failing, 3)
    assert failing.observed.published is not None
    assert "no mangos" in failing.observed.published.targets[0].unavailable


def test_a_late_success_heals_the_deployment_but_not_the_application() -> None:
    world = starting_world()
    fail_starts(world, 3)
    world.now = world.wake_at
    world.run()
    fact, target = world.observed.deployments[("app", "D")], world.observed.targets[("app", "D")]
    assert deployment_status(target, fact, world.observed) is DeploymentStatus.HEALTHY
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED


def test_three_failed_checks_replace_the_replica() -> None:
    world = deployed()
    sick = world.replicas()[0]
    plan = world.turn(report(sick, health_failures=3, health_message="out of mangos"))
    assert sorted(verbs(plan)) == ["KillReplica", "StartReplica"]
    assert "out of mangos" in world.observed.deployments[("app", "D")].trouble


def test_a_failed_reconfigure_drains_the_replica_and_counts() -> None:
    world = redeployed(deployed(), user_config={"a": 1})
    [replica] = world.replicas()
    assert replica.state is ReplicaState.UPDATING
    plan = world.turn(report(replica, "failed", error="KeyError: 'a'"))
    assert sorted(verbs(plan)) == ["DrainReplica", "StartReplica"]
    fact = world.observed.deployments[("app", "D")]
    assert (fact.failures, fact.last_error) == (1, "KeyError: 'a'")
    world.turn(report(replica, "failed", error="KeyError: 'a'"))
    assert world.observed.deployments[("app", "D")].failures == 1


def test_a_bad_config_stops_after_one_step_and_a_good_one_heals() -> None:
    world = redeployed(deployed(num_replicas=3), user_config={"a": "bad"})
    [updating] = [r for r in world.replicas() if r.state is ReplicaState.UPDATING]
    world.turn(report(updating, "failed", error="KeyError: 'a'"), events.Exited(REPLICA, updating.replica_id, 0))
    fail_starts(world, 8)
    assert [r.start.goal.user_config for r in world.replicas() if r.state is ReplicaState.RUNNING] == ["", ""]
    assert "failed to start 9 times in a row" in message_of(world)
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    redeploy(world, user_config={"a": "good"}).run()
    assert [r.start.goal.user_config for r in world.replicas()] == ['{"a": "good"}'] * 3
    assert status_of(world) is ApplicationStatus.RUNNING


def test_where_some_run_failing_starts_are_tried_at_the_first_delay() -> None:
    world = deployed(num_replicas=2)
    victim = world.replicas()[0]
    # ready for longer than what would make its death a failed start
    world.observed.change(victim, ready_at=world.now - EARLY_DEATH_S)
    world.turn(events.Exited(REPLICA, victim.replica_id, -9))
    fail_starts(world, 6)
    for _ in range(8):
        assert 1.0 <= world.wake_at - world.now <= 4.0
        world.now = world.wake_at
        [alive] = [r for r in world.replicas() if r.state is ReplicaState.RUNNING]
        world.turn(report(alive))
        fail_starts(world, 1)
    assert "failed to start 14 times in a row" in message_of(world)
    assert "1 of 2 run" in message_of(world)
    assert status_of(world) is ApplicationStatus.RUNNING


def test_a_replica_whose_start_failed_is_stopping_and_is_killed_if_it_does_not_end() -> None:
    world = starting_world()
    [failed] = world.replicas()
    plan = world.turn(report(failed, "failed", error="ValueError: no mangos"))
    assert verbs(plan) == ["StartReplica"]
    assert [r.state for r in world.replicas()] == [ReplicaState.STOPPING, ReplicaState.STARTING]
    world.now = 10.0
    assert verbs(world.turn()) == ["KillReplica"]
    world.turn(events.Exited(REPLICA, failed.replica_id, -9))
    fact = world.observed.deployments[("app", "D")]
    assert (fact.failures, fact.dead[0].reason) == (1, "ValueError: no mangos")


def test_a_replica_that_somebody_sent_sigterm_is_replaced_and_not_blamed() -> None:
    world = deployed()
    [leaving] = world.replicas()
    assert sorted(verbs(world.turn(report(leaving, "draining")))) == ["DrainReplica", "StartReplica"]
    world.turn(events.Exited(REPLICA, leaving.replica_id, 0))
    fact = world.observed.deployments[("app", "D")]
    assert (fact.trouble, fact.failures, fact.dead[0].reason) == ("", 0, "told to stop by a signal")


@pytest.mark.parametrize(
    ("phase", "said", "verdict"),
    [
        ("running", {"health_failures": 2}, ReplicaState.RUNNING),
        ("running", {"health_failures": 3}, ReplicaState.STOPPING),
        ("running", {"applied": "other"}, ReplicaState.UPDATING),
        ("updating", {}, ReplicaState.RUNNING),  # UPDATING begins with the order, not with the news of it
        ("starting", {}, ReplicaState.RUNNING),  # late news
        ("draining", {}, ReplicaState.STOPPING),
    ],
)
def test_what_a_report_of_a_running_replica_does(phase: str, said: dict[str, object], verdict: ReplicaState) -> None:
    world = deployed()
    [replica] = world.replicas()
    world.turn(report(replica, phase, **said))
    assert world.observed.replicas[replica.replica_id].state is verdict


@pytest.mark.parametrize(("wanted", "threshold"), [(0, 3), (1, 3), (7, 21), (50, 100)])
def test_how_many_failed_starts_are_too_many(wanted: int, threshold: int) -> None:
    assert failure_threshold(wanted) == threshold


@pytest.mark.parametrize(
    ("failures", "low", "high"), [(2, 0.0, 0.0), (3, 1.0, 4.0), (4, 2.0, 5.0), (9, 64.0, 67.0), (500, 64.0, 67.0)]
)
def test_the_delay_doubles_beyond_the_threshold_up_to_64_s(failures: int, low: float, high: float) -> None:
    delays = {retry_delay_s(f"app_{n}", failures, 3, BackOff()) for n in range(50)}
    assert low <= min(delays) <= max(delays) <= high
    assert len(delays) == (1 if failures < 3 else 50), "the jitter differs"


def test_news_that_come_twice_or_late_change_nothing() -> None:
    world = deployed()
    [replica] = world.replicas()
    gone = events.Exited(REPLICA, replica.replica_id, -9)
    world.turn(gone)
    before = (world.observed.deployments.copy(), world.observed.replicas.copy())
    assert verbs(world.turn(gone, report(replica), events.Started(REPLICA, replica.replica_id, 5, 1))) == []
    assert (world.observed.deployments, world.observed.replicas) == before


def test_a_drain_that_takes_too_long_ends_in_a_kill() -> None:
    world = deployed()
    world.goal = a_goal(revision=2)
    world.turn()
    world.now = world.wake_at
    assert world.now == pytest.approx(20.0)
    assert verbs(world.turn()) == ["KillReplica"]


def test_a_forked_child_that_never_greets_is_killed_and_its_successor_spawned() -> None:
    world = starting_world()
    [child] = world.replicas()
    world.turn(events.Started(REPLICA, child.replica_id, 7, 1))
    assert world.wake_at == pytest.approx(10.0)
    world.now = 10.0
    assert verbs(world.turn()) == []
    world.now = 12.0
    plan = world.turn()
    assert sorted(verbs(plan)) == ["KillReplica", "StartReplica"]
    [start] = [action for action in plan.actions if isinstance(action, actions.StartReplica)]
    assert start.spawn
    world.turn(events.Exited(REPLICA, child.replica_id, -9))
    fact = world.observed.deployments[("app", "D")]
    assert fact.failures == 0
    assert "said nothing for 12 s" in fact.dead[0].reason


def test_a_forked_child_that_greets_may_construct_for_ever_and_the_message_says_that_it_does() -> None:
    world = starting_world()
    [child] = world.replicas()
    world.turn(events.Started(REPLICA, child.replica_id, 7, 1), report(child, "starting"))
    assert message_of(world) == ""
    world.now = 31.0
    assert "1 replica(s) have been starting for more than 30 s" in message_of(world)
    world.now = 1000.0
    assert [verb for verb in verbs(world.turn()) if "Proxy" not in verb] == []


def test_a_slow_start_is_noted_once_a_period() -> None:
    world = starting_world()
    [child] = world.replicas()
    world.turn(events.Started(REPLICA, child.replica_id, 7, 1), report(child, "starting"))
    notes = world.observed.notes
    for now, count in ((29.0, 0), (30.0, 1), (31.0, 1), (59.0, 1), (60.0, 2)):
        world.now = now
        plan = world.turn()
        assert sum("has been starting for" in note for note in notes) == count
        assert now <= plan.wake_at <= now + 30.0
    world.turn(report(child))
    assert world.observed.slow_noted_at == {}


def test_counters_begin_anew_with_another_controller() -> None:
    world = starting_world()
    fail_starts(world, 3)
    trouble = world.observed.deployments[("app", "D")].trouble
    assert trouble
    restart_controller(world)
    fact = world.observed.deployments[("app", "D")]
    assert (fact.failures, fact.failed_at) == (0, float("-inf"))
    assert fact.trouble == trouble, "it is as unhealthy as before until it has recovered"
    assert "StartReplica" in verbs(world.turn()), "and tried again at once"


def test_a_silent_replica_is_replaced_but_only_when_it_is_sure() -> None:
    world = deployed()
    [silent] = world.replicas()
    assert world.wake_at == pytest.approx(30.0)
    world.now = 30.0
    assert verbs(world.turn()) == []
    assert world.wake_at == pytest.approx(32.0)
    world.now = 32.0
    assert "KillReplica" in verbs(world.turn())
    assert "silent for 32 s" in world.observed.deployments[("app", "D")].trouble
    assert silent.replica_id in world.observed.replicas, "it is known until its exit is"


def test_a_report_clears_the_suspicion() -> None:
    world = deployed()
    world.now = 30.0
    world.turn()
    world.now = 31.0
    [replica] = world.replicas()
    [proxy] = world.observed.proxies
    world.turn(world.running(replica.start.goal), ProxyReport(proxy, listening=True))
    world.now = 32.5
    assert verbs(world.turn()) == []
