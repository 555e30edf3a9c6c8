"""What a change would do, told without doing it."""

from dataclasses import replace
from typing import Any

import pytest

from servd.controller.plan.actions import SetReplicaGoal
from servd.controller.plan.goal import ApplicationGoal, Goal
from servd.controller.shown.dry_run import compare, replaced_snapshots
from servd.documents.control_plane import ApplicationChange
from tests.core.build import HTTP, World, a_build, a_goal, an_app

Row = tuple[str, str, tuple[str, ...], int, int | None]


def a_world(*names: str, app: ApplicationGoal | None = None, **options: dict[str, Any]) -> World:
    """A world in which one application of these deployments serves."""
    world = World(a_goal(app or an_app()))
    world.builds["app"] = a_build(*(names or ("D",)), **options)
    return world.run()


def the_change(world: World, *wishes: ApplicationGoal) -> ApplicationChange:
    return compare(world.goal, a_goal(*wishes, revision=2), HTTP, world.observed).applications["app"]


def rows(change: ApplicationChange) -> list[Row]:
    return [(name, c.action, c.fields, c.replicas_before, c.replicas_after) for name, c in change.deployments.items()]


def override(**options: Any) -> ApplicationGoal:
    return an_app(deploy_id=2, deployments=({"name": "D", **options},))


@pytest.mark.parametrize(
    ("options", "action", "fields", "after"),
    [
        ({}, "untouched", (), 1),
        ({"num_replicas": 3}, "untouched", ("num_replicas",), 3),
        ({"user_config": {"a": 1}}, "reconfigured", ("user_config",), 1),
        ({"max_concurrent_queries": 7}, "reconfigured", ("max_concurrent_queries",), 1),
        ({"ray_actor_options": {"num_cpus": 2}}, "restarted", ("ray_actor_options.num_cpus",), 1),
        ({"ray_actor_options": {"num_cpus": 1}}, "untouched", (), 1),
        (
            {"ray_actor_options": {"runtime_env": {"env_vars": {"A": "1"}}}},
            "restarted",
            ("ray_actor_options.runtime_env.env_vars",),
            1,
        ),
        ({"max_sync_threads": 2, "num_replicas": 2}, "restarted", ("num_replicas", "max_sync_threads"), 2),
        (
            {"autoscaling_config": {"min_replicas": 2, "max_replicas": 4}},
            "untouched",
            ("autoscaling_config",),
            2,
        ),
    ],
)
def test_what_an_override_does(options: dict[str, Any], action: str, fields: tuple[str, ...], after: int) -> None:
    world = a_world()
    assert rows(the_change(world, override(**options))) == [("app_D", action, fields, 1, after)]


def test_the_same_document_changes_nothing() -> None:
    world = a_world("A", "D")
    change = the_change(world, an_app(deploy_id=2))
    assert (change.action, change.fields, change.note) == ("unchanged", (), "")
    assert {c.action for c in change.deployments.values()} == {"untouched"}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"import_path": "m:other"}, "import_path"),
        ({"args": {"x": 1}}, "args.x"),
        ({"runtime_env": {"env_vars": {"A": "1"}}}, "runtime_env.env_vars"),
        ({"application_hash": "a" * 64, "import_path": ""}, "import_path"),
    ],
)
def test_new_code_restarts_everything(document: dict[str, Any], field: str) -> None:
    change = the_change(a_world("A", "D"), an_app(deploy_id=2, **document))
    assert change.action == "changed"
    assert field in change.fields
    assert "not built" in change.note
    assert {c.action for c in change.deployments.values()} == {"restarted"}


def test_edited_sources_restart_everything() -> None:
    env = {"working_dir": "file:///src"}
    first = replace(an_app(runtime_env=env), snapshots={"file:///src": "/code/1"})
    second = replace(an_app(deploy_id=2, runtime_env=env), snapshots={"file:///src": "/code/2"})
    change = the_change(a_world(app=first), second)
    assert rows(change) == [("app_D", "restarted", ("source files in file:///src",), 1, 1)]
    assert the_change(a_world(app=first), replace(second, snapshots=first.snapshots)).action == "unchanged"


def test_edited_sources_are_named() -> None:
    env = {"working_dir": "file:///my%20src", "py_modules": ["file:///lib"]}
    code = {"file:///my%20src": "/code/1", "file:///lib": "/code/2"}
    first = replace(an_app(runtime_env=env), snapshots=code)
    second = replace(an_app(deploy_id=2, runtime_env=env), snapshots={**code, "file:///my%20src": "/code/3"})
    world, goal = a_world(app=first), a_goal(second, revision=2)
    assert replaced_snapshots(goal, world.observed) == {("/code/1", "/code/3")}
    files = {("/code/1", "/code/3"): {"a.py": "changed", "p/b.py": "added"}}
    change = compare(world.goal, goal, HTTP, world.observed, files).applications["app"]
    assert change.files == {"/my src/a.py": "changed", "/my src/p/b.py": "added"}
    new = a_goal(replace(second, document=replace(second.document, name="new")), revision=2)
    assert replaced_snapshots(new, world.observed) == set()


def test_applications_come_and_go() -> None:
    world = a_world()
    plan = compare(
        world.goal, a_goal(an_app("new", 2, deployments=({"name": "X", "num_replicas": 2},))), HTTP, world.observed
    )
    assert list(plan.applications) == ["new", "app"]
    assert rows(plan.applications["new"]) == [("new_X", "added", (), 0, 2)]
    assert plan.applications["app"].action == "removed"
    assert rows(plan.applications["app"]) == [("app_D", "removed", (), 1, 0)]
    assert plan.revision == world.goal.revision


def test_an_override_of_an_unknown_deployment_is_foretold() -> None:
    change = the_change(a_world(), an_app(deploy_id=2, deployments=({"name": "Nobody"},)))
    assert "Nobody" in change.note
    assert rows(change) == [("app_D", "untouched", (), 1, 1)]


def test_a_moved_listener_is_shown() -> None:
    world = a_world()
    moved = replace(a_goal(an_app(deploy_id=2)), http=replace(HTTP, port=8001))
    assert compare(world.goal, moved, HTTP, world.observed).http == {"port": (8000, 8001)}
    assert compare(world.goal, Goal(2), HTTP, world.observed).http["port"] == (8000, None)


def test_a_pinned_count_is_given_up() -> None:
    world = a_world()
    world.goal = replace(world.goal, applications=(replace(an_app(), scale={"D": 4}),))
    world.run()
    assert rows(the_change(world, an_app(deploy_id=2))) == [("app_D", "untouched", ("scale",), 4, 1)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_replicas": 2},
        {"user_config": {"a": 1}},
        {"health_check_period_s": 3},
        {"max_sync_threads": 2},
        {"ray_actor_options": {"num_cpus": 3}},
        {"start_method": "spawn"},
    ],
)
def test_the_plan_tells_what_then_happens(options: dict[str, Any]) -> None:
    world = a_world()
    ((_, action, _, _, after),) = rows(the_change(world, override(**options)))
    before = {replica.replica_id for replica in world.replicas()}
    world.log.clear()
    world.goal = a_goal(override(**options), revision=2)
    world.run()
    now = {replica.replica_id for replica in world.replicas()}
    assert len(now) == after
    assert (before <= now) == (action != "restarted")
    if action == "untouched":
        told = [action for action in world.log if isinstance(action, SetReplicaGoal)]
        assert [action.reason for action in told] == ["new count"] * bool(options)
