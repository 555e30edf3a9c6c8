"""Today's words for how things stand: histories that were recorded of Ray Serve 2.60, replayed by the core."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servd.controller.plan import events
from servd.controller.plan.change import scale
from servd.controller.shown.status import instance_view
from servd.documents.statuses import serve_status
from servd.ground.states import ReplicaState
from servd.rest.bodies import own_status
from servd.rest.today import details
from servd.wire.build_messages import BuildResult
from servd.wire.messages import REPLICA
from tests.core.build import IDENTITY, World, a_goal, an_app, deployed, fail_starts, redeployed, report, starting_world

RECORDED = Path(__file__).parents[1] / "wire" / "today"
AUTO = {
    "min_replicas": 1,
    "max_replicas": 3,
    "target_num_ongoing_requests_per_replica": 1.0,
    "look_back_period_s": 0.5,
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 0.0,
}
Standing = tuple[str, str, str, list[str]]
"""Status of an application, status and trigger of its deployment, and the states of the replicas of that, sorted."""


def recorded(name: str, app: str) -> Standing:
    """What Ray said."""
    return standing_in(json.loads((RECORDED / f"{name}.json").read_text())["applications"][app])


def standing_in(app: dict[str, Any]) -> Standing:
    deployment = next(iter(app["deployments"].values()), {"status": "", "status_trigger": "", "replicas": []})
    states = sorted(replica["state"] for replica in deployment["replicas"])
    return app["status"], deployment["status"], deployment["status_trigger"], states


def told(world: World) -> dict[str, Any]:
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=world.now)
    return json.loads(json.dumps(details(view)["applications"]["app"]))  # type: ignore[no-any-return]


def of_python(world: World) -> tuple[str, str, str]:
    """What `servd.status()` says of the application, why, and of its deployment."""
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=world.now)
    app = serve_status(dict(own_status(replace(view, running=True)))).applications["app"]
    return app.status, app.message, next((str(one.status) for one in app.deployments.values()), "")


def accepted() -> World:
    world = World(a_goal(an_app()))
    world.turn()
    return world


def running(**options: Any) -> World:
    return deployed(num_replicas=2, **options)


def grown(world: World) -> World:
    """The autoscaler has asked for two more; they have not come up."""
    [replica] = world.replicas()
    world.now += 5.0
    world.observed.apply(report(replica, ongoing=3), world.now)
    world.now += 0.6
    world.turn()
    return world


def shrinking(world: World) -> World:
    come_true(world)
    world.now += 5.0
    for replica in world.replicas():
        world.observed.apply(report(replica, ongoing=0), world.now)
    world.now += 3.0
    world.turn()
    return world


def come_true(world: World) -> World:
    """What was ordered has happened: who starts runs, who stops is gone."""
    for _ in range(10):
        before = world.replicas()
        for replica in before:
            if replica.state is ReplicaState.STOPPING:
                world.turn(events.Exited(REPLICA, replica.replica_id, 0))
            elif replica.state is ReplicaState.STARTING:
                world.turn(events.Started(REPLICA, replica.replica_id, 9, 1), World.running(replica.start.goal))
        if world.replicas() == before:
            return world
    raise AssertionError(world.replicas())


def unhealthy() -> World:
    world = deployed()
    [replica] = world.replicas()
    world.turn(report(replica, health_failures=3, health_message="down"))
    return world


def killed() -> World:
    world = deployed()
    [replica] = world.replicas()
    world.now += 100.0
    world.turn(events.Exited(REPLICA, replica.replica_id, -9))
    return world


def failing() -> World:
    world = starting_world()
    for _ in range(3):
        fail_starts(world, 1)
        world.now += 100.0
        world.turn()
    for replica in world.replicas():
        world.observed.forget(replica)
    return world


def unbuildable() -> World:
    world = World(a_goal(an_app()))
    world.builds["app"] = BuildResult("b", error="ModuleNotFoundError: No module named 'nomod'")
    return world.run()


@pytest.mark.parametrize(
    ("name", "app", "world"),
    [
        ("02-deploying-1", "stand", accepted),
        ("02-deploying-5", "auto", starting_world),
        ("03-running", "stand", running),
        ("04-autoscaling-2", "auto", lambda: grown(deployed(autoscaling_config=AUTO))),
        ("04-autoscaling-4", "auto", lambda: come_true(grown(deployed(autoscaling_config=AUTO)))),
        ("04-autoscaling-10", "auto", lambda: shrinking(grown(deployed(autoscaling_config=AUTO)))),
        ("06-failed", "bad", failing),
        ("06-failed", "nomod", unbuildable),
        ("07-unhealthy-2", "down", unhealthy),
        ("08-after-kill", "down", lambda: come_true(killed())),
    ],
)
def test_a_recorded_history_stands_as_it_stood(name: str, app: str, world: Any) -> None:
    assert standing_in(told(world())) == recorded(name, app)
    status, _, deployment = of_python(world())
    assert (status, deployment) == recorded(name, app)[:2]


def test_a_killed_replica_makes_its_deployment_unhealthy_until_the_next_one_runs() -> None:
    world = killed()
    assert standing_in(told(world))[:3] == ("UNHEALTHY", "UNHEALTHY", "HEALTH_CHECK_FAILED")
    assert "D" in told(world)["message"]
    assert of_python(world) == ("UNHEALTHY", told(world)["message"], "UNHEALTHY")
    come_true(world)
    [dead] = told(world)["deployments"]["D"]["recent_dead_replicas"]
    assert (dead["state"], dead["start_time_s"], len(dead["actor_id"])) == ("STOPPED", 0.0, 32)


def test_it_has_shrunk_once_the_others_are_gone() -> None:
    world = come_true(shrinking(grown(deployed(autoscaling_config=AUTO))))
    assert standing_in(told(world)) == ("RUNNING", "HEALTHY", "DOWNSCALE_COMPLETED", ["RUNNING"])
    detail = told(world)["deployments"]["D"]["autoscaling_detail"]
    assert detail["scaling_status"] == "STABLE"
    counts = [(one["prev_num_replicas"], one["curr_num_replicas"]) for one in detail["decisions"]]
    assert counts == [(1, 3), (3, 1)]
    assert all("asks for" in one["reason"] for one in detail["decisions"])


def test_decisions_outlive_the_next_document_and_only_the_last_are_kept() -> None:
    world = deployed(autoscaling_config=AUTO)
    for _ in range(4):
        come_true(shrinking(grown(world)))
    assert len(told(world)["deployments"]["D"]["autoscaling_detail"]["decisions"]) == 5
    redeployed(world, autoscaling_config={**AUTO, "max_replicas": 2})
    assert len(told(world)["deployments"]["D"]["autoscaling_detail"]["decisions"]) == 5


@pytest.mark.parametrize(("count", "status"), [(3, "UPSCALING"), (1, "DOWNSCALING")])
def test_a_count_that_was_set_by_hand_is_scaling_and_no_update(count: int, status: str) -> None:
    world = running()
    world.goal = scale(world.goal, "app", "D", count)
    world.turn()
    deployment = told(world)["deployments"]["D"]
    assert (deployment["status"], deployment["target_num_replicas"]) == (status, count)
    assert f"from 2 to {count}" in deployment["message"]
    assert standing_in(told(come_true(world)))[1] == "HEALTHY"


def test_the_next_document_is_an_update() -> None:
    world = redeployed(running(), "c2")
    assert standing_in(told(world))[:3] == ("DEPLOYING", "UPDATING", "CONFIG_UPDATE_STARTED")


def test_one_that_got_well_after_its_deploy_had_failed_runs() -> None:
    world = starting_world()
    for _ in range(3):
        fail_starts(world, 1)
        world.now += 100.0
        world.turn()
    assert told(world)["status"] == "DEPLOY_FAILED"
    come_true(world)
    assert standing_in(told(world))[:2] == ("RUNNING", "HEALTHY")
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=world.now)
    assert view.applications[0].status == "DEPLOY_FAILED"


def test_what_goes_away_is_deleting() -> None:
    world = running()
    world.goal = a_goal(revision=2)
    world.turn()
    app = told(world)
    assert (app["status"], app["deployment_topology"], app["deployed_app_config"]) == ("DELETING", None, None)
    assert app["deployments"]["D"]["status_trigger"] == "DELETING"
