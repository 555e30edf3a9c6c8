"""What the controller itself knows, as metrics."""

from typing import Any

import pytest

from servd.controller.plan import events
from servd.controller.status_metrics import loop_metrics, status_metrics
from servd.documents.controller_views import ControllerHealth, Spread
from servd.observability.measures import Distribution
from servd.wire.build_messages import BuildResult
from servd.wire.messages import ProxyReport
from tests.core.build import World, a_goal, an_app, deployed, fail_starts, redeploy, report, starting_world


def values(world: World, name: str) -> dict[str, Any]:
    """Samples of a metric, by their labels in order."""
    found = next(family for family in status_metrics(world.observed, world.now) if family.name == f"serve_{name}")
    return {"/".join(value for _, value in pairs): value for pairs, value in found.samples}


def statuses(world: World) -> tuple[int | None, int | None]:
    deployments = values(world, "deployment_status")
    return values(world, "application_status").get("app"), deployments.get("app_D/app")


def test_statuses_are_told_as_codes() -> None:
    world = deployed()
    assert statuses(world) == (6, 6)
    (replica,) = world.replicas()
    tags = f"app_D/{replica.replica_id}/app"
    world.turn(report(replica, ongoing=25, health_failures=1))
    assert values(world, "replica_utilization_percent") == {tags: 25.0}
    assert values(world, "deployment_replica_healthy") == {tags: 0}
    assert values(world, "replica_startup_latency_ms") == {tags: Distribution(0.0).sample()}
    redeploy(world, "c2").turn()
    assert statuses(world) == (5, 6), "the code before goes on"
    assert statuses(starting_world()) == (5, 3)
    failing = starting_world()
    fail_starts(failing, 3)
    assert statuses(failing) == (1, 2)
    broken = World(a_goal(an_app()), open_http=False)
    broken.builds["app"] = BuildResult("b", error="no such module")
    assert statuses(broken.run()) == (1, None)
    world.goal = a_goal()
    world.turn()
    assert statuses(world)[0] == 4


def test_counts_of_replicas() -> None:
    world = deployed(num_replicas=2)
    names = ("wanted_replicas", "running_replicas", "replica_failures_total")

    def counts() -> list[int]:
        return [values(world, f"deployment_{name}")["app_D/app"] for name in names]

    assert counts() == [2, 2, 0]
    world.turn(events.Exited("replica", world.replicas()[0].replica_id, -9))
    assert counts() == [2, 1, 1]


def test_the_controllers_own_loop() -> None:
    turns, duration = loop_metrics(ControllerHealth(turns=7, turn=Spread(0.25)))
    assert (turns.samples, duration.samples) == ((((), 7),), (((), 0.25),))


def test_proxies() -> None:
    world = World(a_goal())
    [start] = [action for action in world.turn().actions if type(action).__name__ == "StartProxy"]
    world.turn(events.Started("proxy", start.fact.proxy_id, 5, 1))  # type: ignore[union-attr]
    assert list(values(world, "proxy_status").values()) == [1]
    (proxy,) = world.observed.proxies
    world.turn(ProxyReport(proxy, listening=True))
    assert values(world, "proxy_status") == {proxy: 2}
    world.now += 1000
    assert values(world, "proxy_status") == {proxy: 3}


SCALED = {"min_replicas": 1, "max_replicas": 4, "target_num_ongoing_requests_per_replica": 2, "upscale_delay_s": 0.0}


@pytest.mark.parametrize(("low", "code"), [(1, 4), (3, 5)])
def test_what_is_autoscaled(low: int, code: int) -> None:
    world = deployed(autoscaling_config={**SCALED, "min_replicas": low, "downscale_delay_s": 0.0})
    assert values(world, "autoscaling_target_replicas") == {"app_D/app": low}
    assert values(world, "autoscaling_target_ongoing_requests") == {"app_D/app": 2}
    plan = world.turn(*(report(replica, ongoing=11) for replica in world.replicas()))
    assert values(world, "autoscaling_desired_replicas")["app_D/app"] == -(-11 * low // 2)
    assert values(world, "autoscaling_total_requests") == {"app_D/app": 11.0 * low}
    assert statuses(world) == (6, 4)
    world.turn(*(event for action in plan.actions for event in world.effects(action)))
    assert (statuses(world), values(world, "autoscaling_target_replicas")) == ((6, 6), {"app_D/app": 4})
    if code == 5:
        world.now += 100
        world.turn(*(report(replica) for replica in world.replicas()))
        world.now += 100
        world.turn()
        assert values(world, "autoscaling_target_replicas") == {"app_D/app": low}
        assert statuses(world) == (6, 5)


@pytest.mark.parametrize(
    ("config", "load", "expected"),
    [
        ({}, 20, 6),  # the mean of a fifth of the window
        ({"aggregation_function": "max"}, 20, 30),
        ({"aggregation_function": "min"}, 20, 0),
        ({"upscaling_factor": 0.5}, 20, 5),
        ({"downscaling_factor": 0.5}, 20, 6),
        ({"downscaling_factor": 0.5}, 0, 2),
    ],
)
def test_what_autoscaling_desires_is_what_the_plan_reckons_with(
    config: dict[str, Any], load: int, expected: int
) -> None:
    world = deployed(autoscaling_config={**SCALED, "min_replicas": 3, **config})
    for passed_s, ongoing in ((24.0, 0), (6.0, load)):
        world.now += passed_s
        world.turn(*(report(replica, ongoing=ongoing) for replica in world.replicas()))
    world.now += 6.0
    assert values(world, "autoscaling_desired_replicas") == {"app_D/app": expected}
