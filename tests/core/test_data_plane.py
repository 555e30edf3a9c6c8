"""Proxies follow the address in force: started, replaced, drained."""

from dataclasses import replace

from servd.controller import events
from servd.controller.data_plane import boot
from servd.controller.goal import Goal
from servd.controller.observed import Observed
from servd.states import DeployMode
from tests.core.build import (
    HTTP,
    World,
    a_goal,
    verbs,
)


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
    world.turn(events.ProxyExited(old, 0))
    [new] = world.observed.proxies.values()
    assert (new.port, new.proxy_id == old) == (9000, False)


def test_a_proxy_that_died_serving_is_replaced_at_once() -> None:
    world = World(a_goal())
    world.run()
    [proxy] = world.observed.proxies
    assert verbs(world.turn(events.ProxyExited(proxy, -9))) == ["StartProxy"]


def test_a_proxy_that_cannot_listen_is_tried_again_later() -> None:
    world = World(a_goal())
    plan = world.turn()
    proxy = next(iter(world.observed.proxies))
    plan = world.turn(events.ProxyStartFailed(proxy, "port taken"))
    assert verbs(plan) == []
    assert 0.0 < plan.wake_at < 20.0


def test_a_silent_proxy_is_replaced() -> None:
    world = World(a_goal())
    world.run()
    world.now = 30.0
    world.turn()
    world.now = 32.0
    assert sorted(verbs(world.turn())) == ["KillProxy", "StartProxy"]
