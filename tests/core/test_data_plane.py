"""Proxies follow the address in force: started, replaced, drained."""

from dataclasses import replace

import pytest

from servd.calls.routes.table import RouteTable
from servd.controller.plan import actions, events
from servd.controller.plan.data_plane import boot, goal_of
from servd.controller.plan.goal import Goal
from servd.controller.plan.observed import PROXY_DRAIN_S, Observed
from servd.controller.plan.routing import routing
from servd.controller.shown.status import instance_view
from servd.ground.states import DeployMode
from servd.wire.build_messages import BuildResult
from servd.wire.messages import PROXY, ProxyGoal, ProxyReport
from tests.core.build import (
    HTTP,
    IDENTITY,
    World,
    a_build,
    a_goal,
    an_app,
    restart_controller,
    some_settings,
    verbs,
)


def notice_of(world: World) -> str:
    return instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=world.now).notice


def orders(plan: actions.Plan) -> dict[str, tuple[int, ...]]:
    """Which slots who is to stand in for."""
    return {a.goal.proxy_id: a.goal.slots for a in plan.actions if isinstance(a, actions.SetProxyGoal)}


def test_an_idle_daemon_opens_the_data_plane_once_booted() -> None:
    world = World()
    world.goal = boot(world.goal, world.observed, world.settings)
    assert verbs(world.turn()) == ["StartProxy"]


def test_without_http_nothing_is_started_until_serve_runs() -> None:
    world = World(open_http=False)
    world.goal = boot(world.goal, world.observed, world.settings)
    assert verbs(world.turn()) == []
    world.goal = Goal(1, True, DeployMode.MULTI_APP, HTTP, ())
    assert verbs(world.turn()) == ["StartProxy"]


def test_flags_win_over_stored_options_at_start_and_survive_a_controller_restart() -> None:
    world = World(a_goal(), http_port=9000)
    world.goal = boot(world.goal, world.observed, world.settings)
    world.turn()
    assert world.observed.data_plane.http is not None
    assert world.observed.data_plane.http.port == 9000
    again = Observed.restore([world.observed.data_plane], 0.0, 0.0)
    assert boot(a_goal(), again, world.settings).http == world.observed.data_plane.http


def test_a_moved_address_starts_the_new_proxy_before_the_old_one_drains() -> None:
    world = World(a_goal())
    world.run()
    [old] = world.observed.proxies
    world.goal = replace(world.goal, revision=2, http=replace(HTTP, port=9000))
    plan = world.turn()
    assert verbs(plan) == ["StartProxy"]
    world.turn(*(event for action in plan.actions for event in world.effects(action)))
    assert world.observed.proxies[old].draining
    world.turn(events.Exited(PROXY, old, 0))
    [new] = world.observed.proxies.values()
    assert (new.port, new.proxy_id == old) == (9000, False)


def test_a_proxy_that_died_serving_is_replaced_at_once() -> None:
    world = World(a_goal())
    world.run()
    [proxy] = world.observed.proxies
    assert verbs(world.turn(events.Exited(PROXY, proxy, -9))) == ["StartProxy"]


def test_a_proxy_that_cannot_listen_is_tried_again_later() -> None:
    world = World(a_goal())
    plan = world.turn()
    proxy = next(iter(world.observed.proxies))
    plan = world.turn(events.StartFailed(PROXY, proxy, "port taken"))
    assert verbs(plan) == []
    assert 0.0 < plan.wake_at < 20.0


def test_however_often_a_proxy_failed_to_start_the_next_try_comes_within_seconds_and_the_status_tells() -> None:
    world = World(a_goal())
    world.turn()
    for _ in range(20):
        [proxy] = world.observed.proxies
        plan = world.turn(events.StartFailed(PROXY, proxy, "no process is left"))
        assert 0.0 < plan.wake_at - world.now <= 3.0
        assert "1 of 1 proxies cannot be started: no process is left." in notice_of(world)
        world.now = plan.wake_at
        assert verbs(world.turn()) == ["StartProxy"]
    [proxy] = world.observed.proxies
    world.turn(ProxyReport(proxy, listening=True))
    assert notice_of(world) == ""


def test_a_proxy_that_died_while_no_controller_lived_is_replaced_at_once() -> None:
    world = World(a_goal())
    world.run()
    [proxy] = restart_controller(world).observed.proxies
    assert verbs(world.turn(events.Exited(PROXY, proxy, -9))) == ["StartProxy"]


def test_a_neighbour_stands_in_for_a_proxy_that_cannot_be_started_and_only_as_long() -> None:
    world = World(a_goal(), proxies=3)
    world.run()
    dead, neighbour, other = world.observed.proxies
    plan = world.turn(events.Exited(PROXY, dead, -9))
    assert verbs(plan) == ["StartProxy"], "its successor takes what waits"
    [successor] = world.observed.proxies.keys() - {neighbour, other}
    plan = world.turn(events.StartFailed(PROXY, successor, "no process is left"))
    assert orders(plan) == {neighbour: (0,)}
    assert orders(world.turn()) == {}
    world.now = plan.wake_at
    [action] = [action for action in world.turn().actions if isinstance(action, actions.StartProxy)]
    plan = world.turn(ProxyReport(action.fact.proxy_id, listening=True))
    assert orders(plan) == {neighbour: ()}
    assert world.observed.proxies[other].slots == ()


def test_who_stands_in_and_dies_is_followed_by_the_next() -> None:
    world = World(a_goal(), proxies=3)
    world.run()
    first, second, third = world.observed.proxies
    world.turn(events.Exited(PROXY, first, -9))
    [successor] = world.observed.proxies.keys() - {second, third}
    world.turn(events.StartFailed(PROXY, successor, "no process is left"))
    assert orders(world.turn(events.Exited(PROXY, second, -9))) == {third: (0, 1)}


def test_a_silent_proxy_is_replaced() -> None:
    world = World(a_goal())
    world.run()
    world.now = 30.0
    world.turn()
    world.now = 32.0
    assert sorted(verbs(world.turn())) == ["KillProxy", "StartProxy"]


def test_a_proxy_that_speaks_but_never_listens_is_replaced_after_60_s() -> None:
    world = World(a_goal())
    world.turn()
    world.turn()
    [proxy] = world.observed.proxies
    for now in (20.0, 40.0, 59.0):
        world.now = now
        plan = world.turn(ProxyReport(proxy, listening=False))
        assert verbs(plan) == []
    assert plan.wake_at == 60.0
    world.now = 60.0
    assert sorted(verbs(world.turn())) == ["KillProxy", "StartProxy"]
    assert "does not listen after 60 s" in world.observed.notes[-1]


def test_prefixes_of_the_stored_goal_are_known_before_their_builds_end() -> None:
    hidden = an_app("c", route_prefix=None, route_prefix_given=True)
    world = World(a_goal(an_app("a", route_prefix="/a", route_prefix_given=True), an_app("b"), hidden))
    world.goal = boot(world.goal, world.observed, world.settings)
    world.run()
    found = routing(world.observed, ())
    assert [(route.prefix, route.deployment, route.is_starting) for route in found.routes] == [
        ("/", "application 'b'", True),
        ("/a", "application 'a'", True),
    ]
    # the caller refuses at once; it does not wait for a name that will never be
    assert {target.deployment for target in found.targets if target.unavailable} == {r.deployment for r in found.routes}
    table = RouteTable()
    table.update(found.routes, 1)
    assert table.as_document() == {}, "/-/routes shows what serves"
    world.goal = boot(restart_controller(world).goal, world.observed, world.settings)
    world.run()
    assert routing(world.observed, ()).routes == found.routes, "another controller knows as much"
    [builder] = [server for server in world.observed.fork_servers.values() if server.app == "a"]
    world.turn(events.BuildFinished(builder.fork_server_id, a_build("D")))
    assert [(r.prefix, r.deployment) for r in routing(world.observed, ()).routes if not r.is_starting] == [
        ("/a", "a_D")
    ]
    [builder] = [server for server in world.observed.fork_servers.values() if server.app == "b"]
    world.turn(events.BuildFinished(builder.fork_server_id, BuildResult("b", error="no such module")))
    assert [route.prefix for route in routing(world.observed, ()).routes] == ["/a"], "what failed is not about to serve"


def test_a_prefix_that_was_just_sent_is_unknown_until_its_build_ends() -> None:
    world = World(a_goal(an_app("a")))
    world.goal = boot(world.goal, world.observed, world.settings)
    world.goal = a_goal(an_app("a", deploy_id=2, route_prefix="/new", route_prefix_given=True), revision=2)
    world.run()
    assert routing(world.observed, ()).routes == ()


def test_a_proxy_that_somebody_sent_sigterm_gets_its_successor_at_once() -> None:
    world = World(a_goal(), proxies=2)
    world.run()
    leaving, other = world.observed.proxies
    plan = world.turn(ProxyReport(leaving, listening=False))
    assert verbs(plan) == ["StartProxy"]
    world.turn(*(event for action in plan.actions for event in world.effects(action)))
    world.turn(events.Exited(PROXY, leaving, 0))
    assert sorted(proxy.slot for proxy in world.observed.proxies.values()) == [0, 1]
    assert other in world.observed.proxies
    assert world.observed.data_plane.proxy_failures == 0


def test_a_proxy_whose_drain_takes_too_long_is_killed() -> None:
    world = World(a_goal())
    world.run()
    [leaving] = world.observed.proxies
    world.turn(ProxyReport(leaving, listening=False))
    world.now = 21.0
    assert "KillProxy" in verbs(world.turn())


def test_with_fewer_proxies_the_last_slots_drain_and_with_more_they_are_filled() -> None:
    world = World(a_goal(), proxies=3)
    world.run()
    world.settings = some_settings(proxies=1)
    world.run()
    assert [proxy.slot for proxy in world.observed.proxies.values()] == [0]
    world.settings = some_settings(proxies=2)
    world.run()
    assert [proxy.slot for proxy in world.observed.proxies.values()] == [0, 1]


def test_other_times_of_idle_connections_need_other_proxies() -> None:
    world = World(a_goal())
    world.run()
    (before,) = world.observed.proxies.values()
    world.goal = replace(world.goal, revision=2, http=replace(HTTP, keep_alive_timeout_s=5.0))
    world.run()
    (after,) = world.observed.proxies.values()
    # the new one listens before the old one drains
    assert (before.keep_alive_timeout_s, after.keep_alive_timeout_s) == (0.0, 5.0)
    told = [type(action).__name__ for action in world.log if not isinstance(action, actions.Publish)]
    assert told[-2:] == ["StartProxy", "SetProxyGoal"]


def test_who_serves_an_address_given_up_goes_on_until_its_successor_listens_whoever_plans() -> None:
    world = World(a_goal())
    world.run()
    (before,) = world.observed.proxies
    world.goal = replace(world.goal, revision=2, http=replace(HTTP, keep_alive_timeout_s=5.0))
    # nobody has reported to this one yet
    restart_controller(world)
    plan = world.turn()
    assert orders(plan) == {}
    assert not world.observed.proxies[before].draining
    # what never listened has nobody to serve
    (new,) = set(world.observed.proxies) - {before}
    world.goal = replace(world.goal, revision=3, http=replace(HTTP, keep_alive_timeout_s=6.0))
    assert list(orders(world.turn())) == [new]


@pytest.mark.parametrize(("port", "is_replaced"), [(HTTP.grpc_port, True), (HTTP.grpc_port + 1, False)])
def test_a_proxy_that_greets_again_is_told_what_it_was_told(port: int, is_replaced: bool) -> None:
    world = World(a_goal())
    world.run()
    (proxy,) = world.observed.proxies.values()
    assert goal_of(proxy, world.observed, drain=False) == ProxyGoal(proxy.proxy_id, slots=proxy.slots)
    world.observed.put(replace(world.observed.data_plane, http=replace(HTTP, grpc_port=port)))
    told = goal_of(proxy, world.observed, drain=True)
    assert told == ProxyGoal(proxy.proxy_id, True, PROXY_DRAIN_S, is_replaced=is_replaced)
