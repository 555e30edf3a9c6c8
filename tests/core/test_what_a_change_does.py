"""The contract's table: what each changed option of a document does to a deployment that runs."""

from typing import Any

import pytest

from servd.controller.plan import actions
from servd.ground.states import ApplicationStatus, ReplicaState
from tests.core.build import World, a_build, a_goal, an_app, deployed, redeploy, status_of, verbs

NOTHING: list[str] = []
TOLD = ["new options"]
IN_PLACE = ["reconfigure"]
RESTARTED = ["replaced"]


def reasons(world: World) -> list[str]:
    """Why replicas were told something or drained."""
    found = (a for a in world.log if isinstance(a, actions.SetReplicaGoal | actions.DrainReplica))
    return [action.reason for action in found]


@pytest.mark.parametrize(
    ("options", "effect"),
    [
        ({"max_concurrent_queries": 5}, TOLD),
        ({"graceful_shutdown_timeout_s": 3.0}, TOLD),
        ({"health_check_period_s": 3.0}, TOLD),
        ({"health_check_timeout_s": 3.0}, TOLD),
        ({"cancel_on_disconnect": False}, TOLD),
        ({"logging_config": {"log_level": "DEBUG"}}, TOLD),
        ({"max_queued_requests": 7}, NOTHING),
        ({"request_timeout_s": 7.0}, NOTHING),
        ({"num_replicas": 1}, NOTHING),
        ({"autoscaling_config": {"min_replicas": 1}}, NOTHING),
        ({"user_config": {"a": 1}}, IN_PLACE),
        ({"graceful_shutdown_wait_loop_s": 3.0}, IN_PLACE),
        ({"ray_actor_options": {"num_cpus": 2}}, RESTARTED),
        ({"ray_actor_options": {"num_cpus": 1.0}}, NOTHING),
        ({"ray_actor_options": {"runtime_env": {"env_vars": {"A": "1"}}}}, RESTARTED),
        ({"ray_actor_options": {"runtime_env": {"env_vars": {}}}}, NOTHING),
        ({"max_sync_threads": 2}, RESTARTED),
        ({"memory_limit_bytes": 2**40}, RESTARTED),
        ({"start_method": "spawn"}, RESTARTED),
        ({"preload": True}, RESTARTED),
    ],
)
def test_of_an_option(options: dict[str, Any], effect: list[str]) -> None:
    world = deployed()
    [before] = world.replicas()
    world.log.clear()
    redeploy(world, **options).run()
    [after] = world.replicas()
    assert reasons(world) == effect
    assert (after.replica_id == before.replica_id) is (effect is not RESTARTED)
    assert after.start.goal == world.observed.targets[("app", "D")].replica_goal(after.replica_id)
    assert (after.state, status_of(world)) == (ReplicaState.RUNNING, ApplicationStatus.RUNNING)


@pytest.mark.parametrize(("name", "value"), [("max_queued_requests", 7), ("request_timeout_s", 7.0)])
def test_callers_are_told_what_concerns_them(name: str, value: float) -> None:
    world = redeploy(deployed(), **{name: value}).run()
    assert world.observed.published is not None
    assert [getattr(target, name) for target in world.observed.published.targets] == [value]


@pytest.mark.parametrize(
    "fields",
    [
        {"route_prefix": "/fruit", "route_prefix_given": True},
        {"deployments": ({"name": "D", "route_prefix": "/fruit"},)},
    ],
)
def test_of_a_new_prefix_only_routes_change(fields: dict[str, Any]) -> None:
    world = deployed()
    world.goal = a_goal(an_app(deploy_id=2, **fields), revision=2)
    world.log.clear()
    world.run()
    assert verbs(world.log) == ["StartForkServer", "StopForkServer"]
    assert world.observed.published is not None
    assert [route.prefix for route in world.observed.published.routes] == ["/fruit"]


def test_a_second_document_during_a_rollout_redirects_it() -> None:
    world = deployed(num_replicas=3)
    old = {replica.replica_id for replica in world.replicas()}
    redeploy(world, code_version="c2")
    for _ in range(3):
        plan = world.turn()
        world.turn(*(event for action in plan.actions for event in world.effects(action)))
    middle = {replica.replica_id for replica in world.replicas()} - old
    assert middle, "the second version has begun"
    redeploy(world, code_version="c3").run()
    assert len(world.replicas()) == 3
    assert not {replica.replica_id for replica in world.replicas()} & (old | middle)
    assert status_of(world) is ApplicationStatus.RUNNING


def test_back_to_the_version_before_keeps_what_still_runs_of_it() -> None:
    world = deployed(num_replicas=3)
    old = {replica.replica_id for replica in world.replicas()}
    redeploy(world, code_version="c2")
    for _ in range(3):
        plan = world.turn()
        world.turn(*(event for action in plan.actions for event in world.effects(action)))
    left = {r.replica_id for r in world.replicas() if r.state is ReplicaState.RUNNING} & old
    redeploy(world, code_version="c1").run()
    assert left <= {replica.replica_id for replica in world.replicas()}
    assert len(world.replicas()) == 3


def test_a_starting_replica_that_is_told_new_options_stays_starting() -> None:
    world = deployed()
    redeploy(world, num_replicas=2)
    plan = world.turn()
    world.turn(*(event for action in plan.actions for event in world.effects(action)))
    [starting] = [replica for replica in world.replicas() if replica.state is ReplicaState.STARTING]
    redeploy(world, num_replicas=2, max_concurrent_queries=5)
    plan = world.turn()
    world.turn(*(e for a in plan.actions if not isinstance(a, actions.SetReplicaGoal) for e in world.effects(a)))
    told = world.observed.replicas[starting.replica_id]
    assert (told.state, told.start.goal.max_concurrent_queries) == (ReplicaState.STARTING, 5)


def test_an_application_by_value_is_always_new() -> None:
    world = World(a_goal(an_app(application_hash="abc")))
    world.builds["app"] = a_build("D")
    world.run()
    before = {replica.replica_id for replica in world.replicas()}
    world.goal = a_goal(an_app(deploy_id=2, application_hash="abc"), revision=2)
    world.run()
    assert len(world.replicas()) == 1
    assert not before & {replica.replica_id for replica in world.replicas()}


def test_new_code_restarts_every_deployment_of_the_application_and_no_other() -> None:
    other = an_app("other", route_prefix="/other", route_prefix_given=True)
    world = World(a_goal(an_app(), other))
    world.builds = {"app": a_build("D", "E"), "other": a_build("D")}
    world.run()
    before = set(world.observed.replicas)
    bystanders = {replica.replica_id for replica in world.replicas(app="other")}
    world.goal = a_goal(an_app(deploy_id=2), other, revision=2)
    world.builds["app"] = a_build("D", "E", code_version="c2")
    world.run()
    assert before & set(world.observed.replicas) == bystanders
    assert len(world.observed.replicas) == 3
