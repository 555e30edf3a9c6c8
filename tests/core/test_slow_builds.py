"""An import that hangs is told, with where to find its stack."""

from servd.controller.plan import actions, events
from servd.controller.shown.status import instance_view
from servd.ground.settings import SLOW_START_S
from servd.wire.messages import FORK_SERVER
from tests.core.build import IDENTITY, World, a_build, a_goal, an_app, deployed, redeploy


def application_message(world: World) -> str:
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=world.now)
    return view.applications[0].message


def begin_build(world: World) -> str:
    [order] = [a.order for a in world.turn().actions if isinstance(a, actions.StartForkServer)]
    world.observed.apply(events.Started(FORK_SERVER, order.fork_server_id, 5, 1), world.now)
    return order.fork_server_id


def test_an_import_that_hangs_is_told_until_it_ends() -> None:
    world = World(a_goal(an_app()), open_http=False)
    build_id = begin_build(world)
    assert application_message(world) == ""
    world.now = SLOW_START_S + 1
    world.turn()
    assert application_message(world) == (
        f"the build {build_id} has been going on for more than 30 s: the environment or the import is slow; the stack of the "
        "import is in /state/logs/serve/fork_server.log"
    )
    assert [note for note in world.observed.notes if f"build {build_id} has been starting for 31 s" in note]
    world.turn(events.BuildFinished(build_id, a_build("D", D={})))
    assert application_message(world) == ""


def test_a_running_application_says_so_of_its_next_version() -> None:
    world = redeploy(deployed(), num_replicas=2)
    begin_build(world)
    world.now += SLOW_START_S + 1
    world.turn()
    assert "the environment or the import is slow" in application_message(world)
