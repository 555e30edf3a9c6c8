"""A replica that uses more memory than it may is replaced, start first, and says both figures."""

from servd.controller.plan import events
from servd.controller.plan.outgrown import PAUSE_S, SETTLED_S
from servd.controller.shown.status import Identity, instance_view
from servd.ground.states import DeploymentStatus
from servd.wire.messages import REPLICA, ReplicaReport
from tests.core.build import World, a_build, a_goal, an_app, verbs

LIMIT = 100 * 2**20


def a_world(replicas: int = 1) -> World:
    world = World(a_goal(an_app()))
    world.builds["app"] = a_build("D", D={"num_replicas": replicas, "memory_limit_bytes": LIMIT})
    return world.run()


def memory(world: World, replica_id: str, size: int) -> ReplicaReport:
    applied = world.observed.replicas[replica_id].config_version
    return ReplicaReport(replica_id, "running", applied=applied, memory_bytes=size)


def test_the_replica_is_told_its_limit_and_may_use_all_of_it() -> None:
    world = a_world()
    (replica,) = world.replicas()
    assert replica.start.goal.memory_limit_bytes == LIMIT
    assert verbs(world.turn(memory(world, replica.replica_id, LIMIT))) == []


def test_above_the_limit_a_successor_starts_before_the_replica_drains() -> None:
    world = a_world()
    (replica,) = world.replicas()
    assert verbs(world.turn(memory(world, replica.replica_id, LIMIT + 1))) == ["StartReplica"]
    # what it gives back now does not save it
    world.turn(memory(world, replica.replica_id, 1))
    (successor,) = [r for r in world.replicas() if r.replica_id != replica.replica_id]
    plan = world.turn(World.running(successor.start.goal))
    assert verbs(plan) == ["DrainReplica"]
    world.turn(events.Exited(REPLICA, replica.replica_id, 0))
    assert [r.replica_id for r in world.replicas()] == [successor.replica_id]


def test_both_figures_are_in_the_message_and_it_is_no_failed_check() -> None:
    world = a_world()
    (replica,) = world.replicas()
    world.turn(memory(world, replica.replica_id, 150 * 2**20))
    view = instance_view(
        world.goal, world.observed, world.settings, Identity(1, "a", "w", "n", "ip"), version=1, now=world.now
    )
    deployment = view.applications[0].deployments[0]
    assert deployment.status is DeploymentStatus.UPDATING
    assert "157286400" in deployment.message
    assert "104857600" in deployment.message
    (successor,) = [r for r in world.replicas() if not r.outgrown]
    plan = world.turn(World.running(successor.start.goal))
    world.turn(*(news for action in plan.actions for news in world.effects(action)))
    (dead,) = world.observed.deployments[("app", "D")].dead
    assert "157286400" in dead.reason
    assert "104857600" in dead.reason
    assert world.observed.deployments[("app", "D")].failures == 0


def test_of_many_one_is_replaced_at_a_time() -> None:
    world = a_world(replicas=3)
    news = [memory(world, replica.replica_id, 2 * LIMIT) for replica in world.replicas()]
    assert verbs(world.turn(*news)) == ["StartReplica"]
    assert world.wake_at == PAUSE_S


def test_a_limit_that_each_fresh_replica_exceeds_is_no_hot_loop() -> None:
    world = a_world()
    world.turn(memory(world, world.replicas()[0].replica_id, 2 * LIMIT))
    world.run()
    (first,) = [r for r in world.replicas() if not r.outgrown]
    world.now += 1.0
    world.turn(World.running(first.start.goal))
    world.run()
    assert "StartReplica" not in verbs(world.turn(memory(world, first.replica_id, 2 * LIMIT)))
    assert world.wake_at == PAUSE_S
    world.now = PAUSE_S
    assert verbs(world.turn()) == ["StartReplica"]


def test_a_settled_replica_is_replaced_without_a_pause() -> None:
    world = a_world(replicas=2)
    world.now += SETTLED_S
    first, second = world.replicas()
    world.turn(memory(world, first.replica_id, 2 * LIMIT))
    world.turn(memory(world, second.replica_id, 2 * LIMIT))
    assert [bool(r.outgrown) for r in world.replicas()[:2]] == [True, True]
