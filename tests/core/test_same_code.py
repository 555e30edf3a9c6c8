"""A document that cannot mean other code needs no build: the template that runs stays in use."""

from dataclasses import replace
from typing import Any

import pytest

from servd.controller.plan.goal import ApplicationGoal
from servd.documents.control_plane import ApplicationDocument
from servd.ground.states import ApplicationStatus
from servd.wire.build_messages import BuildResult
from tests.core.build import World, a_build, a_goal, status_of, verbs

SOURCE = "file:///src"


def a_wish(deploy_id: int = 1, snapshot: str = "/state/code/one", **document: Any) -> ApplicationGoal:
    fields: dict[str, Any] = {"import_path": "m:app", "runtime_env": {"working_dir": SOURCE}, **document}
    return ApplicationGoal(ApplicationDocument("app", **fields), deploy_id, 1000.0, snapshots={SOURCE: snapshot})


def served(*, is_pinned: bool = True) -> World:
    world = World(a_goal(a_wish()))
    world.builds["app"] = a_build("D", is_pinned=is_pinned)
    return world.run()


def put(world: World, wish: ApplicationGoal) -> list[str]:
    """Names of the actions that it took."""
    world.goal = a_goal(wish, revision=wish.deploy_id)
    world.log.clear()
    world.run()
    return verbs(world.log)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (({"name": "D", "num_replicas": 3},), ["StartReplica", "StartReplica", "SetReplicaGoal"]),
        (({"name": "D", "user_config": {"a": 1}},), ["SetReplicaGoal"]),
        (({"name": "D", "max_concurrent_queries": 5},), ["SetReplicaGoal"]),
    ],
)
def test_what_changes_no_code_is_not_built(overrides: tuple[dict[str, Any], ...], expected: list[str]) -> None:
    world = served()
    assert put(world, a_wish(2, deployments=overrides)) == expected
    assert status_of(world) is ApplicationStatus.RUNNING
    assert len(world.observed.fork_servers) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"snapshot": "/state/code/two"},
        {"args": {"fruit": "mango"}},
        {"import_path": "m:other"},
        {"runtime_env": {"working_dir": SOURCE, "env_vars": {"A": "1"}}},
        {"runtime_env": {}},
        {"python_path": "/elsewhere"},
        {"driver_path": ("/elsewhere",)},
        {"application_hash": "abc"},
    ],
)
def test_what_may_be_other_code_is_built(changes: dict[str, Any]) -> None:
    assert "StartForkServer" in put(served(), a_wish(2, **changes))


def test_code_from_a_living_directory_is_built_each_time() -> None:
    assert put(served(is_pinned=False), a_wish(2)) == ["StartForkServer", "StopForkServer"]


def test_options_are_taken_back_without_a_build() -> None:
    world = served()
    good = world.builds["app"]
    world.builds["app"] = BuildResult("b", error="ImportError: no module named mango")
    put(world, a_wish(2, snapshot="/state/code/two"))
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    world.builds["app"] = replace(good)
    assert "StartForkServer" not in put(world, a_wish(3, deployments=({"name": "D", "num_replicas": 1},)))
    assert status_of(world) is ApplicationStatus.RUNNING


def test_the_same_document_is_built_and_deploying_meanwhile() -> None:
    world = served()
    replicas = set(world.observed.replicas)
    world.goal = a_goal(a_wish(2), revision=2)
    plan = world.turn()
    assert status_of(world) is ApplicationStatus.DEPLOYING
    world.turn(*(event for action in plan.actions for event in world.effects(action)))
    world.run()
    assert status_of(world) is ApplicationStatus.RUNNING
    assert set(world.observed.replicas) == replicas


def test_an_override_for_an_unknown_deployment_fails_without_a_build() -> None:
    world = served()
    assert put(world, a_wish(2, deployments=({"name": "Kiwi"},))) == []
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
