"""The circle goal -> plan -> facts, in a world that does at once what it is told."""

import pytest

from servd.controller.plan import actions, events
from servd.controller.plan.actions import StopForkServer
from servd.controller.plan.goal import Goal
from servd.controller.shown.status import instance_view
from servd.ground.states import ApplicationStatus, ReplicaState
from servd.wire.build_messages import BuildResult
from servd.wire.messages import FORK_SERVER, PROXY, REPLICA, ReplicaReport
from tests.core.build import (
    IDENTITY,
    World,
    a_build,
    a_goal,
    an_app,
    deployed,
    report,
    status_of,
    verbs,
)


def test_the_same_facts_give_the_same_plan() -> None:
    plans = [World(a_goal(an_app()), open_http=False).turn() for _ in range(2)]
    assert plans[0] == plans[1]


def test_a_document_is_built_started_and_served() -> None:
    world = deployed(num_replicas=2)
    assert status_of(world) is ApplicationStatus.RUNNING
    assert [r.state for r in world.replicas()] == [ReplicaState.RUNNING] * 2
    assert world.observed.published is not None
    assert [route.prefix for route in world.observed.published.routes] == ["/"]


def test_a_large_goal_is_reached_in_steps() -> None:
    world = World(a_goal(an_app()))
    world.builds["app"] = a_build("D", D={"num_replicas": 150})
    starts: list[int] = []
    news: list[events.Event] = []
    for _ in range(12):
        plan = world.turn(*news)
        starts.append(verbs(plan).count("StartReplica"))
        news = [event for action in plan.actions for event in world.effects(action)]
    assert [count for count in starts if count] == [64, 64, 22]
    assert [r.state for r in world.replicas()] == [ReplicaState.RUNNING] * 150


def test_building_shows_no_deployments_and_no_route() -> None:
    world = World(a_goal(an_app()))
    world.turn()
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=0.0)
    app = view.application("app")
    assert app is not None
    assert (app.status, app.route_prefix, app.deployments) == (ApplicationStatus.DEPLOYING, None, ())


def test_documentation_that_only_a_replica_knows_is_shown() -> None:
    world = deployed()
    world.turn(report(world.replicas()[0], docs_path="/custom"))
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=0.0)
    assert [app.docs_path for app in view.applications] == ["/custom"]


def test_routes_are_registered_before_replicas_run() -> None:
    world = World(a_goal(an_app()))
    plan = world.turn()
    order = next(a for a in plan.actions if verbs([a]) == ["StartForkServer"]).order  # type: ignore[union-attr]
    world.turn(
        events.Started(FORK_SERVER, order.fork_server_id, 5, 1),
        events.BuildFinished(order.fork_server_id, a_build("D")),
    )
    assert world.observed.published is not None
    assert [(r.prefix, r.deployment) for r in world.observed.published.routes] == [("/", "app_D")]
    assert world.observed.published.targets[0].endpoints == ()


def test_a_failed_build_leaves_the_old_version_serving() -> None:
    world = deployed()
    before = [r.replica_id for r in world.replicas()]
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.builds["app"] = BuildResult("b", error="ImportError: no module named mango")
    world.run()
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert "mango" in world.observed.applications["app"].message
    assert [r.replica_id for r in world.replicas()] == before


def test_an_override_for_an_unknown_deployment_fails_the_build() -> None:
    world = World(a_goal(an_app(deployments=({"name": "Kiwi"},))))
    deployed(world)
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert "Kiwi" in world.observed.applications["app"].message


def test_an_identical_document_restarts_nothing() -> None:
    world = deployed(num_replicas=2)
    before = world.replicas()
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.log.clear()
    world.run()
    assert status_of(world) is ApplicationStatus.RUNNING
    assert world.replicas() == before
    assert verbs(world.log) == ["StartForkServer", "StopForkServer"]


def test_a_new_code_version_replaces_every_replica() -> None:
    world = deployed(num_replicas=3)
    before = {r.replica_id for r in world.replicas()}
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.builds["app"] = a_build("D", code_version="c2", D={"num_replicas": 3})
    world.run()
    after = {r.replica_id for r in world.replicas()}
    assert len(after) == 3
    assert not before & after
    assert len(world.observed.fork_servers) == 1


def test_user_config_is_applied_in_place() -> None:
    world = deployed()
    pids = [r.pid for r in world.replicas()]
    world.goal = a_goal(an_app(deploy_id=2, deployments=({"name": "D", "user_config": {"a": 1}},)), revision=2)
    world.log.clear()
    world.run()
    assert [r.pid for r in world.replicas()] == pids
    assert world.replicas()[0].start.goal.user_config == '{"a": 1}'
    assert "SetReplicaGoal" in verbs(world.log)


def test_an_empty_env_vars_changes_nothing() -> None:
    world = World(a_goal(an_app(deployments=({"name": "D"},))))
    deployed(world)
    pids = [r.pid for r in world.replicas()]
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.run()
    assert [r.pid for r in world.replicas()] == pids


def test_an_environment_of_its_own_gets_a_fork_server_of_its_own() -> None:
    override = {"name": "D", "ray_actor_options": {"runtime_env": {"env_vars": {"A": "1"}}}}
    world = World(a_goal(an_app(deployments=(override,))))
    world.builds["app"] = a_build("D", "Ingress")
    world.run()
    assert status_of(world) is ApplicationStatus.RUNNING
    servers = {server.fork_server_id: server for server in world.observed.fork_servers.values()}
    assert len(servers) == 2
    assert servers[world.replicas()[0].fork_server_id].order.runtime_env["env_vars"] == {"A": "1"}
    assert servers[world.replicas("Ingress")[0].fork_server_id].order.runtime_env == {}


def test_a_removed_application_is_deleted_callers_first() -> None:
    world = World(a_goal(an_app()))
    world.builds["app"] = a_build("Stand", "Market", "Driver")
    world.run()
    world.goal = a_goal(revision=2)
    plan = world.turn()
    assert status_of(world) is ApplicationStatus.DELETING
    assert {r.state for r in world.observed.replicas.values()} == {ReplicaState.STOPPING}
    drained = [a.goal.replica_id for a in plan.actions if verbs([a]) == ["DrainReplica"]]  # type: ignore[union-attr]
    assert len(drained) == 1
    assert drained[0].startswith("app_Driver#")
    assert world.observed.published is not None
    assert world.observed.published.routes == ()
    still_called = {t.deployment for t in world.observed.published.targets if t.endpoints}
    assert still_called == {"app_Market", "app_Stand"}
    world.turn(events.Exited(REPLICA, drained[0], 0))
    assert [r.deployment for r in world.observed.replicas.values() if r.drain_sent] == ["Market"]


@pytest.mark.parametrize("ingress", ["Driver", "Pilot"])
def test_what_a_new_build_has_not_goes_when_nobody_calls_it_any_more(ingress: str) -> None:
    world = World(a_goal(an_app()))
    world.builds["app"] = a_build("Stand", "Market", "Driver", Driver={"num_replicas": 3})
    world.run()
    before = {replica.replica_id for replica in world.replicas("Driver")}
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.builds["app"] = a_build("Mall", ingress, code_version="c2")
    news: list[events.Event] = []
    gone: list[str] = []
    for _ in range(60):
        plan = world.turn(*news)
        drained = [action.goal.replica_id for action in plan.actions if isinstance(action, actions.DrainReplica)]
        if any(replica_id.startswith(("app_Stand#", "app_Market#")) for replica_id in drained):
            assert not before & set(world.observed.replicas), "its callers live"
        gone += drained
        news = [event for action in plan.actions for event in world.effects(action)]
    assert {replica_id.partition("#")[0] for replica_id in gone} == {"app_Stand", "app_Market", "app_Driver"}
    assert {replica.deployment for replica in world.observed.replicas.values()} == {"Mall", ingress}


def test_everything_goes_when_the_goal_is_emptied() -> None:
    world = deployed()
    world.goal = Goal(2)
    world.turn()
    assert world.observed.data_plane.http is not None, "the listener closes last"
    plan = world.turn(
        *(events.Exited(REPLICA, r, 0) for r in list(world.observed.replicas)),
        *(events.Exited(FORK_SERVER, f, 0) for f in list(world.observed.fork_servers)),
    )
    assert verbs(plan) == ["SetProxyGoal"]
    world.turn(*(events.Exited(PROXY, p, 0) for p in list(world.observed.proxies)))
    assert not world.observed.applications
    assert not world.observed.replicas
    assert not world.observed.proxies


def test_a_second_document_supersedes_a_running_build() -> None:
    world = World(a_goal(an_app()))
    world.turn()
    [first] = world.observed.fork_servers
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    plan = world.turn()
    assert sorted(verbs(plan)) == ["StartForkServer", "StopForkServer"]
    world.turn(events.BuildFinished(first, BuildResult("b", error="late")))
    assert status_of(world) is ApplicationStatus.DEPLOYING


def test_a_build_process_that_dies_is_tried_three_times() -> None:
    world = World(a_goal(an_app()), open_http=False)
    world.turn()
    for _ in range(3):
        assert status_of(world) is ApplicationStatus.DEPLOYING
        [server] = world.observed.fork_servers
        world.turn(events.Exited(FORK_SERVER, server, -11))
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert "signal 11" in world.observed.applications["app"].message


def test_a_dead_fork_server_is_replaced_and_its_replicas_stay() -> None:
    world = deployed()
    before = world.replicas()
    [server] = world.observed.fork_servers
    world.log.clear()
    world.turn(events.Exited(FORK_SERVER, server, -9))
    world.run()
    assert world.replicas() == before
    assert len(world.observed.fork_servers) == 1


def test_a_build_of_the_same_code_leaves_no_second_fork_server_beside_one_that_came_up_meanwhile() -> None:
    world = deployed()
    [old] = world.observed.fork_servers
    result, world.builds = world.builds["app"], {}
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    plan = world.turn(events.Exited(FORK_SERVER, old, -9))
    builder, template = sorted(world.observed.fork_servers.values(), key=lambda server: not server.is_builder)
    assert verbs(plan) == ["StartForkServer"] * 2
    [replica, *_] = world.replicas()
    # the template is ready first and makes a successor
    plan = world.turn(
        events.BuildFinished(template.fork_server_id, result), events.Exited(REPLICA, replica.replica_id, -9)
    )
    assert verbs(plan) == ["StartReplica"]
    world.turn(*(event for action in plan.actions for event in world.effects(action)))
    plan = world.turn(events.BuildFinished(builder.fork_server_id, result))
    assert [a.fork_server_id for a in plan.actions if isinstance(a, StopForkServer)] == [builder.fork_server_id]
    world.turn(events.Exited(FORK_SERVER, builder.fork_server_id, 0))
    world.run()
    assert list(world.observed.fork_servers) == [template.fork_server_id]
    assert status_of(world) is ApplicationStatus.RUNNING


def test_a_prefix_in_use_fails_the_later_build() -> None:
    world = World(a_goal(an_app("app"), an_app("b")))
    world.builds = {"app": a_build("D"), "b": a_build("D")}
    world.run()
    failed = [a for a in world.observed.applications.values() if a.settled == "DEPLOY_FAILED"]
    assert len(failed) == 1
    assert "'/'" in failed[0].message


def test_a_full_name_in_use_fails_the_later_build() -> None:
    world = World(a_goal(an_app("a"), an_app("a_b", route_prefix="/x", route_prefix_given=True)))
    world.builds = {"a": a_build("b_c"), "a_b": a_build("c")}
    world.run()
    failed = [app for app in world.observed.applications.values() if app.settled == "DEPLOY_FAILED"]
    assert len(failed) == 1
    assert "'a_b_c'" in failed[0].message


def test_a_renamed_ingress_serves_until_its_successor_does() -> None:
    world = deployed()
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.builds["app"] = a_build("Renamed", code_version="c2")
    plan = world.turn()
    server = next(a for a in plan.actions if verbs([a]) == ["StartForkServer"]).order.fork_server_id  # type: ignore[union-attr]
    plan = world.turn(events.Started(FORK_SERVER, server, 5, 1), events.BuildFinished(server, world.builds["app"]))
    assert verbs(plan) == ["StartReplica"], "nothing drains yet"
    assert world.observed.published is not None
    assert [route.deployment for route in world.observed.published.routes] == ["app_D"]
    world.run()
    [fresh] = world.replicas("Renamed")
    world.turn(events.Started(REPLICA, fresh.replica_id, 6, 1), world.running(fresh.start.goal))
    world.run()
    assert [route.deployment for route in world.observed.published.routes] == ["app_Renamed"]
    assert [replica.drain_sent for replica in world.replicas("D")] == [True]
    world.turn(*(events.Exited(REPLICA, replica.replica_id, 0) for replica in world.replicas("D")))
    assert status_of(world) is ApplicationStatus.RUNNING


def test_a_renamed_ingress_that_does_not_start_leaves_the_old_one_serving() -> None:
    world = deployed()
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.builds["app"] = a_build("Renamed", code_version="c2")
    plan = world.turn()
    server = next(a for a in plan.actions if verbs([a]) == ["StartForkServer"]).order.fork_server_id  # type: ignore[union-attr]
    world.turn(events.Started(FORK_SERVER, server, 5, 1), events.BuildFinished(server, world.builds["app"]))
    for _ in range(3):
        [replica] = world.replicas("Renamed")
        report = ReplicaReport(replica.replica_id, "failed", error="ValueError: no mangos")
        world.turn(report, events.Exited(REPLICA, replica.replica_id, 1))
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert [replica.state for replica in world.replicas("D")] == [ReplicaState.RUNNING]
    assert world.observed.published is not None
    assert [route.deployment for route in world.observed.published.routes] == ["app_D"]
