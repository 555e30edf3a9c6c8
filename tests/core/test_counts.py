"""How many replicas a deployment has: by document, autoscaler or hand."""

from dataclasses import replace

import pytest

from servd.controller.plan import events
from servd.controller.plan.change import scale
from servd.ground.states import ApplicationStatus, ReplicaState
from servd.wire.messages import ReplicaReport
from tests.core.build import (
    World,
    a_goal,
    an_app,
    deployed,
    redeployed,
    report,
    starting_world,
    status_of,
)


def test_autoscaling_follows_load_and_counts_are_bounded() -> None:
    config = {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_num_ongoing_requests_per_replica": 2.0,
        "upscale_delay_s": 0,
    }
    world = deployed(autoscaling_config=config)
    [replica] = world.replicas()
    busy = ReplicaReport(replica.replica_id, "running", applied=replica.config_version, ongoing=100)
    world.observed.apply(busy, 0.0)
    world.now = 40.0  # idle samples have left the look-back window
    world.observed.apply(replace(busy, ongoing=100), 40.0)
    world.run()
    assert len(world.replicas()) == 3


def test_scale_pins_the_count() -> None:
    world = deployed(num_replicas=1)
    world.goal = scale(world.goal, "app", "D", 3)
    world.run()
    assert len(world.replicas()) == 3
    world.goal = scale(world.goal, "app", "D", 0)
    world.run()
    assert world.replicas() == []
    assert status_of(world) is ApplicationStatus.RUNNING


AUTO = {
    "min_replicas": 1,
    "max_replicas": 8,
    "target_num_ongoing_requests_per_replica": 1.0,
    "look_back_period_s": 0.5,
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 0.0,
}


def autoscaled(**config: object) -> World:
    return deployed(autoscaling_config={**AUTO, **config})


def load(world: World, *ongoing: int) -> World:
    """Every replica reports, in order of age; the facts are not acted upon."""
    for replica, count in zip(world.replicas(), ongoing, strict=True):
        world.observed.apply(report(replica, ongoing=count), world.now)
    return world


def wait(world: World, seconds: float) -> World:
    world.now += seconds
    return world


def test_with_no_delay_the_next_report_after_the_window_scales_up() -> None:
    world = load(wait(autoscaled(), 5.0), 6)
    wait(world, 0.5).run()
    assert len(world.replicas()) == 6
    assert "asks for 6" in world.observed.deployments[("app", "D")].reason


def test_a_burst_is_met_within_the_window_though_nothing_more_is_reported() -> None:
    world = load(wait(autoscaled(look_back_period_s=0.2), 5.0), 2)
    world.turn(events.QueueReported("proxy:p1", "app_D", 30))
    limit = world.now + 0.1
    while len(world.replicas()) < 8:
        world.now = world.wake_at
        assert world.now < limit
        world.turn()


def test_replicas_that_have_just_begun_do_not_scale_down() -> None:
    world = wait(load(wait(autoscaled(), 5.0), 6), 0.5).run()
    load(world, 1, 0, 0, 0, 0, 0)
    wait(world, 0.4).run()
    assert len(world.replicas()) == 6
    load(wait(world, 0.05), 1, 1, 1, 1, 1, 1)
    wait(world, 0.5).run()
    assert len(world.replicas()) == 6
    load(world, 1, 1, 0, 0, 0, 0)
    wait(world, 0.6).run()
    assert len(world.replicas()) == 2


def test_what_a_replica_reports_before_it_runs_is_no_sample() -> None:
    world = starting_world()
    [replica] = world.replicas()
    world.turn(report(replica, "starting"))
    assert replica.replica_id not in world.observed.samples
    world.turn(report(replica))
    assert replica.replica_id in world.observed.samples


def test_a_waiting_request_wakes_a_deployment_at_zero_until_nobody_waits() -> None:
    world = autoscaled(min_replicas=0)
    assert world.replicas() == []
    world.turn(events.QueueReported("proxy:p1", "app_D", 2))
    assert len(world.replicas()) == 1
    world.turn(events.QueueReported("proxy:p1", "app_D", 0))
    assert world.observed.queued == {}


def test_requests_that_wait_for_full_replicas_count_as_their_load() -> None:
    world = load(wait(autoscaled(), 5.0), 1)
    world.turn(events.QueueReported("proxy:p1", "app_D", 2))
    world.turn(events.QueueReported("replica:r", "app_D", 2))
    world.turn(events.QueueReported("replica:r", "app_E", 9))
    wait(world, 0.6).turn()
    assert "asks for 5" in world.observed.deployments[("app", "D")].reason
    assert len(world.replicas()) == 5


def test_every_replica_has_an_equal_part_of_what_waits() -> None:
    world = load(wait(autoscaled(min_replicas=2), 5.0), 1, 1)
    world.turn(events.QueueReported("proxy:p1", "app_D", 4))
    means = [world.observed.samples[r.replica_id].points[-1][1] for r in world.replicas()]
    assert means == [3.0, 3.0]
    third = replace(world.replicas()[0], replica_id="third", state=ReplicaState.STARTING)
    world.observed.put(third)
    world.observed.apply(report(third, ongoing=0), world.now)
    loads = [samples.points[-1][1] for samples in world.observed.samples.values()]
    assert loads == pytest.approx([1 + 4 / 3, 1 + 4 / 3, 4 / 3])
    world.observed.apply(events.QueueReported("proxy:p1", "app_D", 0), world.now)
    assert [samples.points[-1][1] for samples in world.observed.samples.values()] == [1.0, 1.0, 0.0]


def test_requests_to_another_deployment_wake_nobody() -> None:
    world = autoscaled(min_replicas=0)
    world.turn(events.QueueReported("proxy:p1", "other_D", 2))
    assert world.replicas() == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_replicas": 9}, 6),  # the current target
        ({"initial_replicas": 2}, 2),
        ({"max_replicas": 4}, 4),
        ({"min_replicas": 7}, 7),
    ],
)
def test_a_changed_document_goes_on_from_the_current_target(config: dict[str, int], expected: int) -> None:
    world = load(wait(autoscaled(), 5.0), 6)
    wait(world, 0.5).run()
    redeployed(world, autoscaling_config={**AUTO, "upscale_delay_s": 60.0, **config})
    assert world.observed.deployments[("app", "D")].desired == expected


def test_the_autoscaler_goes_on_from_the_count_set_by_hand() -> None:
    world = autoscaled()
    world.goal = scale(world.goal, "app", "D", 5)
    load(wait(world.run(), 60.0), 0, 0, 0, 0, 0)
    assert len(wait(world, 5.0).run().replicas()) == 5, "no decision is taken while it is pinned"
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.turn()
    assert world.observed.deployments[("app", "D")].desired == 5


def test_a_count_by_hand_of_zero_lets_requests_wait() -> None:
    world = autoscaled()
    world.goal = scale(world.goal, "app", "D", 0)
    world.run()
    world.turn(events.QueueReported("proxy:p1", "app_D", 2))
    assert world.replicas() == []
    assert world.observed.published is not None
    assert [(t.endpoints, t.unavailable) for t in world.observed.published.targets] == [((), "")]


def test_a_delay_holds_over_turns_and_a_change_of_direction_restarts_it() -> None:
    world = autoscaled(upscale_delay_s=10.0)
    load(wait(world, 5.0), 6)
    wait(world, 0.5).run()
    wait(world, 9.0).run()
    assert len(world.replicas()) == 1
    load(world, 1)
    wait(world, 0.6).run()
    assert world.observed.deployments[("app", "D")].lean == 0
    load(world, 6)
    wait(world, 0.5).run()
    wait(world, 9.0).run()
    assert len(world.replicas()) == 1
    load(world, 6)
    wait(world, 1.1).run()
    assert len(world.replicas()) == 6
