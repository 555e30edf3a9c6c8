"""The routing that callers get: what they are told beyond addresses."""

from dataclasses import replace
from typing import Any

import pytest

from servd.controller.plan import actions
from servd.controller.plan.events import Exited
from servd.wire.messages import REPLICA, DeploymentTargets
from tests.core.build import World, a_build, a_goal, an_app


def a_world(**options: Any) -> World:
    world = World(a_goal(an_app()))
    world.builds["app"] = a_build("D", D=options)
    return world


def told(world: World) -> DeploymentTargets:
    assert world.observed.published is not None
    (targets,) = world.observed.published.targets
    return targets


@pytest.mark.parametrize(
    ("options", "may_grow"),
    [
        ({"num_replicas": 2}, False),
        ({"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}, False),
        ({"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}}, True),
        # full replicas and one request that waits are too much for the first, and not for the second
        (
            {
                "autoscaling_config": {"max_replicas": 2, "target_num_ongoing_requests_per_replica": 4},
                "max_concurrent_queries": 4,
            },
            True,
        ),
        (
            {
                "autoscaling_config": {"max_replicas": 2, "target_num_ongoing_requests_per_replica": 4},
                "max_concurrent_queries": 3,
            },
            False,
        ),
    ],
)
def test_more_replicas_may_come(options: dict[str, Any], may_grow: bool) -> None:
    assert told(a_world(**options).run()).may_grow is may_grow


@pytest.mark.parametrize(
    ("own_s", "all_s", "told_s"),
    [(None, 0.0, None), (None, 9.0, 9.0), (5.0, 9.0, 5.0), (9.0, 5.0, 5.0), (5.0, 0.0, 5.0)],
)
def test_the_least_time_limit_counts(own_s: float | None, all_s: float, told_s: float | None) -> None:
    world = a_world(request_timeout_s=own_s)
    assert world.goal.http is not None
    world.goal = replace(world.goal, http=replace(world.goal.http, request_timeout_s=all_s))
    assert told(world.run()).request_timeout_s == told_s


def test_a_replica_that_is_on_its_way_counts() -> None:
    world = a_world(num_replicas=1).run()
    replica = world.replicas()[0].replica_id
    plan = world.turn(Exited(REPLICA, replica, -9))
    assert any(isinstance(action, actions.StartReplica) for action in plan.actions)
    assert (told(world).endpoints, told(world).may_grow) == ((), True)
    world.turn(*(event for action in plan.actions for event in world.effects(action)))
    assert not told(world.run()).may_grow


def test_a_build_is_told_until_it_ends() -> None:
    world = World(a_goal(an_app()))
    world.run()
    assert world.observed.published is not None
    assert world.observed.published.building == ("app",)
    assert a_world().run().observed.published.building == ()  # type: ignore[union-attr]
