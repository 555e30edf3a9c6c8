"""What options of today's documents do to counts and to updates."""

import json
import logging
import random
from dataclasses import replace
from typing import Any

import pytest

from servd.calls.request_router import RequestRouter
from servd.controller.plan.autoscaler import AUTOSCALING_DEFAULTS, Samples, at_capacity, decide, factor, loads_of
from servd.controller.plan.change import put, put_application
from servd.controller.plan.facts import ReplicaFact
from servd.controller.plan.goal import Goal
from servd.controller.plan.rollout import next_step, rolling_step, surge
from servd.controller.plan.routing import routing
from servd.controller.plan.targets import resolve, wanted_count
from servd.documents.control_plane import ApplicationDocument, GoalDocument
from servd.documents.sent import HttpWish
from servd.exceptions import DeployError
from servd.ground.states import ApplicationStatus, DeployMode, ReplicaState
from servd.observability.described import LONGEST_MESSAGE, NO_TEXT
from servd.observability.line_formatter import LineFormatter
from servd.observability.log_lines import head_of
from servd.observability.logs import style_of
from servd.proxy.forwarder import answer_failure
from servd.wire.messages import DeploymentTargets
from tests.core.build import (
    HTTP,
    World,
    a_build,
    a_goal,
    a_replica,
    an_app,
    deployed,
    fail_starts,
    redeploy,
    starting_world,
    status_of,
    verbs,
)
from tests.core.test_change import situation

LETTERS = {"S": ReplicaState.STARTING, "R": ReplicaState.RUNNING, "X": ReplicaState.STOPPING}


def replicas(new: str, old: str) -> list[ReplicaFact]:
    return [
        a_replica(f"D#{version}{number}", version=version, state=LETTERS[letter], created_at=float(number))
        for version, letters in (("new", new), ("old", old))
        for number, letter in enumerate(letters)
    ]


@pytest.mark.parametrize(
    ("target", "share", "step"),
    [(0, 0.2, 1), (1, 1.0, 1), (10, 0.2, 2), (10, 0.35, 3), (100, 0.29, 29), (3, 0.1, 1), (7, 1.0, 7)],
)
def test_how_many_an_update_takes_at_a_time(target: int, share: float, step: int) -> None:
    assert rolling_step(target, share) == step


@pytest.mark.parametrize(
    ("target", "percent", "beyond"), [(10, None, 4), (10, 0, 0), (3, 1, 1), (25, 28, 7), (4, 100, 4)]
)
def test_how_many_live_beyond_the_target(target: int, percent: int | None, beyond: int) -> None:
    assert surge(target, 4, percent) == beyond


@pytest.mark.parametrize(
    ("new", "old", "percent", "start", "drained"),
    [
        ("", "RRRR", 0, 0, 1),
        ("", "XRRR", 0, 0, 0),  # what still stops holds its place
        ("", "RRR", 0, 1, 0),
        ("S", "RRR", 0, 0, 0),
        ("R", "RRR", 0, 0, 1),
        ("RRRR", "X", 0, 0, 0),
        ("", "", 0, 4, 0),
        ("", "RRRR", 50, 2, 0),
        ("", "RRRR", 100, 4, 0),
        ("RR", "RRRR", 50, 0, 2),
        ("RR", "XXRR", 50, 2, 0),
    ],
)
def test_a_step_with_a_surge(new: str, old: str, percent: int, start: int, drained: int) -> None:
    step = next_step(replicas(new, old), "new", "config", 4, surge_percent=percent)
    assert (step.start, len(step.drain)) == (start, drained)


def test_a_whole_update_without_a_surge_never_lives_beyond_the_target() -> None:
    world = deployed(num_replicas=5, max_surge_percent=0, rolling_update_percentage=0.4)
    redeploy(world, "c2", num_replicas=5)
    plan = world.turn()
    fewest = 5
    for _ in range(60):
        news = [event for action in plan.actions for event in world.effects(action)]
        # each that stops is seen beside what is started meanwhile
        plan = world.turn(*news)
        living = [replica for replica in world.replicas() if replica.state is not ReplicaState.STOPPING]
        fewest = min(fewest, sum(replica.state is ReplicaState.RUNNING for replica in living))
        assert len(world.replicas()) <= 5
        if not plan.actions:
            break
    assert (fewest, len(world.replicas()), status_of(world)) == (3, 5, ApplicationStatus.RUNNING)


@pytest.mark.parametrize(("limit", "failures"), [({}, 3), ({"max_constructor_retry_count": 1}, 1)])
def test_how_many_failed_starts_are_too_many(limit: dict[str, int], failures: int) -> None:
    world = starting_world(deployments=({"name": "D", **limit},))
    fail_starts(world, failures - 1)
    assert status_of(world) is ApplicationStatus.DEPLOYING
    fail_starts(world, 1)
    assert status_of(world) is ApplicationStatus.DEPLOY_FAILED


@pytest.mark.parametrize(
    ("count", "percent", "expected"),
    [(10, None, 10), (10, 100, 10), (10, 50, 5), (3, 50, 2), (5, 50, 3), (7, 1, 1), (7, 0, 0), (0, 50, 0), (1, 0.1, 1)],
)
def test_a_count_at_a_capacity(count: int, percent: float | None, expected: int) -> None:
    assert at_capacity(count, percent) == expected


def with_capacity(world: World, percent: float | None) -> World:
    apps = (ApplicationDocument("app", import_path="m:app", stored={"name": "app"}),)
    wish = GoalDocument(DeployMode.MULTI_APP, HttpWish(), apps, target_capacity=percent)
    world.goal = put(world.goal, wish, HTTP, situation(deploy_id=world.goal.revision + 1), {})
    return world


def test_the_capacity_scales_every_target_and_at_zero_requests_are_told() -> None:
    world = deployed(num_replicas=8)
    for percent, count in ((25.0, 2), (0.0, 0), (50.0, 4), (None, 8)):
        with_capacity(world, percent).run()
        assert len(world.replicas()) == count
        assert status_of(world) is ApplicationStatus.RUNNING
        [told] = routing(world.observed, ()).targets
        assert ("target_capacity is 0" in told.unavailable) == (count == 0)


def test_a_new_capacity_needs_no_finished_build() -> None:
    world = deployed(num_replicas=4)
    del world.builds["app"]
    with_capacity(world, 50.0).run()
    assert len(world.replicas()) == 2


def test_the_capacity_scales_the_bounds_of_autoscaling() -> None:
    world = deployed(autoscaling_config={"min_replicas": 4, "max_replicas": 10})
    with_capacity(world, 25.0).run()
    [target] = world.observed.targets.values()
    assert target.autoscaling is not None
    assert (target.autoscaling["min_replicas"], target.autoscaling["max_replicas"]) == (1, 3)
    assert (target.shown["autoscaling_config"]["min_replicas"], len(world.replicas())) == (4, 3)


def test_the_autoscaler_goes_on_from_its_count_at_another_capacity() -> None:
    world = deployed(autoscaling_config={"min_replicas": 1, "initial_replicas": 2, "max_replicas": 10})
    [fact] = world.observed.deployments.values()
    world.observed.put(replace(fact, desired=8, trigger="AUTOSCALING"))
    for percent, count in ((100.0, 8), (90.0, 8), (50.0, 5), (None, 5), (0.0, 0), (50.0, 1), (0.0, 0), (100.0, 2)):
        with_capacity(world, percent).run()
        assert (percent, len(world.replicas())) == (percent, count)
    [fact] = world.observed.deployments.values()
    assert fact.trigger == "CONFIG_UPDATE_STARTED"


def test_who_runs_an_application_leaves_the_capacity_as_it_is() -> None:
    goal = replace(a_goal(an_app()), target_capacity=30.0)
    after = put_application(goal, ApplicationDocument("b", import_path="m:b"), HTTP, situation(), {})
    assert after.target_capacity == 30.0
    assert {app.target_capacity for app in after.applications} == {30.0}
    assert put(after, GoalDocument(DeployMode.MULTI_APP, HttpWish(), ()), HTTP, situation(), {}).target_capacity is None


def test_a_digest_is_the_same_without_the_options_of_today() -> None:
    [plain] = resolve(an_app(), a_build("D"), "c1")
    [scaled] = resolve(replace(an_app(), target_capacity=50.0), a_build("D"), "c1")
    assert (plain.key, plain.version) == (scaled.key, scaled.version)
    assert wanted_count(scaled, None) == 1


def test_where_somebody_else_scales_code_may_not() -> None:
    build = a_build("D", D={"autoscaling_config": {"max_replicas": 2}})
    assert resolve(an_app(), build, "c1")
    with pytest.raises(DeployError, match="external_scaler_enabled excludes autoscaling, which D has"):
        resolve(an_app(external_scaler_enabled=True), build, "c1")


SCALED = {
    **AUTOSCALING_DEFAULTS,
    "min_replicas": 0,
    "max_replicas": 10,
    "downscale_delay_s": 6.0,
    "upscale_delay_s": 0.0,
}


@pytest.mark.parametrize(
    ("given", "up", "down"),
    [
        ({}, 1.0, 1.0),
        ({"smoothing_factor": 0.5}, 0.5, 0.5),
        ({"smoothing_factor": 0.5, "upscale_smoothing_factor": 2.0}, 2.0, 0.5),
        ({"upscale_smoothing_factor": 2.0, "upscaling_factor": 3.0, "downscaling_factor": 0.1}, 3.0, 0.1),
        ({"downscale_smoothing_factor": 0.3, "upscaling_factor": None}, 1.0, 0.3),
    ],
)
def test_which_factor_counts(given: dict[str, float], up: float, down: float) -> None:
    config = {**SCALED, **given}
    assert (factor(config, up=True), factor(config, up=False)) == (up, down)


def test_each_direction_has_its_factor() -> None:
    config = {**SCALED, "upscaling_factor": 0.5, "downscaling_factor": 0.25, "downscale_delay_s": 0.0}
    assert decide(config, 4, [2.0] * 4, 0, 0, 0.0, now=9.0).target == 6
    assert decide(config, 4, [0.0] * 4, 0, 0, 0.0, now=9.0).target == 3


def test_the_last_replica_has_a_delay_of_its_own() -> None:
    config: dict[str, Any] = {**SCALED, "downscale_to_zero_delay_s": 60.0}
    at = [decide(config, 3, [0.0] * 3, 0, -1, 0.0, now=now).target for now in (5.9, 6.0)]
    assert at == [3, 1]
    at = [decide(config, 1, [0.0], 0, -1, 0.0, now=now).target for now in (6.0, 59.9, 60.0)]
    assert at == [1, 1, 0]
    assert decide({**config, "downscale_to_zero_delay_s": None}, 3, [0.0] * 3, 0, -1, 0.0, now=6.0).target == 0


def samples(*points: tuple[float, float]) -> Samples:
    found = Samples()
    for at, load in points:
        found.add(at, load, keep_s=1000.0)
    return found


@pytest.mark.parametrize(
    ("how", "since", "expected"),
    [
        ("mean", 0.0, [2.0, 1.0]),
        ("max", 0.0, [2.5, 2.5]),  # 4 and 1: their peaks are at different times
        ("min", 0.0, [0.5, 0.5]),
        ("max", 60.0, [0.5, 0.5]),
        ("min", 45.0, [0.5, 0.5]),
    ],
)
def test_what_a_window_says(how: str, since: float, expected: list[float]) -> None:
    first, second = samples((0.0, 4.0), (50.0, 0.0)), samples((0.0, 1.0))
    assert loads_of([first, second], since, 100.0, how) == pytest.approx(expected)
    assert loads_of([], 0.0, 1.0, how) == []


def test_the_peak_of_a_window_scales_up_where_the_mean_would_not() -> None:
    burst = [samples((0.0, 0.0), (90.0, 8.0), (91.0, 0.0))]
    for how, target in (("mean", 1), ("max", 8)):
        assert decide(SCALED, 1, loads_of(burst, 0.0, 100.0, how), 0, 0, 0.0, now=100.0).target == target


def test_options_of_today_restart_nothing() -> None:
    world = deployed(num_replicas=2)
    before = {replica.replica_id for replica in world.replicas()}
    world.log.clear()
    redeploy(world, rolling_update_percentage=0.5, max_surge_percent=0, max_constructor_retry_count=7).run()
    assert {replica.replica_id for replica in world.replicas()} == before
    assert not {"StartReplica", "DrainReplica", "SetReplicaGoal"} & set(verbs(world.log))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, (503, None)),
        ({"backpressure_config": {"status_code": 429}}, (429, None)),
        ({"backpressure_config": {"retry_after_s": 2.5}}, (503, 2.5)),
        ({"backpressure_config": None, "max_surge_percent": None}, (503, None)),
    ],
)
def test_callers_are_told_how_to_refuse(given: dict[str, Any], told: tuple[int, float | None]) -> None:
    [targets] = routing(deployed(**given).observed, ()).targets
    assert targets.backpressure == told


@pytest.mark.parametrize(
    ("status", "seconds", "line"),
    [
        (503, None, b"retry-after: 1\r\n"),
        (503, 0.0, b"retry-after: 0\r\n"),
        (429, 2.6, b"retry-after: 3\r\n"),
        (429, None, b""),
    ],
)
def test_a_full_line_is_refused_as_configured(status: int, seconds: float | None, line: bytes) -> None:
    router: RequestRouter[Any] = RequestRouter("app_D", random.Random(1))
    router.update(DeploymentTargets("app_D", max_queued_requests=0, backpressure=(status, seconds)))
    error = router.refused_now()
    assert error is not None
    found, block, _ = answer_failure(error)
    assert (found, block.partition(b"\r\n")[2]) == (status, line)


def test_lines_have_the_further_attributes_of_their_records() -> None:
    style = style_of({"additional_log_standard_attrs": ["name", "process", "args"]})
    formatter = LineFormatter("replica", "D", None)
    record = logging.makeLogRecord(
        {"name": "fruit\n", "process": 7, "msg": "ripe - %s", "args": ("yes",), "levelname": "INFO"}
    )
    plain = formatter.format(record)
    formatter.attributes = style.attributes
    shown = formatter.format(record)
    assert shown.partition(" - ")[0] == plain.partition(" - ")[0] + r" name=fruit\n process=7 args=('yes',)"
    assert shown.endswith(" - ripe - yes")
    formatter.is_json = True
    line = json.loads(formatter.format(record))
    assert (line["name"], line["process"], line["args"], line["message"]) == ("fruit\n", 7, ["yes"], "ripe - yes")


def test_a_json_line_with_further_attributes_has_a_head() -> None:
    formatter = LineFormatter("replica", "D", None)
    formatter.is_json, formatter.attributes = True, ("process", "levelname", "name")
    record = logging.makeLogRecord({"name": "n", "process": 7, "msg": "ripe", "levelname": "ERROR"})
    head = head_of(formatter.format(record))
    assert head is not None
    assert (head.level, head.known) == ("ERROR", " replica D ")


class Unspeakable:
    def __repr__(self) -> str:
        raise ValueError

    def __str__(self) -> str:
        return "well"


class Mute(Unspeakable):
    __str__ = Unspeakable.__repr__


@pytest.mark.parametrize(
    ("args", "text", "in_json"),
    [
        ((Unspeakable(),), NO_TEXT, ["well"]),
        ((Mute(),), NO_TEXT, NO_TEXT),
        ({(1, 2): 3}, "{(1, 2): 3}", "{(1, 2): 3}"),
        ((1, None, 0.5), "(1, None, 0.5)", [1, None, 0.5]),
        (7, "7", 7),
        (None, "None", None),
    ],
)
def test_a_line_is_written_whatever_its_further_attributes_are(args: Any, text: str, in_json: Any) -> None:
    formatter = LineFormatter("replica", "D", None)
    formatter.attributes = ("args",)
    record = logging.makeLogRecord({"args": args})
    record.getMessage = lambda: "ripe"  # type: ignore[method-assign]
    assert formatter.format(record).endswith(f" args={text} - ripe")
    formatter.is_json = True
    assert json.loads(formatter.format(record))["args"] == in_json


@pytest.mark.parametrize("is_json", [False, True])
@pytest.mark.parametrize("args", [("x" * 10**6,), "x" * 10**6, ([7] * 10**5,)])
def test_further_attributes_are_as_long_as_a_message_at_most(args: Any, is_json: bool) -> None:
    formatter = LineFormatter("replica", "D", None)
    formatter.is_json, formatter.attributes = is_json, ("args",)
    record = logging.makeLogRecord({"args": args})
    record.getMessage = lambda: "ripe"  # type: ignore[method-assign]
    line = formatter.format(record)
    assert len(line) < LONGEST_MESSAGE + 1000
    assert "characters left out]" in line


def test_an_empty_goal_has_no_capacity() -> None:
    assert Goal().target_capacity is None
