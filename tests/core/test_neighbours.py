"""What applications must not share, and how it changes hands."""

from dataclasses import replace
from typing import Any

import pytest

from servd.controller.plan import actions
from servd.controller.plan.goal import ApplicationGoal
from servd.ground.states import ApplicationStatus
from tests.core.build import World, a_build, a_goal, an_app, status_of


def at(name: str, prefix: str, deploy_id: int = 1) -> ApplicationGoal:
    return an_app(name, deploy_id, route_prefix=prefix, route_prefix_given=True)


def by_code(name: str, prefix: str, code_version: str = "c1") -> Any:
    return replace(a_build(name.upper(), code_version=code_version), route_prefix=prefix)


def a_world(*apps: ApplicationGoal, **builds: Any) -> World:
    world = World(a_goal(*apps))
    world.builds = builds
    return world.run()


def routes(world: World) -> dict[str, str]:
    published = world.observed.published
    assert published is not None
    found = {route.prefix: route.app for route in published.routes}
    assert len(found) == len(published.routes)
    return found


@pytest.mark.parametrize("is_pinned", [True, False])
def test_the_prefix_of_an_application_that_goes_is_free_at_once(is_pinned: bool) -> None:
    builds = {name: a_build(name.upper(), is_pinned=is_pinned) for name in "ab"}
    world = a_world(at("b", "/b"), at("a", "/a"), **builds)
    world.goal = a_goal(at("b", "/a", 2), revision=2)
    world.run()
    assert (status_of(world, "b"), routes(world)) == (ApplicationStatus.RUNNING, {"/a": "b"})


@pytest.mark.parametrize("first", [("a", "b"), ("b", "a")])
def test_a_prefix_is_with_the_one_that_shall_have_it(first: tuple[str, str]) -> None:
    world = a_world(*(at(name, f"/{name}") for name in first), a=a_build("A"), b=a_build("B"))
    world.builds["b"] = replace(a_build("B"), error="ImportError: no")
    swapped = {"a": at("a", "/b", 2), "b": at("b", "/a", 2)}
    world.goal = a_goal(*(swapped[name] for name in first), revision=2)
    world.run()
    assert status_of(world, "b") is ApplicationStatus.DEPLOY_FAILED
    assert routes(world) == {"/b": "a"}


@pytest.mark.parametrize("first", [("a", "b"), ("b", "a")])
def test_prefixes_that_the_code_says_change_hands_whoever_is_built_first(first: tuple[str, str]) -> None:
    world = a_world(an_app("a"), an_app("b"), a=by_code("a", "/a"), b=by_code("b", "/b"))
    world.builds = {first[0]: by_code(first[0], f"/{first[1]}", "c2")}
    world.goal = a_goal(an_app("a", 2), an_app("b", 2), revision=2)
    world.run()
    assert status_of(world, first[0]) is ApplicationStatus.DEPLOYING
    late = next(f for f in world.observed.fork_servers.in_group(first[1]) if f.is_builder and f.result is None)
    world.observed.put(replace(late, result=by_code(first[1], f"/{first[0]}", "c2")))
    world.builds[first[1]] = by_code(first[1], f"/{first[0]}", "c2")
    world.run()
    assert {status_of(world, name) for name in "ab"} == {ApplicationStatus.RUNNING}
    assert routes(world) == {"/a": "b", "/b": "a"}


def test_one_that_stays_keeps_its_prefix() -> None:
    world = a_world(an_app("a"), an_app("b"), a=by_code("a", "/a"), b=by_code("b", "/b"))
    world.builds["b"] = by_code("b", "/a", "c2")
    world.goal = a_goal(an_app("a", 2), an_app("b", 2), revision=2)
    world.run()
    assert status_of(world, "a") is ApplicationStatus.RUNNING
    assert "'/a' is already used by application 'a'" in world.observed.applications["b"].message
    assert routes(world) == {"/a": "a", "/b": "b"}


def test_a_full_name_is_waited_for_until_the_replicas_of_the_one_before_have_ended() -> None:
    world = a_world(at("a", "/a"), a=a_build("b_c"))
    world.builds = {"a_b": a_build("c")}
    world.goal = a_goal(at("a_b", "/a", 2), revision=2)
    plan, drained = world.turn(), []
    for _ in range(9):
        drained += [a for a in plan.actions if isinstance(a, actions.DrainReplica)]
        others = [a for a in plan.actions if not isinstance(a, actions.DrainReplica)]
        plan = world.turn(*(event for action in others for event in world.effects(action)))
    assert drained
    assert status_of(world, "a_b") is ApplicationStatus.DEPLOYING
    world.observed.apply(world.effects(drained[0])[0], world.now)
    world.run()
    assert set(world.observed.applications) == {"a_b"}
    assert (status_of(world, "a_b"), routes(world)) == (ApplicationStatus.RUNNING, {"/a": "a_b"})


def test_of_two_that_give_a_prefix_up_one_has_it() -> None:
    world = a_world(at("a", "/a"), at("b", "/b"), a=a_build("A"), b=a_build("B"))
    world.builds = {"b": a_build("B")}
    world.goal = a_goal(at("a", "/b", 2), at("b", "/a", 2), revision=2)
    world.run()
    assert routes(world) == {"/a": "b"}
    world.builds = {}
    world.goal = a_goal(at("a", "/x", 3), at("b", "/y", 3), revision=3)
    world.run()
    assert routes(world) == {"/a": "b"}


@pytest.mark.parametrize("first", ["a", "b"])
def test_who_needs_no_build_is_judged_at_once(first: str) -> None:
    pinned = {name: replace(by_code(name, f"/{name}"), is_pinned=True) for name in "ab"}
    order = sorted("ab", key=lambda name: name != first)
    world = a_world(*(an_app(name) for name in order), **pinned)
    wanted = {"a": at("a", "/b", 2), "b": an_app("b", 2, autoscaling_policy={"policy_function": "m:policy"})}
    world.goal = a_goal(*(wanted[name] for name in order), revision=2)
    world.turn()
    assert status_of(world, "a") is ApplicationStatus.DEPLOY_FAILED
    assert status_of(world, "b") is ApplicationStatus.RUNNING
