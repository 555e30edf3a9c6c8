"""`preload`: a template of its own per version of the deployment, in the core."""

from dataclasses import replace
from typing import Any

import pytest

from servd.controller.plan import actions, events
from servd.controller.plan.goal import ApplicationGoal
from servd.controller.plan.silence import MUTE_S, SILENT_S, SURE_S
from servd.controller.plan.targets import resolve
from servd.exceptions import DeployError
from servd.ground.settings import SLOW_START_S
from servd.ground.states import ApplicationStatus
from servd.wire.build_messages import BuildResult, BuiltDeployment
from servd.wire.messages import FORK_SERVER
from tests.core.build import (
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
    status_of,
)

THREADS = "the constructor left 1 thread(s) running: poller"


def template(world: World) -> Any:
    """The one template that constructs an instance."""
    [found] = [server for server in world.observed.fork_servers.values() if server.preload_key]
    return found


def constructing(**options: Any) -> World:
    """A world whose template has begun."""
    world = World(a_goal(an_app()), open_http=False)
    for result in (a_build("D", D={"preload": True, **options}), None):
        plan = world.turn()
        for order in [a.order for a in plan.actions if isinstance(a, actions.StartForkServer)]:
            world.observed.apply(events.Started(FORK_SERVER, order.fork_server_id, 5, 1), world.now)
            if result is not None:
                world.observed.apply(events.BuildFinished(order.fork_server_id, result), world.now)
    return world


def built(world: World, **result: Any) -> events.BuildFinished:
    return events.BuildFinished(template(world).fork_server_id, BuildResult("b", **result))


def run_with(world: World, **result: Any) -> World:
    """Everything that is ordered happens, and templates that construct an instance end like this."""
    for _ in range(60):
        plan = world.turn()
        if not plan.actions:
            return world
        for action in plan.actions:
            for event in world.effects(action):
                preloads = isinstance(action, actions.StartForkServer) and action.order.preload
                if isinstance(event, events.BuildFinished) and preloads:
                    world.observed.apply(replace(event, result=BuildResult("b", **result)), world.now)
                else:
                    world.observed.apply(event, world.now)
    raise AssertionError("no fixed point")


def parents(world: World) -> set[str]:
    return {replica.fork_server_id for replica in world.replicas()}


def test_all_replicas_are_forked_from_a_template_of_their_own() -> None:
    world = deployed(preload=True, num_replicas=3)
    assert parents(world) == {template(world).fork_server_id}
    assert template(world).order.preload == "D"
    assert all(replica.was_forked for replica in world.replicas())
    assert list(world.observed.fork_servers.values()) == [template(world)], "nobody needs the builder"
    assert status_of(world) is ApplicationStatus.RUNNING


def test_two_deployments_have_two_templates() -> None:
    world = World(a_goal(an_app()))
    world.builds["app"] = a_build("A", "B", "C", A={"preload": True}, B={"preload": True})
    world.run()
    assert sorted(s.order.preload for s in world.observed.fork_servers.values()) == ["", "A", "B"]


def test_no_replica_starts_before_the_instance_is_there() -> None:
    world = constructing()
    assert not world.replicas()
    world.turn(built(world))
    assert [replica.fork_server_id for replica in world.replicas()] == [template(world).fork_server_id]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [({"num_replicas": 4}, True), ({"user_config": {"a": 1}}, True), ({"max_sync_threads": 2}, False)],
)
def test_a_version_keeps_its_template(change: dict[str, Any], is_same: bool) -> None:
    world = deployed(preload=True, num_replicas=2)
    before = template(world).fork_server_id
    redeploy(world, preload=True, **change).run()
    assert (template(world).fork_server_id == before) is is_same
    assert status_of(world) is ApplicationStatus.RUNNING


def test_new_code_has_a_new_template_and_the_old_one_goes() -> None:
    world = deployed(preload=True)
    before = template(world).fork_server_id
    redeploy(world, "c2").run()
    assert template(world).fork_server_id != before
    assert parents(world) == {template(world).fork_server_id}


def test_a_template_that_is_killed_is_started_again_and_its_replicas_stay() -> None:
    world = deployed(preload=True, num_replicas=2)
    replicas, before = {r.replica_id for r in world.replicas()}, template(world).fork_server_id
    world.observed.apply(events.Exited(FORK_SERVER, before, -9), world.now)
    world.run()
    assert {r.replica_id for r in world.replicas()} == replicas
    assert template(world).fork_server_id != before
    assert not world.observed.deployments[("app", "D")].failures


def test_a_template_that_does_not_come_up_again_is_tried_ever_more_seldom_though_all_replicas_run() -> None:
    world = deployed(preload=True, num_replicas=2)
    world.observed.apply(events.Exited(FORK_SERVER, template(world).fork_server_id, -9), world.now)
    run_with(world, error="ValueError: broken")
    assert world.observed.deployments[("app", "D")].failures == 6
    assert status_of(world) is ApplicationStatus.RUNNING
    for failures in (7, 8):
        world.now += 60.0
        run_with(world, error="ValueError: broken")
        assert world.observed.deployments[("app", "D")].failures == failures
    world.now += 60.0
    world.run()
    assert not world.observed.deployments[("app", "D")].failures
    assert len(world.replicas()) == 2


def test_an_instance_that_cannot_be_forked_is_made_by_each_replica() -> None:
    world = World(a_goal(an_app()))
    world.builds["app"] = a_build("D", D={"preload": True, "num_replicas": 2})
    run_with(world, fork_unsafe=THREADS)
    [server] = world.observed.fork_servers.values()
    assert (server.preload_key, server.order.preload) == ("", "")
    assert all(replica.was_forked for replica in world.replicas())
    assert message_of(world) == f"preload has no effect, each replica constructs its own instance: {THREADS}"
    assert status_of(world) is ApplicationStatus.RUNNING
    # the verdict holds for this version, whatever its counts and whoever is the controller
    restart_controller(world)
    world.log.clear()
    redeploy(world, preload=True, num_replicas=3)
    run_with(world)
    assert THREADS in message_of(world)
    assert not [a for a in world.log if isinstance(a, actions.StartForkServer) and a.order.preload]
    redeploy(world, "c2", preload=True)
    run_with(world)
    assert (template(world).order.preload, message_of(world)) == ("D", "")


def test_a_constructor_that_raises_is_a_failed_start_and_tried_again_later() -> None:
    world = constructing()
    for _ in range(3):
        error = "Traceback ...\nValueError: no weights"
        [old] = [s for s in world.observed.fork_servers.values() if s.preload_key and s.result is None]
        plan = world.turn(events.BuildFinished(old.fork_server_id, BuildResult("b", error=error)))
        assert [a.fork_server_id for a in plan.actions if isinstance(a, actions.StopForkServer)] == [old.fork_server_id]
        assert "ValueError: no weights" in message_of(world)
        assert "failed start" in message_of(world) or "wrong code" in message_of(world)
        world.turn(events.Exited(FORK_SERVER, old.fork_server_id, 0))
        world.now = min(world.wake_at, world.now + 3600)
        world.turn()
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    world.turn(built(world))
    assert world.replicas(), "the next try came up"


@pytest.mark.parametrize(("code", "text"), [(3, "exited with code 3"), (-9, "exited with signal 9")])
def test_a_constructor_that_ends_its_process_is_a_failed_start(code: int, text: str) -> None:
    world = constructing()
    for _ in range(3):
        plan = world.turn(events.Exited(FORK_SERVER, template(world).fork_server_id, code))
        assert f"the template process {text} before it was ready" in message_of(world)
    assert not [a for a in plan.actions if isinstance(a, actions.StartForkServer)], "the next try waits"
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    world.now = world.wake_at
    world.turn()
    world.turn(built(world))
    assert world.replicas()


def test_a_template_that_ended_while_no_controller_lived_costs_one_try_and_no_wait() -> None:
    world = constructing()
    lost = template(world).fork_server_id
    restart_controller(world)
    world.turn(events.Exited(FORK_SERVER, lost, None))
    assert template(world).fork_server_id != lost, "the next one starts at once"
    plan = world.turn(built(world))
    world.turn(*(event for action in plan.actions for event in world.effects(action)))
    assert status_of(world) is ApplicationStatus.RUNNING
    assert message_of(world) == ""
    assert not world.observed.deployments[("app", "D")].failures


def test_a_constructor_that_hangs_is_told() -> None:
    world = constructing()
    world.now = SLOW_START_S + 1
    world.turn()
    assert "the import or the constructor is slow; its stack is in /state/logs/serve/fork_server.log" in message_of(
        world
    )
    assert any("template" in note and "has been starting for 31 s" in note for note in world.observed.notes)


def test_children_that_say_nothing_end_the_preload() -> None:
    world = constructing()
    plan = world.turn(built(world))
    [start] = [a for a in plan.actions if isinstance(a, actions.StartReplica)]
    world.observed.apply(events.Started("replica", start.start.replica_id, 7, 1), world.now)
    for seconds in (MUTE_S + 1, SURE_S):
        world.now += seconds
        world.turn()
    world.turn(events.Exited("replica", start.start.replica_id, -9))
    assert "said nothing" in world.observed.deployments[("app", "D")].unfit_reason
    assert [r.was_forked for r in world.replicas()] == [False]


@pytest.mark.parametrize("preload", [True, False])
def test_one_that_carries_out_no_order_is_replaced_and_its_replicas_stay(preload: bool) -> None:
    world = deployed(preload=preload, num_replicas=2)
    [stopped] = parents(world)
    old = {replica.replica_id for replica in world.replicas()}
    redeployed(world, num_replicas=3)
    [ordered] = [replica for replica in world.replicas() if not replica.pid]
    assert ordered.fork_server_id == stopped
    plan = world.turn()
    for seconds in (SILENT_S, SURE_S):
        assert not plan.actions
        world.now += seconds
        # the others live
        plan = world.turn(*(report(replica) for replica in world.replicas() if replica.pid))
    assert [a.fork_server_id for a in plan.actions if isinstance(a, actions.StopForkServer)] == [stopped]
    why = f"{stopped} forked no replica within {SILENT_S:.0f} s"
    assert any(why in note for note in world.observed.notes)
    # by default it is ended as soon as that is long
    assert "carries out no order" in message_of(world)
    failed = events.StartFailed("replica", ordered.replica_id, "its fork server died before it was forked")
    begun = [e for a in plan.actions if isinstance(a, actions.StartForkServer) for e in world.effects(a)]
    for news in (failed, events.Exited(FORK_SERVER, stopped, -9), *begun):
        world.observed.apply(news, world.now)
    assert why in message_of(world)
    world.run()
    assert old < {replica.replica_id for replica in world.replicas()}
    assert parents(world) - {stopped}
    assert status_of(world) is ApplicationStatus.RUNNING


@pytest.mark.parametrize(
    ("options", "is_function", "text"),
    [
        ({"preload": True}, True, "is a function"),
        ({"preload": True, "start_method": "spawn"}, False, "leave one of the two out"),
        ({"preload": True}, False, ""),
        ({"start_method": "spawn"}, True, ""),
    ],
)
def test_preload_is_for_classes_that_are_forked(options: dict[str, Any], is_function: bool, text: str) -> None:
    app: ApplicationGoal = an_app()
    build = BuildResult("b", deployments=(BuiltDeployment("D", options, is_function=is_function),), ingress="D")
    if not text:
        resolve(app, build, "c")
        return
    with pytest.raises(DeployError, match=text):
        resolve(app, build, "c")
