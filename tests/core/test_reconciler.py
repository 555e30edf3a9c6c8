"""The circle goal -> plan -> facts, in a world that does at once what it is told."""

from dataclasses import replace

import pytest

from servd.controller import actions, events
from servd.controller.goal import Goal
from servd.controller.settle import deployment_status
from servd.controller.status import Identity, application_status, instance_view
from servd.messages import BuildResult, ProxyReport, ReplicaReport
from servd.states import ApplicationStatus, DeploymentStatus, DeployMode, ReplicaState
from tests.core.build import HTTP, World, a_build, a_goal, an_app, verbs

IDENTITY = Identity(1, "a", "w", "n", "127.0.0.1")


def status_of(world: World, app: str = "app") -> ApplicationStatus:
    return application_status(world.observed.applications[app])


def deployed(world: World | None = None, **options: object) -> World:
    world = world or World(a_goal(an_app()))
    world.builds["app"] = a_build("D", D=dict(options))
    return world.run()


def test_an_idle_daemon_opens_the_data_plane_once_booted() -> None:
    from servd.controller.data_plane import boot

    world = World()
    world.goal = boot(world.goal, world.observed, world.settings)
    assert verbs(world.turn()) == ["StartProxy"]


def test_without_http_nothing_is_started_until_serve_runs() -> None:
    from servd.controller.data_plane import boot

    world = World(open_http=False)
    world.goal = boot(world.goal, world.observed, world.settings)
    assert verbs(world.turn()) == []
    world.goal = Goal(1, True, DeployMode.MULTI_APP, HTTP, ())
    assert verbs(world.turn()) == ["StartProxy"]


def test_flags_win_over_stored_options_at_start_and_survive_a_controller_restart() -> None:
    from servd.controller.data_plane import boot
    from servd.controller.observed import Observed

    world = World(a_goal(), http_port=9000)
    world.goal = boot(world.goal, world.observed, world.settings)
    world.turn()
    assert world.observed.data_plane.http is not None
    assert world.observed.data_plane.http.port == 9000
    again = Observed.restore([world.observed.data_plane], 0.0, 0.0)
    assert boot(a_goal(), again, world.settings).http == world.observed.data_plane.http


def test_the_same_facts_give_the_same_plan() -> None:
    plans = [World(a_goal(an_app()), open_http=False).turn() for _ in range(2)]
    assert plans[0] == plans[1]


def test_a_document_is_built_started_and_served() -> None:
    world = deployed(num_replicas=2)
    assert status_of(world) is ApplicationStatus.RUNNING
    assert [r.state for r in world.replicas()] == [ReplicaState.RUNNING] * 2
    assert world.observed.published is not None
    assert [route.prefix for route in world.observed.published.routes] == ["/"]


def test_building_shows_no_deployments_and_no_route() -> None:
    world = World(a_goal(an_app()))
    world.turn()
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=0.0)
    app = view.application("app")
    assert app is not None
    assert (app.status, app.route_prefix, app.deployments) == (ApplicationStatus.DEPLOYING, None, ())


def test_routes_are_registered_before_replicas_run() -> None:
    world = World(a_goal(an_app()))
    plan = world.turn()
    order = next(a for a in plan.actions if verbs([a]) == ["StartForkServer"]).order  # type: ignore[union-attr]
    world.turn(
        events.ForkServerStarted(order.fork_server_id, 5, 1), events.BuildFinished(order.fork_server_id, a_build("D"))
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


def test_a_dead_replica_is_replaced_and_shows() -> None:
    world = deployed()
    dead = world.replicas()[0].replica_id
    world.turn(events.ReplicaExited(dead, -9))
    fact, target = world.observed.deployments[("app", "D")], world.observed.targets[("app", "D")]
    assert deployment_status(target, fact, world.observed) is DeploymentStatus.UNHEALTHY
    assert "signal 9" in fact.trouble
    [successor] = world.replicas()
    assert successor.replica_id != dead
    world.turn(events.ReplicaForked(successor.replica_id, 7, 1), world.running(successor.start.goal))
    fact = world.observed.deployments[("app", "D")]
    assert deployment_status(target, fact, world.observed) is DeploymentStatus.HEALTHY
    assert status_of(world) is ApplicationStatus.RUNNING


def fail_starts(world: World, count: int) -> None:
    for _ in range(count):
        [replica] = [r for r in world.replicas() if r.state is ReplicaState.STARTING]
        report = ReplicaReport(replica.replica_id, "failed", error="ValueError: no mangos")
        world.turn(events.ReplicaReported(report), events.ReplicaExited(replica.replica_id, 1))


def starting_world() -> World:
    world = World(a_goal(an_app()), open_http=False)
    plan = world.turn()
    order = next(a for a in plan.actions if verbs([a]) == ["StartForkServer"]).order  # type: ignore[union-attr]
    world.observed.apply(events.ForkServerStarted(order.fork_server_id, 5, 1), 0.0)
    world.turn(events.BuildFinished(order.fork_server_id, a_build("D")))
    return world


def test_failing_starts_make_the_deployment_unhealthy_and_back_off() -> None:
    world = starting_world()
    fail_starts(world, 2)
    assert status_of(world) is ApplicationStatus.DEPLOYING
    fail_starts(world, 1)
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert "3 times in a row" in world.observed.applications["app"].message
    assert "no mangos" in world.observed.applications["app"].message
    assert world.replicas() == []
    assert 1.0 <= world.wake_at <= 4.0
    world.now = world.wake_at
    assert verbs(world.turn()) == ["StartReplica"]


def test_requests_wait_for_the_successor_of_a_dead_replica_but_not_for_a_failing_start() -> None:
    world = deployed()
    world.turn(events.ReplicaExited(world.replicas()[0].replica_id, -9))
    assert world.observed.published is not None
    assert world.observed.published.targets[0].unavailable == ""
    failing = starting_world()
    fail_starts(failing, 3)
    assert failing.observed.published is not None
    assert "no mangos" in failing.observed.published.targets[0].unavailable


def test_a_late_success_heals_the_deployment_but_not_the_application() -> None:
    world = starting_world()
    fail_starts(world, 3)
    world.now = world.wake_at
    world.run()
    fact, target = world.observed.deployments[("app", "D")], world.observed.targets[("app", "D")]
    assert deployment_status(target, fact, world.observed) is DeploymentStatus.HEALTHY
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED


def test_three_failed_checks_replace_the_replica() -> None:
    world = deployed()
    sick = world.replicas()[0]
    report = ReplicaReport(
        sick.replica_id, "running", applied=sick.config_version, health_failures=3, health_message="out of mangos"
    )
    plan = world.turn(events.ReplicaReported(report))
    assert sorted(verbs(plan)) == ["KillReplica", "StartReplica"]
    assert "out of mangos" in world.observed.deployments[("app", "D")].trouble


def test_a_failed_reconfigure_stops_the_replica() -> None:
    world = deployed()
    world.goal = a_goal(an_app(deploy_id=2, deployments=({"name": "D", "user_config": {"a": 1}},)), revision=2)
    build = world.turn()
    server = next(a for a in build.actions if verbs([a]) == ["StartForkServer"])
    identifier = server.order.fork_server_id  # type: ignore[union-attr]
    world.turn(events.ForkServerStarted(identifier, 5, 1), events.BuildFinished(identifier, world.builds["app"]))
    [replica] = world.replicas()
    assert replica.state is ReplicaState.UPDATING
    plan = world.turn(events.ReplicaReported(ReplicaReport(replica.replica_id, "failed", error="KeyError: 'a'")))
    assert "KillReplica" in verbs(plan)
    assert world.observed.deployments[("app", "D")].failures == 1


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
    world.turn(events.ReplicaExited(drained[0], 0))
    assert [r.deployment for r in world.observed.replicas.values() if r.drain_sent] == ["Market"]


def test_everything_goes_when_the_goal_is_emptied() -> None:
    world = deployed()
    world.goal = Goal(2)
    world.turn()
    assert world.observed.data_plane.http is not None, "the listener closes last"
    plan = world.turn(
        *(events.ReplicaExited(r, 0) for r in list(world.observed.replicas)),
        *(events.ForkServerExited(f, 0) for f in list(world.observed.fork_servers)),
    )
    assert verbs(plan) == ["SetProxyGoal"]
    world.turn(*(events.ProxyExited(p, 0) for p in list(world.observed.proxies)))
    assert not world.observed.applications
    assert not world.observed.replicas
    assert not world.observed.proxies


def test_a_drain_that_takes_too_long_ends_in_a_kill() -> None:
    world = deployed()
    world.goal = a_goal(revision=2)
    world.turn()
    world.now = world.wake_at
    assert world.now == pytest.approx(20.0)
    assert verbs(world.turn()) == ["KillReplica"]


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
        world.turn(events.ForkServerExited(server, -11))
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert "signal 11" in world.observed.applications["app"].message


def test_a_dead_fork_server_is_replaced_and_its_replicas_stay() -> None:
    world = deployed()
    before = world.replicas()
    [server] = world.observed.fork_servers
    world.log.clear()
    world.turn(events.ForkServerExited(server, -9))
    world.run()
    assert world.replicas() == before
    assert len(world.observed.fork_servers) == 1


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


def test_restored_replicas_recover_and_keep_their_processes() -> None:
    from servd.controller.observed import Observed

    world = deployed(num_replicas=2)
    before = {r.replica_id: r.pid for r in world.replicas()}
    facts = [f for f in world.observed.take_changes().values() if f is not None]
    world.observed = Observed.restore(facts, 0.0, 0.0)
    plan = world.turn()
    assert verbs(plan) == []
    assert {r.state for r in world.replicas()} == {ReplicaState.RECOVERING}
    assert world.observed.published is not None
    assert all(len(t.endpoints) == 2 for t in world.observed.published.targets), "adopted replicas stay routed"
    world.turn(*(world.running(r.start.goal) for r in world.replicas()))
    assert {r.state for r in world.replicas()} == {ReplicaState.RUNNING}
    assert {r.replica_id: r.pid for r in world.replicas()} == before
    assert status_of(world) is ApplicationStatus.RUNNING


def test_what_was_starting_when_the_controller_died_starts_on_and_a_lost_order_is_no_failed_start() -> None:
    from servd.controller.observed import Observed

    world = starting_world()
    [lost] = world.replicas()
    facts = [f for f in world.observed.take_changes().values() if f is not None]
    world.observed = Observed.restore(facts, 0.0, 0.0)
    assert [r.state for r in world.replicas()] == [ReplicaState.STARTING]
    world.turn(events.ReplicaStartLost(lost.replica_id))
    [successor] = world.replicas()
    assert successor.replica_id != lost.replica_id
    fact = world.observed.deployments[("app", "D")]
    assert (fact.failures, fact.trouble, fact.dead) == (0, "", ())
    assert status_of(world) is ApplicationStatus.DEPLOYING


def test_a_forked_child_that_never_greets_is_killed_and_its_successor_spawned() -> None:
    world = starting_world()
    [child] = world.replicas()
    world.turn(events.ReplicaForked(child.replica_id, 7, 1))
    assert world.wake_at == pytest.approx(10.0)
    world.now = 10.0
    assert verbs(world.turn()) == []
    world.now = 12.0
    plan = world.turn()
    assert sorted(verbs(plan)) == ["KillReplica", "StartReplica"]
    [start] = [action for action in plan.actions if isinstance(action, actions.StartReplica)]
    assert start.spawn
    world.turn(events.ReplicaExited(child.replica_id, -9))
    fact = world.observed.deployments[("app", "D")]
    assert fact.failures == 0
    assert "said nothing for 12 s" in fact.dead[0].reason


def test_a_forked_child_that_greets_may_construct_for_ever_and_the_message_says_that_it_does() -> None:
    world = starting_world()
    [child] = world.replicas()
    report = ReplicaReport(child.replica_id, "starting")
    world.turn(events.ReplicaForked(child.replica_id, 7, 1), events.ReplicaReported(report))
    assert message_of(world) == ""
    world.now = 31.0
    assert "1 replica(s) have been starting for more than 30 s" in message_of(world)
    world.now = 1000.0
    assert verbs(world.turn()) == []


def message_of(world: World) -> str:
    who = Identity(1, "a", "w", "n", "ip")
    view = instance_view(world.goal, world.observed, world.settings, who, version=1, now=world.now)
    return view.applications[0].deployments[0].message


def test_a_restored_replica_that_stays_silent_is_killed_after_30_s() -> None:
    from servd.controller.observed import Observed

    world = deployed()
    facts = [f for f in world.observed.take_changes().values() if f is not None]
    world.observed = Observed.restore(facts, 0.0, 0.0)
    world.turn()
    assert world.wake_at == pytest.approx(30.0)
    world.now = 30.0
    assert "KillReplica" in verbs(world.turn())


def test_autoscaling_follows_load_and_counts_are_bounded() -> None:
    config = {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_num_ongoing_requests_per_replica": 2.0,
        "upscale_delay_s": 0,
    }
    world = deployed(autoscaling_config=config)
    [replica] = world.replicas()
    busy = ReplicaReport(replica.replica_id, "running", applied=replica.config_version, ongoing=100)
    world.observed.apply(events.ReplicaReported(busy), 0.0)
    world.now = 40.0  # idle samples have left the look-back window
    world.observed.apply(events.ReplicaReported(replace(busy, ongoing=100)), 40.0)
    world.run()
    assert len(world.replicas()) == 3


def test_scale_pins_the_count() -> None:
    from servd.controller.change import scale

    world = deployed(num_replicas=1)
    world.goal = scale(world.goal, "app", "D", 3)
    world.run()
    assert len(world.replicas()) == 3
    world.goal = scale(world.goal, "app", "D", 0)
    world.run()
    assert world.replicas() == []
    assert status_of(world) is ApplicationStatus.RUNNING


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


def test_what_does_not_fit_waits_and_says_what_it_needs() -> None:
    world = deployed(World(a_goal(an_app()), num_gpus=1), num_replicas=2, ray_actor_options={"num_gpus": 1})
    [replica] = world.replicas()
    assert replica.start.variables == {"CUDA_VISIBLE_DEVICES": "0"}
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=0.0)
    assert "num_gpus 1 (0 of 1 free)" in view.applications[0].deployments[0].message
    assert status_of(world) is ApplicationStatus.DEPLOYING


def test_a_scarce_device_is_handed_from_old_to_new() -> None:
    world = deployed(World(a_goal(an_app()), num_gpus=1), ray_actor_options={"num_gpus": 1})
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.builds["app"] = a_build("D", code_version="c2", D={"ray_actor_options": {"num_gpus": 1}})
    world.run()
    assert status_of(world) is ApplicationStatus.RUNNING
    assert len(world.replicas()) == 1


def test_num_cpus_limits_only_with_a_pool() -> None:
    assert len(deployed(num_replicas=3, ray_actor_options={"num_cpus": 64}).replicas()) == 3
    pooled = deployed(World(a_goal(an_app()), num_cpus=2), num_replicas=3, ray_actor_options={"num_cpus": 1})
    assert len(pooled.replicas()) == 2


def test_a_silent_replica_is_replaced_but_only_when_it_is_sure() -> None:
    world = deployed()
    [silent] = world.replicas()
    assert world.wake_at == pytest.approx(30.0)
    world.now = 30.0
    assert verbs(world.turn()) == []
    assert world.wake_at == pytest.approx(32.0)
    world.now = 32.0
    assert "KillReplica" in verbs(world.turn())
    assert "silent for 32 s" in world.observed.deployments[("app", "D")].trouble
    assert silent.replica_id in world.observed.replicas, "it is known until its exit is"


def test_a_report_clears_the_suspicion() -> None:
    world = deployed()
    world.now = 30.0
    world.turn()
    world.now = 31.0
    [replica] = world.replicas()
    [proxy] = world.observed.proxies
    world.turn(world.running(replica.start.goal), events.ProxyReported(ProxyReport(proxy, listening=True)))
    world.now = 32.5
    assert verbs(world.turn()) == []


def test_a_silent_proxy_is_replaced() -> None:
    world = World(a_goal())
    world.run()
    world.now = 30.0
    world.turn()
    world.now = 32.0
    assert sorted(verbs(world.turn())) == ["KillProxy", "StartProxy"]


def test_a_renamed_ingress_serves_until_its_successor_does() -> None:
    world = deployed()
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.builds["app"] = a_build("Renamed", code_version="c2")
    plan = world.turn()
    server = next(a for a in plan.actions if verbs([a]) == ["StartForkServer"]).order.fork_server_id  # type: ignore[union-attr]
    plan = world.turn(events.ForkServerStarted(server, 5, 1), events.BuildFinished(server, world.builds["app"]))
    assert verbs(plan) == ["StartReplica"], "nothing drains yet"
    assert world.observed.published is not None
    assert [route.deployment for route in world.observed.published.routes] == ["app_D"]
    world.run()
    [fresh] = world.replicas("Renamed")
    world.turn(events.ReplicaForked(fresh.replica_id, 6, 1), world.running(fresh.start.goal))
    world.run()
    assert [route.deployment for route in world.observed.published.routes] == ["app_Renamed"]
    assert [replica.drain_sent for replica in world.replicas("D")] == [True]
    world.turn(*(events.ReplicaExited(replica.replica_id, 0) for replica in world.replicas("D")))
    assert status_of(world) is ApplicationStatus.RUNNING


def test_a_renamed_ingress_that_does_not_start_leaves_the_old_one_serving() -> None:
    world = deployed()
    world.goal = a_goal(an_app(deploy_id=2), revision=2)
    world.builds["app"] = a_build("Renamed", code_version="c2")
    plan = world.turn()
    server = next(a for a in plan.actions if verbs([a]) == ["StartForkServer"]).order.fork_server_id  # type: ignore[union-attr]
    world.turn(events.ForkServerStarted(server, 5, 1), events.BuildFinished(server, world.builds["app"]))
    for _ in range(3):
        [replica] = world.replicas("Renamed")
        report = ReplicaReport(replica.replica_id, "failed", error="ValueError: no mangos")
        world.turn(events.ReplicaReported(report), events.ReplicaExited(replica.replica_id, 1))
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert [replica.state for replica in world.replicas("D")] == [ReplicaState.RUNNING]
    assert world.observed.published is not None
    assert [route.deployment for route in world.observed.published.routes] == ["app_D"]
