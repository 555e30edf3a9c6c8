"""What becomes of a revision of the goal."""

import math
from dataclasses import replace

from servd.controller.plan import events
from servd.controller.plan.start_verdict import BUILD_RETRIES, try_at_once
from servd.controller.shown.outcome import outcome_of
from servd.ground.states import ApplicationStatus, RevisionOutcome
from servd.wire.build_messages import BuildResult
from tests.core.build import (
    World,
    a_build,
    a_goal,
    an_app,
    deployed,
    fail_starts,
    redeploy,
    starting_world,
    status_of,
    verbs,
)

RAN, FAILED, UNDECIDED = RevisionOutcome.RAN, RevisionOutcome.FAILED, RevisionOutcome.UNDECIDED


def outcome(world: World) -> RevisionOutcome:
    return outcome_of(world.goal, world.observed)


def test_it_ran_once_all_of_it_runs() -> None:
    world = World(a_goal(an_app()))
    assert outcome(world) is UNDECIDED
    assert outcome(deployed(world)) is RAN
    # the next document is not judged by what the one before has reached
    redeploy(world, "c2")
    assert outcome(world) is UNDECIDED
    assert outcome(world.run()) is RAN


def test_a_build_that_fails_fails_it() -> None:
    world = deployed()
    redeploy(world)
    world.builds["app"] = BuildResult("b", error="ImportError: no module named mango")
    assert outcome(world.run()) is FAILED


def test_starts_that_fail_fail_it() -> None:
    world = starting_world()
    while outcome(world) is UNDECIDED:
        fail_starts(world, 1)
        world.now += 100.0
        world.turn()
    assert outcome(world) is FAILED


def test_one_failure_among_others_fails_it_at_once() -> None:
    world = World(a_goal(an_app("bad", import_path="m:bad", route_prefix="/b", route_prefix_given=True), an_app()))
    world.builds["bad"] = BuildResult("b", error="ImportError")
    assert outcome(world.run()) is FAILED


def test_an_application_is_judged_by_the_revision_that_deployed_it() -> None:
    world = World(a_goal(an_app()))
    world.builds["app"] = BuildResult("b", error="ImportError")
    world.run()
    # the second revision adds one beside it, the third takes that away again
    fresh = an_app("b", 2, route_prefix="/b", route_prefix_given=True)
    world.goal = a_goal(*world.goal.applications, fresh, revision=2)
    world.builds["b"] = replace(a_build("D"), route_prefix="/b")
    assert outcome(world.run()) is RAN
    world.goal = a_goal(world.goal.applications[0], revision=3)
    assert outcome(world.run()) is FAILED


def test_an_empty_goal_has_no_outcome() -> None:
    world = deployed()
    world.goal = a_goal(revision=2)
    assert outcome(world.run()) is UNDECIDED


def test_a_death_after_it_ran_is_no_failure_of_the_revision() -> None:
    world = deployed()
    world.turn(events.Exited("replica", world.replicas()[0].replica_id, 1))
    assert outcome(world) is RAN


def test_a_failed_build_is_tried_again_ever_later_and_may_run_yet() -> None:
    world = World(a_goal(an_app()), open_http=False)
    world.builds["app"] = BuildResult("b", error="flaky")
    tried_at, message = [], "Deploying application app failed: flaky"
    for _ in range(5):
        tried_at.append(world.now)
        world.run()
        app = world.observed.applications["app"]
        assert (status_of(world), app.message, outcome(world)) == (ApplicationStatus.DEPLOY_FAILED, message, FAILED)
        assert not world.observed.fork_servers, "what has failed does not stay"
        assert world.wake_at <= app.build_retry_at
        world.now = app.build_retry_at
    assert tried_at == [0.0, 1.0, 3.0, 7.0, 15.0]
    assert world.now == math.inf
    world.now = 100.0
    world.builds["app"] = a_build("D")
    redeploy(world)
    world.builds["app"] = BuildResult("b", error="flaky")
    world.run()
    assert world.wake_at == 101.0
    world.now = 101.0
    world.builds["app"] = a_build("D")
    world.run()
    app = world.observed.applications["app"]
    assert (status_of(world), app.message, outcome(world)) == (ApplicationStatus.RUNNING, "", RAN)


def test_a_build_that_was_given_up_has_all_its_tries_again_once_a_place_takes_files() -> None:
    world = World(a_goal(an_app()), open_http=False)
    world.builds["app"] = BuildResult("b", error="no room")
    for _ in range(BUILD_RETRIES + 1):
        world.run()
        world.now = world.observed.applications["app"].build_retry_at
    assert world.now == math.inf
    world.now = 4000.0
    try_at_once(world.observed)
    world.run()
    app = world.observed.applications["app"]
    assert (status_of(world), app.build_retries, app.build_retry_at) == (ApplicationStatus.DEPLOY_FAILED, 1, 4002.0)
    world.builds["app"] = a_build("D")
    try_at_once(world.observed)
    world.run()
    assert (status_of(world), outcome(world)) == (ApplicationStatus.RUNNING, RAN)
    try_at_once(world.observed)
    assert verbs(world.turn()) == [], "what is built is not built again"


def test_what_is_deleted_is_not_built_again() -> None:
    world = World(a_goal(an_app()), open_http=False)
    world.builds["app"] = BuildResult("b", error="flaky")
    world.run()
    world.goal = a_goal()
    world.now = 1.0
    world.run()
    assert world.observed.applications == {}


def test_what_the_daemon_refuses_is_refused_once() -> None:
    world = World(a_goal(an_app(deployments=({"name": "Other"},))), open_http=False)
    world.builds["app"] = a_build("D")
    world.run()
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED
    assert world.observed.applications["app"].build_retry_at == math.inf
    try_at_once(world.observed)
    assert world.observed.applications["app"].build_retry_at == math.inf
