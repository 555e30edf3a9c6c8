"""Updates and starts on a host whose CPUs and devices are few."""

import pytest

from servd.controller.plan import events
from servd.controller.shown.status import instance_view
from servd.ground.states import ApplicationStatus, ReplicaState
from servd.wire.messages import REPLICA
from tests.core.build import (
    IDENTITY,
    World,
    a_build,
    a_goal,
    an_app,
    deployed,
    message_of,
    redeploy,
    redeployed,
    status_of,
    verbs,
)


def test_what_does_not_fit_waits_and_says_what_it_needs() -> None:
    world = deployed(World(a_goal(an_app()), num_gpus=1), num_replicas=2, ray_actor_options={"num_gpus": 1})
    [replica] = world.replicas()
    assert replica.start.variables == {"CUDA_VISIBLE_DEVICES": "0"}
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=0.0)
    assert "num_gpus 1 (0 of 1 free)" in view.applications[0].deployments[0].message
    assert status_of(world) is ApplicationStatus.DEPLOYING


def test_a_scarce_device_is_handed_from_old_to_new() -> None:
    world = deployed(World(a_goal(an_app()), num_gpus=1), ray_actor_options={"num_gpus": 1})
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.builds["app"] = a_build("D", code_version="c2", D={"ray_actor_options": {"num_gpus": 1}})
    world.run()
    assert status_of(world) is ApplicationStatus.RUNNING
    assert len(world.replicas()) == 1


def test_num_cpus_limits_only_with_a_pool() -> None:
    assert len(deployed(num_replicas=3, ray_actor_options={"num_cpus": 64}).replicas()) == 3
    pooled = deployed(World(a_goal(an_app()), num_cpus=2), num_replicas=3, ray_actor_options={"num_cpus": 1})
    assert len(pooled.replicas()) == 2


@pytest.mark.parametrize("options", [{"num_cpus": 1}, {"num_gpus": 1}])
@pytest.mark.parametrize(("room", "wanted"), [(1, 1), (2, 2), (4, 4), (1, 2), (2, 5), (1, 9)])
def test_an_update_reaches_all_that_have_room(room: int, wanted: int, options: dict[str, int]) -> None:
    pool = dict.fromkeys(options, room)
    world = deployed(World(a_goal(an_app()), **pool), num_replicas=wanted, ray_actor_options=options)
    before = {replica.replica_id for replica in world.replicas()}
    assert len(before) == room
    redeploy(world, code_version="c2").run()
    after = {replica.replica_id for replica in world.replicas()}
    assert (len(after), before & after) == (room, set())


def test_at_full_room_one_step_stops_before_the_next_one_starts() -> None:
    options = {"num_replicas": 4, "ray_actor_options": {"num_gpus": 1}}
    world = deployed(World(a_goal(an_app()), num_gpus=4), **options)
    redeployed(world, code_version="c2")
    leaving = [r for r in world.replicas() if r.state is ReplicaState.STOPPING]
    assert len(leaving) == 1
    assert verbs(world.turn()) == [], "the others serve until it is gone"
    assert "old replicas stop before new ones start" in message_of(world)
    assert verbs(world.turn(events.Exited(REPLICA, leaving[0].replica_id, 0))) == ["StartReplica"]


def test_a_place_freed_for_an_update_is_not_taken_by_a_bystander() -> None:
    one = {"ray_actor_options": {"num_cpus": 1}}
    world = deployed(World(a_goal(an_app()), num_cpus=2), **one)
    greedy = an_app("greedy", route_prefix="/greedy", route_prefix_given=True)
    world.builds["greedy"] = a_build("D", D={**one, "num_replicas": 3})
    world.goal = a_goal(greedy, an_app(), revision=2)
    world.run()
    redeploy(world, code_version="c2").run()
    assert (len(world.replicas()), len(world.replicas(app="greedy"))) == (1, 1)
    assert status_of(world) is ApplicationStatus.RUNNING


def test_fractions_share_one_device_and_whole_ones_stay_whole() -> None:
    world = deployed(World(a_goal(an_app()), num_gpus=2), num_replicas=2, ray_actor_options={"num_gpus": 0.5})
    assert [r.start.variables["CUDA_VISIBLE_DEVICES"] for r in world.replicas()] == ["0", "0"]


def test_a_replica_that_needs_two_devices_sees_both() -> None:
    world = deployed(World(a_goal(an_app()), num_gpus=2), ray_actor_options={"num_gpus": 2})
    assert [r.start.variables for r in world.replicas()] == [{"CUDA_VISIBLE_DEVICES": "0,1"}]
