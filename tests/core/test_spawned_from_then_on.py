"""A forked replica whose thread waits for one that the fork left behind: what the core makes of it."""

from dataclasses import replace
from typing import Any

import pytest

from servd.controller.plan import actions, events
from servd.controller.plan.facts import ReplicaFact
from servd.controller.shown.status import instance_view
from servd.documents.control_plane import DeploymentView
from servd.ground.states import ApplicationStatus, DeploymentStatus, ReplicaState
from servd.wire.messages import ReplicaReport
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
    report,
    restart_controller,
    starting_world,
    status_of,
    verbs,
)

VERDICT = "waits in libfoo.so for a thread that the fork left behind, called in model.py:7"


def said_by(replica: ReplicaFact, **said: Any) -> ReplicaReport:
    return report(replica, **{"lost_wait": VERDICT, "stack": "blocked\nmodel.py", **said})


def after(world: World, *news: events.Event) -> World:
    """The world once it has heard this and everything that was ordered has happened."""
    plan = world.turn(*news)
    world.turn(*(event for action in plan.actions for event in world.effects(action)))
    return world.run()


def lost(**options: Any) -> World:
    """A world in which the first of two replicas has lost a wait."""
    world = deployed(**{"num_replicas": 2, **options})
    return after(world, said_by(world.replicas()[0]))


def view_of(world: World) -> DeploymentView:
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=world.now)
    return view.applications[0].deployments[0]


def forked(world: World) -> list[bool]:
    return [replica.was_forked for replica in world.replicas()]


def fact(world: World) -> Any:
    return world.observed.deployments[("app", "D")]


def test_it_is_killed_at_once_and_its_successor_is_spawned() -> None:
    world = deployed(num_replicas=2)
    first, other = world.replicas()
    plan = world.turn(said_by(first))
    assert sorted(verbs(plan)) == ["KillReplica", "StartReplica"]
    [start] = [action for action in plan.actions if isinstance(action, actions.StartReplica)]
    assert start.spawn
    assert not start.fact.was_forked
    assert world.observed.replicas[first.replica_id].state is ReplicaState.STOPPING
    assert world.observed.replicas[other.replica_id].state is ReplicaState.RUNNING


def test_all_further_ones_are_spawned_until_a_new_version_comes() -> None:
    world = lost()
    assert forked(world) == [True, False]
    redeploy(world, num_replicas=4).run()
    assert forked(world) == [True, False, False, False], "a count is no new version"
    restart_controller(world)
    after(world, *(report(replica) for replica in world.replicas()))
    after(world, events.Exited("replica", world.replicas()[0].replica_id, -9))
    assert forked(world) == [False] * 4, "nor is a new controller"
    redeploy(world, "c2").run()
    assert forked(world) == [True] * len(world.replicas())
    assert message_of(world) == ""


def test_each_that_loses_a_wait_goes() -> None:
    world = lost()
    [left] = [replica for replica in world.replicas() if replica.was_forked]
    assert forked(after(world, said_by(left))) == [False, False]


def test_the_status_says_why_and_where() -> None:
    world = deployed()
    [replica] = world.replicas()
    deployment = view_of(after(world, said_by(replica)))
    assert deployment.status is DeploymentStatus.HEALTHY
    assert deployment.message == f"replicas are spawned until the next version: replica {replica.replica_id} {VERDICT}"
    [dead] = deployment.recent_dead
    assert (dead.reason, dead.stack) == (VERDICT, "blocked\nmodel.py")
    assert f"replica {replica.replica_id} {VERDICT}" in world.observed.notes


def test_it_is_nobodys_fault() -> None:
    world = lost()
    assert (fact(world).failures, fact(world).trouble) == (0, "")
    assert status_of(world) is ApplicationStatus.RUNNING


def test_a_constructor_that_waits_so_is_no_failed_start() -> None:
    world = starting_world()
    [replica] = world.replicas()
    assert replica.was_forked
    world.turn(events.Started("replica", replica.replica_id, 7, 1))
    after(world, said_by(replica, phase="starting"))
    assert forked(world) == [False]
    assert fact(world).failed_starts == 0
    assert status_of(world) is ApplicationStatus.RUNNING


def test_a_preloaded_instance_is_of_no_use_then() -> None:
    world = lost(preload=True)
    assert sorted(forked(world)) == [False, True]
    assert "replicas are spawned and construct their own instances until the next version" in message_of(world)
    [survivor] = [replica for replica in world.replicas() if replica.was_forked]
    after(world, events.Exited("replica", survivor.replica_id, -9))
    assert forked(world) == [False, False]
    assert not [server for server in world.observed.fork_servers.values() if server.preload_key]


def test_a_replica_of_an_older_version_says_nothing_of_the_new_one() -> None:
    world = deployed()
    [old] = world.replicas()
    after(redeployed(world, "c2"), said_by(old))
    assert fact(world).spawned_version == ""
    assert forked(world) == [True]


JAX = "the import left 3 native thread(s) running, 3 of libjax_common.so; start them after the fork, in the constructor"


@pytest.mark.parametrize(
    ("options", "fork_unsafe", "message", "methods"),
    [
        ({}, "", "", {"fork"}),
        ({}, JAX, f"replicas are spawned: {JAX}", {"spawn"}),
        # that is what was asked for
        ({"start_method": "spawn"}, JAX, "", {"spawn"}),
        ({"preload": True}, JAX, f"preload has no effect, each replica constructs its own instance: {JAX}", {"spawn"}),
    ],
    ids=["forked", "threads", "by wish", "preload"],
)
def test_the_status_says_how_replicas_start_and_why_not_by_fork(
    options: dict[str, Any], fork_unsafe: str, message: str, methods: set[str]
) -> None:
    world = World(a_goal(an_app()))
    world.builds["app"] = replace(a_build("D", D={"num_replicas": 2, **options}), fork_unsafe=fork_unsafe)
    world.run()
    deployment = view_of(world)
    assert deployment.status is DeploymentStatus.HEALTHY
    assert deployment.message == message
    assert {replica.start_method for replica in deployment.replicas} == methods
