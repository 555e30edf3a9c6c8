"""A daemon has become another edition: what is of the one before makes room, proxies first, and serves until then."""

from dataclasses import replace

import pytest

from servd.controller.plan import actions, events
from servd.controller.plan.facts import UpgradeFact
from servd.controller.plan.restarts import PROBATION_S
from servd.controller.shown.status import instance_view
from servd.documents.controller_views import UpgradeView
from servd.ground.states import ReplicaState, UpgradeStage
from servd.wire.build_messages import BuildResult
from servd.wire.messages import FORK_SERVER, PROXY, REPLICA, ProxyReport
from tests.core.build import (
    IDENTITY,
    World,
    a_build,
    a_goal,
    an_app,
    deployed,
    report,
    restart_controller,
    status_of,
    verbs,
)

OLD, NEW = "1 0.1.0 aaaa", "1 0.2.0 bbbb"


def a_world(replicas: int = 2, **settings: object) -> World:
    """One that serves, of the old edition, with an application of so many replicas."""
    world = World(a_goal(an_app()), **settings)
    world.observed.edition = OLD
    return deployed(world, num_replicas=replicas)


def upgraded(world: World, edition: str = NEW, before: str = OLD) -> World:
    """The daemon has become another edition; its controller has adopted all, and heard of it."""
    restart_controller(world)
    world.observed.edition = edition
    for replica in world.observed.replicas.values():
        world.observed.apply(report(replica), world.now)
    for proxy in list(world.observed.proxies):
        world.observed.apply(ProxyReport(proxy, listening=True), world.now)
    world.observed.apply(UpgradeFact(edition, before), world.now)
    return world


def stage(world: World) -> str:
    assert world.observed.upgrade is not None
    return world.observed.upgrade.stage


def view(world: World) -> UpgradeView:
    found = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=world.now).upgrade
    assert found is not None
    return found


def editions(world: World) -> set[str]:
    known = world.observed
    every = (*known.proxies.values(), *known.fork_servers.values(), *known.replicas.values())
    return {fact.edition for fact in every}


def test_everything_is_replaced_and_nothing_built_anew() -> None:
    world = upgraded(a_world(5, proxies=2))
    before = {*world.observed.proxies, *world.observed.fork_servers, *world.observed.replicas}
    world.log.clear()
    world.run()
    assert stage(world) == UpgradeStage.DONE
    assert editions(world) == {NEW}
    assert not before & {*world.observed.proxies, *world.observed.fork_servers, *world.observed.replicas}
    assert len(world.replicas()) == 5
    reasons = {getattr(action, "reason", "") for action in world.log if isinstance(action, actions.StartForkServer)}
    assert reasons == {"upgrade"}
    assert status_of(world) == "RUNNING"
    assert view(world) == UpgradeView(
        "0.2.0+bbbb (protocol 1)", "0.1.0+aaaa (protocol 1)", UpgradeStage.DONE, "", 0, 0, 0
    )


def test_without_an_upgrade_another_edition_is_no_reason_to_replace_anything() -> None:
    world = restart_controller(a_world())
    world.observed.edition = NEW
    for replica in world.observed.replicas.values():
        world.observed.apply(report(replica), world.now)
    for proxy in list(world.observed.proxies):
        world.observed.apply(ProxyReport(proxy, listening=True), world.now)
    assert verbs(world.turn()) == []


def test_proxies_go_first_and_not_before_their_successors_listen() -> None:
    world = upgraded(a_world(proxies=2))
    old = set(world.observed.proxies)
    plan = world.turn()
    assert verbs(plan) == ["StartProxy", "StartProxy"]
    first, second = (p for p in world.observed.proxies if p not in old)
    assert verbs(world.turn(ProxyReport(first, listening=True))) == []
    assert stage(world) == UpgradeStage.PROXIES
    plan = world.turn(ProxyReport(second, listening=True))
    assert verbs(plan) == ["SetProxyGoal", "SetProxyGoal"]
    assert {a.goal.proxy_id for a in plan.actions if isinstance(a, actions.SetProxyGoal)} == old
    # those that drain hold nobody up
    assert verbs(world.turn()) == ["StartForkServer"]
    assert stage(world) == UpgradeStage.REPLICAS


def test_a_proxy_that_the_new_controller_has_not_heard_of_yet_is_left_alone() -> None:
    world = restart_controller(a_world())
    world.observed.edition = NEW
    world.observed.apply(UpgradeFact(NEW, OLD), world.now)
    assert verbs(world.turn()) == ["StartProxy"]


def test_replicas_wait_for_a_fork_server_of_the_new_edition() -> None:
    world = upgraded(a_world(1))
    [proxy] = [a.fact.proxy_id for a in world.turn().actions if isinstance(a, actions.StartProxy)]
    world.turn(ProxyReport(proxy, listening=True))
    [builds] = [a for a in world.turn().actions if isinstance(a, actions.StartForkServer)]
    assert verbs(world.turn()) == []
    [replica] = world.replicas()
    assert not replica.outgrown
    # one that dies meanwhile is forked by the fork server of before, which stands ready
    plan = world.turn(events.Exited(REPLICA, replica.replica_id, -9))
    [start] = [a for a in plan.actions if isinstance(a, actions.StartReplica)]
    assert (start.fact.edition, start.fork_server_id == builds.order.fork_server_id) == (OLD, False)
    world.turn(World.running(start.start.goal))
    plan = world.turn(events.BuildFinished(builds.order.fork_server_id, world.builds["app"]))
    [start] = [a for a in plan.actions if isinstance(a, actions.StartReplica)]
    assert (start.fact.edition, start.fork_server_id) == (NEW, builds.order.fork_server_id)
    # one has died early, so its successor's successor must prove itself
    assert verbs(world.turn(World.running(start.start.goal))) == []
    world.now += PROBATION_S
    assert verbs(world.turn(World.running(start.start.goal))) == ["DrainReplica"]


@pytest.mark.parametrize(("replicas", "step"), [(1, 1), (5, 1), (10, 2)])
def test_replicas_roll_as_with_new_code(replicas: int, step: int) -> None:
    world = upgraded(a_world(replicas))
    world.log.clear()
    most = 0
    plan = world.turn()
    for _ in range(60):
        running = [r for r in world.replicas() if r.state is ReplicaState.RUNNING]
        assert len(running) >= replicas
        most = max(most, len([r for r in world.replicas() if r.state is not ReplicaState.STOPPING]))
        if not plan.actions:
            break
        plan = world.turn(*(event for action in plan.actions for event in world.effects(action)))
    assert most == replicas + step
    assert stage(world) == UpgradeStage.DONE


def test_spawned_replicas_are_replaced_as_well() -> None:
    world = a_world(1)
    world.builds["app"] = a_build("D", D={"start_method": "spawn"})
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.run()
    upgraded(world).run()
    assert (stage(world), editions(world)) == (UpgradeStage.DONE, {NEW})


def test_replicas_that_do_not_start_leave_the_old_ones_serving_and_the_reason_is_shown() -> None:
    world = upgraded(a_world(1))
    [old] = world.replicas()
    plan = world.turn()
    for _ in range(30):
        news: list[events.Event] = []
        for action in plan.actions:
            if isinstance(action, actions.StartReplica):
                news.append(events.StartFailed(REPLICA, action.start.replica_id, "ValueError: no mangos"))
            else:
                news += world.effects(action)
        plan = world.turn(*news)
    assert old.replica_id in world.observed.replicas
    assert world.observed.replicas[old.replica_id].state is ReplicaState.RUNNING
    assert world.wake_at > world.now, "it is tried ever more seldom"
    found = view(world)
    assert (found.stage, found.replicas) == (UpgradeStage.REPLICAS, 1)
    assert "app_D: ValueError: no mangos" in found.message


def test_a_template_that_fails_is_no_hot_loop() -> None:
    world = upgraded(a_world(1))
    world.builds["app"] = BuildResult("b", error="ImportError: gone")
    started = 0
    plan = world.turn()
    for _ in range(30):
        started += sum(isinstance(a, actions.StartForkServer) for a in plan.actions)
        plan = world.turn(*(event for action in plan.actions for event in world.effects(action)))
    assert started <= 4
    [replica] = world.replicas()
    assert (replica.state, replica.outgrown) == (ReplicaState.RUNNING, "")
    assert "app_D: ImportError: gone" in view(world).message


def test_a_build_that_does_not_end_is_waited_for_and_named() -> None:
    world = World(a_goal(an_app()))
    world.observed.edition = OLD
    [order] = [a.order for a in world.turn().actions if isinstance(a, actions.StartForkServer)]
    world.observed.apply(events.Started(FORK_SERVER, order.fork_server_id, 5, 1), world.now)
    upgraded(world)
    for _ in range(9):
        plan = world.turn()
        world.turn(*(event for action in plan.actions for event in world.effects(action)))
    found = view(world)
    assert (found.stage, found.fork_servers, found.message) == (
        UpgradeStage.REPLICAS,
        1,
        "app: its build has not ended",
    )
    world.turn(events.BuildFinished(order.fork_server_id, a_build("D", D={})))
    assert view(world).message == ""


def test_proxies_that_do_not_start_leave_the_old_ones_serving_and_the_reason_is_shown() -> None:
    world = upgraded(a_world(1))
    [old] = world.observed.proxies
    [started] = [a.fact.proxy_id for a in world.turn().actions if isinstance(a, actions.StartProxy)]
    plan = world.turn(events.StartFailed(PROXY, started, "ImportError: x"))
    assert verbs(plan) == []
    assert not world.observed.proxies[old].draining
    found = view(world)
    assert (found.stage, found.message, found.proxies) == (
        UpgradeStage.PROXIES,
        "a proxy did not start: ImportError: x",
        1,
    )


def test_back_to_the_edition_of_before_keeps_what_is_of_it_still() -> None:
    world = upgraded(a_world(1))
    kept = set(world.observed.replicas)
    world.turn()
    upgraded(world, OLD, NEW)
    world.run()
    assert stage(world) == UpgradeStage.DONE
    assert set(world.observed.replicas) == kept
    assert editions(world) == {OLD}


def test_the_daemon_tells_each_controller_and_only_news_count() -> None:
    world = upgraded(a_world()).run()
    upgraded(world)
    assert stage(world) == UpgradeStage.DONE
    failed = UpgradeFact("1 0.3.0 cccc", NEW, UpgradeStage.FAILED.value, "its controller exited with 1")
    world.turn(failed)
    assert world.observed.upgrade == failed
    assert view(world).message == "its controller exited with 1"
    assert verbs(world.turn(failed)) == []
    # the files are mended, and it is tried once more
    upgraded(world, "1 0.3.0 cccc", NEW)
    assert stage(world) == UpgradeStage.PROXIES
    assert stage(world.run()) == UpgradeStage.DONE


def test_a_builder_of_before_is_replaced_once_it_has_built() -> None:
    world = a_world(1)
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    [build] = [a for a in world.turn().actions if isinstance(a, actions.StartForkServer)]
    world.turn(events.Started(FORK_SERVER, build.order.fork_server_id, 7, 1))
    upgraded(world)
    world.builds["app"] = replace(world.builds["app"], code_version="c2")
    plan = world.turn(events.BuildFinished(build.order.fork_server_id, world.builds["app"]))
    while plan.actions:
        plan = world.turn(*(event for action in plan.actions for event in world.effects(action)))
    assert (stage(world), editions(world)) == (UpgradeStage.DONE, {NEW})
