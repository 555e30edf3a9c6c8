"""One import serves deployments with different thread counts, unless its pools forbid to fork."""

from dataclasses import replace
from typing import Any

import pytest

from servd.controller.plan import actions
from servd.controller.plan.targets import THREAD_VARIABLES
from tests.core.build import World, a_build, a_goal, an_app

POOLS = "the import left 3 native thread(s) running, 3 of libomp.so.5"


def world_with(fork_unsafe: str = "", **options: dict[str, Any]) -> World:
    """All is done for an application with these deployments."""
    world = World(a_goal(an_app()))
    world.builds["app"] = replace(a_build(*options, **options), fork_unsafe=fork_unsafe)
    world.run()
    return world


def imports(world: World) -> list[dict[str, str]]:
    """Thread counts of each process that has imported the application on its own."""
    return [a.order.default_variables for a in world.log if isinstance(a, actions.StartForkServer)]


def threads(count: int) -> dict[str, str]:
    return dict.fromkeys(THREAD_VARIABLES, str(count))


def cpus(count: float, **options: Any) -> dict[str, Any]:
    return {"ray_actor_options": {"num_cpus": count}, **options}


def test_the_import_happens_once_and_each_replica_gets_its_counts() -> None:
    world = world_with(A=cpus(0.5), B=cpus(4), C={})
    assert imports(world) == [{}]
    found = {replica.deployment: replica.start.default_variables for replica in world.observed.replicas.values()}
    assert found == {"A": threads(1), "B": threads(4), "C": {}}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (cpus(2), [{}, threads(2)]),
        ({}, [{}]),
        (cpus(2, start_method="spawn"), [{}]),
    ],
)
def test_an_import_that_cannot_be_forked_happens_again_with_the_counts(
    options: dict[str, Any], expected: list[dict[str, str]]
) -> None:
    assert imports(world_with(POOLS, D=options)) == expected


def test_an_instance_is_constructed_with_its_counts() -> None:
    world = world_with(D=cpus(2, preload=True))
    assert imports(world) == [{}, threads(2)]
