"""What becomes of a revision of the goal."""

from dataclasses import replace

from servd.controller.plan import events
from servd.controller.plan.status import outcome_of
from servd.ground.states import RevisionOutcome
from servd.wire.messages import BuildResult
from tests.core.build import World, a_build, a_goal, an_app, deployed, fail_starts, redeploy, starting_world

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
