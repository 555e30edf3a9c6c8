"""Starts that fail beside others that come up: every update ends, the old replicas keep their share, a document heals."""

import pytest

from servd.controller.plan import events
from servd.controller.plan.facts import ReplicaFact
from servd.controller.plan.restarts import failure_threshold
from servd.controller.plan.settle import deployment_status
from servd.controller.plan.start_verdict import try_at_once
from servd.ground.states import ApplicationStatus, DeploymentStatus, ReplicaState
from servd.wire.messages import FORK_SERVER, REPLICA, ReplicaReport
from tests.core.build import (
    World,
    deployed,
    message_of,
    redeploy,
    redeployed,
    report,
    restart_controller,
    status_of,
    verbs,
)

MANY = 400
"""Turns within which every update must have ended, back-off included."""


def play(world: World, come_up: int, turns: int = MANY) -> None:
    """What starts or is reconfigured: so many succeed, all later ones fail. Ends with the application's verdict."""
    judged: set[str] = set()
    for _ in range(turns):
        news: list[events.Event] = []
        for replica in world.replicas():
            if replica.state is ReplicaState.STOPPING:
                news.append(events.Exited(REPLICA, replica.replica_id, 0))
            elif replica.replica_id not in judged and replica.state in (ReplicaState.STARTING, ReplicaState.UPDATING):
                if come_up > 0:
                    news.append(report(replica))
                    come_up -= 1
                else:
                    judged.add(replica.replica_id)
                    news.append(ReplicaReport(replica.replica_id, "failed", error="ValueError: no mangos"))
        world.turn(*news)
        if not news:
            world.now = max(world.now, min(world.wake_at, world.now + 10.0))
            world.turn(*(report(r) for r in world.replicas() if r.state is ReplicaState.RUNNING))
        if world.observed.applications["app"].settled:
            return
    raise AssertionError(f"no end within {turns} turns: {message_of(world)}")


def mended(world: World, turns: int = 30) -> World:
    """Time goes on, and whatever starts from now on comes up."""
    world.run()
    for _ in range(turns):
        ended = [r for r in world.replicas() if r.state is ReplicaState.STOPPING]
        living = [r for r in world.replicas() if r.state is not ReplicaState.STOPPING]
        world.now += 10.0
        world.turn(
            *(events.Exited(REPLICA, replica.replica_id, 0) for replica in ended),
            *(report(replica) for replica in living),
        )
        world.run()
    return world


def shares(world: World) -> tuple[int, int]:
    """(replicas of the target's version that are not STOPPING, those of older ones)."""
    version = world.observed.targets[("app", "D")].version
    living = [r for r in world.replicas() if r.state is not ReplicaState.STOPPING]
    new = sum(r.version == version for r in living)
    return new, len(living) - new


def new_ones(world: World) -> list[ReplicaFact]:
    version = world.observed.targets[("app", "D")].version
    return [r for r in world.replicas() if r.version == version and r.state is not ReplicaState.STOPPING]


@pytest.mark.parametrize(("count", "come_up"), [(2, 1), (4, 1), (4, 3), (10, 2), (10, 5), (60, 20)])
def test_an_update_of_which_only_the_first_replicas_start_ends(count: int, come_up: int) -> None:
    world = redeployed(deployed(num_replicas=count), "c2")
    play(world, come_up)
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert "no mangos" in world.observed.applications["app"].message
    fact = world.observed.deployments[("app", "D")]
    assert fact.failed_starts >= failure_threshold(count)
    assert f"{fact.failed_starts} replicas of the new version or config failed to start" in message_of(world)


@pytest.mark.parametrize(("count", "come_up"), [(2, 1), (4, 1), (10, 5)])
def test_what_is_newer_stops_growing_and_the_old_keep_their_share(count: int, come_up: int) -> None:
    world = redeployed(deployed(num_replicas=count), "c2")
    play(world, come_up)
    came_up = {r.replica_id for r in new_ones(world) if r.state is ReplicaState.RUNNING}
    mended(world)
    assert {r.replica_id for r in new_ones(world)} <= came_up
    assert shares(world) == (come_up, count - come_up)


def test_what_starts_while_the_update_stops_gives_its_place_back() -> None:
    world = redeployed(deployed(num_replicas=10), "c2")
    play(world, 2)
    assert world.observed.deployments[("app", "D")].is_stalled
    mended(world, 1)
    assert shares(world) == (2, 8)


def test_a_stopped_update_fills_what_dies_and_ends_once_no_old_one_is_left() -> None:
    world = redeployed(deployed(num_replicas=2), "c2")
    play(world, 1)
    [old] = [r for r in world.replicas() if r.version != world.observed.targets[("app", "D")].version]
    world.turn(events.Exited(REPLICA, old.replica_id, -9))
    mended(world)
    assert shares(world) == (2, 0)
    fact = world.observed.deployments[("app", "D")]
    assert (fact.failed_starts, fact.is_stalled, fact.trouble) == (0, False, "")


@pytest.mark.parametrize("code_version", ["c1", "c2", "c3"], ids=["rollback", "the same once more", "a good one"])
def test_the_next_document_heals(code_version: str) -> None:
    world = redeployed(deployed(num_replicas=4), "c2")
    play(world, 1)
    mended(redeploy(world, code_version))
    assert status_of(world) is ApplicationStatus.RUNNING
    assert shares(world) == (4, 0)
    assert message_of(world) == ""


def test_a_new_controller_does_not_go_on_with_a_stopped_update() -> None:
    world = redeployed(deployed(num_replicas=4), "c2")
    play(world, 1)
    mended(world)
    assert shares(world) == (1, 3)
    restart_controller(world)
    world.turn(*(report(replica) for replica in world.replicas()))
    mended(world)
    assert shares(world) == (1, 3)


def test_a_config_that_only_the_first_replicas_take_stops_there() -> None:
    world = redeployed(deployed(num_replicas=4), user_config={"a": 1})
    play(world, 1)
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    mended(world)
    configs = [replica.start.goal.user_config for replica in world.replicas()]
    assert configs.count("") >= 2, "what was not asked yet keeps its config"
    mended(redeploy(world, user_config={"a": 2}))
    assert [replica.start.goal.user_config for replica in world.replicas()] == ['{"a": 2}'] * 4


@pytest.mark.parametrize("begin", [0, 2], ids=["first deploy", "more replicas"])
def test_growth_of_which_only_the_first_replicas_start_ends_and_is_tried_on(begin: int) -> None:
    world = redeployed(deployed(num_replicas=max(begin, 1)), "c1" if begin else "c2", num_replicas=5)
    if not begin:
        for replica in world.replicas():
            world.turn(events.Exited(REPLICA, replica.replica_id, 0))
    play(world, 1)
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert "of 5 run" in message_of(world)
    assert shares(mended(world)) == (5, 0), "it is tried on"
    assert message_of(world) == ""


def test_what_failed_when_none_came_up_is_tried_on_and_rolls_once_it_starts() -> None:
    world = redeployed(deployed(num_replicas=2), "c2")
    play(world, 0)
    assert shares(world)[1] == 2
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert shares(mended(world)) == (2, 0)


def test_autoscaled_growth_whose_replicas_fail_is_unhealthy_until_it_is_over() -> None:
    config = {"min_replicas": 1, "max_replicas": 4, "upscale_delay_s": 0.0, "downscale_delay_s": 0.0}
    world = deployed(autoscaling_config={**config, "look_back_period_s": 1.0})
    world.now += 100.0
    [only] = world.replicas()
    world.turn(report(only, ongoing=3))
    for _ in range(60):
        world.now += 1.0
        failed = [r for r in world.replicas() if r.state is ReplicaState.STARTING]
        news = [ReplicaReport(r.replica_id, "failed", error="ValueError: no mangos") for r in failed]
        gone = [events.Exited(REPLICA, r.replica_id, 1) for r in failed]
        world.turn(report(only, ongoing=3), *news, *gone)
    fact = world.observed.deployments[("app", "D")]
    assert (fact.desired, fact.trigger) == (3, "REPLICA_STARTUP_FAILED")
    assert "1 of 3 run" in message_of(world)
    assert status_of(world) is ApplicationStatus.RUNNING, "sticky"
    for _ in range(10):
        world.now += 1.0
        for replica in [r for r in world.replicas() if r.state is ReplicaState.STARTING]:
            world.turn(events.StartLost(REPLICA, replica.replica_id))
        world.turn(report(only, ongoing=0))
    assert world.observed.deployments[("app", "D")].trouble == ""


def test_deployment_status_is_unhealthy_at_the_verdict() -> None:
    world = redeployed(deployed(num_replicas=4), "c2")
    play(world, 1)
    fact, target = world.observed.deployments[("app", "D")], world.observed.targets[("app", "D")]
    assert deployment_status(target, fact, world.observed) is DeploymentStatus.UNHEALTHY


def test_a_fork_server_that_does_not_come_up_again_is_told_though_all_replicas_run() -> None:
    world = deployed(num_replicas=2)
    [server] = world.observed.fork_servers
    world.turn(events.Exited(FORK_SERVER, server, -9))
    assert message_of(world) == "", "its successor is on its way"
    [successor] = world.observed.fork_servers
    plan = world.turn(events.StartFailed(FORK_SERVER, successor, "exited with code 1: the socket directory /r is full"))
    told = message_of(world)
    assert "no other one can be started" in told
    assert "the socket directory /r is full" in told
    world.turn(*(event for action in plan.actions for event in world.effects(action)))
    assert message_of(world) == ""


def test_once_a_place_takes_files_again_nothing_waits_for_its_next_try() -> None:
    world = deployed(num_replicas=2)
    while world.observed.fork_servers:
        [server] = world.observed.fork_servers
        world.turn(events.StartFailed(FORK_SERVER, server, "no room"))
    assert verbs(world.turn()) == []
    try_at_once(world.observed)
    assert verbs(world.turn()) == ["StartForkServer"]
