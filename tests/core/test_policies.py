"""Autoscaling policies of user code: what they are told, what becomes of their answers, and of those that give none."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from servd.config import AutoscalingContext, AutoscalingPolicy
from servd.controller.plan import actions
from servd.controller.plan.autoscaler import POLICY_DEADLINE_S, decide_by_policy, full_config
from servd.controller.plan.scaling import ask_of
from servd.exceptions import ConfigError
from servd.ground.ids import DeploymentID
from servd.ground.states import ReplicaState
from servd.replica.policies.runner import PolicyRunner, load_policy
from servd.schema import parse_v2
from servd.wire.messages import ReplicaReport
from servd.wire.policy_messages import PolicyAnswer, PolicyAsk
from tests.core.build import World, a_build, a_goal, an_app, message_of, report, restart_controller

SCALED = {"min_replicas": 1, "max_replicas": 9, "upscale_delay_s": 0.0, "downscale_delay_s": 0.0}
POLICY = {"policy_function": "m:policy"}


class Steps:
    """A policy as a class: one more than there is, with what it remembers."""

    def __init__(self, step: int = 1) -> None:
        self.step = step

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        asked = context.policy_state.get("asked", 0)
        return context.target_num_replicas + self.step, {"asked": asked + 1, "kept": object()}


def by_requests(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """As a function; reads all that there is."""
    assert isinstance(context.deployment_id, DeploymentID)
    assert (context.deployment_name, context.app_name) == ("D", "app")
    assert context.aggregated_metrics == context.raw_metrics == {}
    assert context.config.get_upscaling_factor() == 1.0
    assert len(context.running_replicas) == context.current_num_replicas
    return context.total_num_requests / context.config.target_ongoing_requests, {}


def of_all(
    contexts: dict[DeploymentID, AutoscalingContext],
) -> tuple[dict[DeploymentID, float], dict[DeploymentID, Any]]:
    """Of an application."""
    return {one: 3 for one in contexts if one.name != "Left"}, {}


def in_halves(_context: AutoscalingContext) -> Any:
    """Returns a number of another kind than the interpreter's own, as numpy's are."""
    return Fraction(5, 2), {}


def endless(_context: AutoscalingContext) -> Any:
    """Returns what is no number of replicas."""
    return math.inf, {}


def odd(_context: AutoscalingContext) -> Any:
    """Returns what is no answer."""
    return 3


def bad(_context: AutoscalingContext) -> Any:
    """Ends the process."""
    raise SystemExit("gone")


def told(name: str = "D", **changes: Any) -> dict[str, Any]:
    return {
        "app": "app", "deployment": name, "current_num_replicas": 2, "target_num_replicas": 2,
        "running_replicas": ["app_D#aaaaaa", "app_D#bbbbbb"], "total_num_requests": 7.0, "total_queued_requests": 1.0,
        "min_replicas": 1, "max_replicas": 9, "last_scale_up_s": 5.0, "last_scale_down_s": None,
        "config": {"max_replicas": 9, "target_num_ongoing_requests_per_replica": 2.0}, **changes,
    }  # fmt: skip


def ask(function: Any, *contexts: dict[str, Any], kwargs: Any = None, of_application: bool = False) -> PolicyAsk:
    path = f"{__name__}:{function.__name__}"
    return PolicyAsk("1", path, json.dumps(kwargs or {}), json.dumps(contexts or [told()]), of_application)


def test_a_function_is_told_of_its_deployment() -> None:
    assert PolicyRunner().answer(ask(by_requests)) == PolicyAnswer("1", {"D": 3.5})


def test_numbers_of_any_kind_are_counts() -> None:
    assert PolicyRunner().answer(ask(in_halves)) == PolicyAnswer("1", {"D": 2.5})


def test_a_class_is_made_once_and_gets_its_state_back() -> None:
    runner = PolicyRunner()
    question = ask(Steps, kwargs={"step": 2})
    assert [runner.answer(question).wanted for _ in range(3)] == [{"D": 4.0}] * 3
    assert runner._states[DeploymentID("D", "app")]["asked"] == 3


def test_a_policy_of_an_application_is_asked_about_all_and_may_leave_some_out() -> None:
    found = PolicyRunner().answer(ask(of_all, told(), told("Left"), of_application=True))
    assert found == PolicyAnswer("1", {"D": 3.0})


@pytest.mark.parametrize(
    ("function", "kwargs", "reason"),
    [
        (odd, {}, r"a policy returns \(replicas, state\), got int"),
        (bad, {}, "SystemExit: gone"),
        (endless, {}, "the count of replicas must be a number, got inf"),
        (by_requests, {"a": 1}, "policy_kwargs are the arguments of one"),
        (Steps, {"other": 1}, "unexpected keyword argument 'other'"),
    ],
)
def test_a_policy_that_gives_no_answer_is_an_error_with_the_reason(function: Any, kwargs: Any, reason: str) -> None:
    answer = PolicyRunner().answer(ask(function, kwargs=kwargs))
    assert answer.wanted == {}
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(answer.error)


def test_what_a_policy_raises_is_counted_by_type_and_place() -> None:
    runner = PolicyRunner("app")
    for _ in range(3):
        runner.answer(ask(bad))
    (report,) = runner.errors_since("f/D", 0.0)
    ((group),) = report.groups
    assert (report.replica_id, group.type, group.count, group.method) == ("f/D", "SystemExit", 3, f"{__name__}:bad")
    assert group.place.endswith(" in bad")
    assert "policies/runner.py" not in group.traceback
    assert runner.errors_since("f/D", 5.0) == []


def test_a_policy_that_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError):
        load_policy("no_such_module:policy", {})


@pytest.mark.parametrize(
    ("current", "running", "wanted", "options", "target"),
    [
        (2, 2, 5.0, {}, 5),
        (2, 2, 4.2, {}, 5),
        (2, 2, 50.0, {}, 9),
        (2, 2, -3.0, {}, 1),
        (2, 2, 1e300, {}, 9),
        (2, 2, 6.0, {"upscaling_factor": 0.5}, 4),
        (8, 8, 2.0, {"downscaling_factor": 0.5}, 5),
        (2, 2, 1.0, {"downscaling_factor": 0.1}, 1),
        (2, 2, None, {}, 2),
        (12, 12, None, {}, 9),
        # to none by way of one
        (4, 4, 0.0, {"min_replicas": 0, "downscale_to_zero_delay_s": 0.0}, 1),
        (1, 1, 0.0, {"min_replicas": 0, "downscale_to_zero_delay_s": 0.0}, 0),
        # nobody serves: up at once
        (0, 0, 3.0, {"min_replicas": 0, "upscale_delay_s": 60.0}, 3),
        (2, 2, 3.0, {"upscale_delay_s": 60.0}, 2),
    ],
)
def test_factors_delays_and_bounds_come_after_the_policy(
    current: int, running: int, wanted: float | None, options: dict[str, Any], target: int
) -> None:
    config = full_config({**SCALED, **options}, None)
    assert decide_by_policy(config, current, running, wanted, 0, 0.0, 100.0).target == target


def test_a_delay_counts_from_the_first_answer_that_asks_for_it() -> None:
    config = full_config({**SCALED, "upscale_delay_s": 10.0}, None)
    first = decide_by_policy(config, 2, 2, 4.0, 0, 0.0, 100.0)
    assert (first.target, first.wake_at) == (2, 110.0)
    held = decide_by_policy(config, 2, 2, 4.0, first.lean, first.lean_since, 109.0)
    assert (held.target, held.wake_at) == (2, 110.0)
    assert decide_by_policy(config, 2, 2, 4.0, held.lean, held.lean_since, 110.0).target == 4


def test_who_waits_for_none_at_all_does_not_wait_for_the_policy() -> None:
    config = full_config({**SCALED, "min_replicas": 0}, None)
    assert decide_by_policy(config, 0, 0, None, 0, 0.0, 1.0, queued=2).target == 1


@pytest.mark.parametrize("running", [0, 1])
@pytest.mark.parametrize("delays", [{"downscale_delay_s": 0.0}, {"downscale_to_zero_delay_s": 0.0}], ids=str)
def test_what_was_started_for_those_who_wait_stays_whatever_was_said_before(
    running: int, delays: dict[str, float]
) -> None:
    config = full_config({**SCALED, "min_replicas": 0, **delays}, None)
    assert decide_by_policy(config, 1, running, 0.0, 0, 0.0, 1.0, queued=2).target == 1
    assert decide_by_policy(config, 1, running, 0.0, 0, 0.0, 1.0).target == 0
    # where none at all may run, none does
    assert decide_by_policy({**config, "max_replicas": 0}, 1, running, 0.0, 0, 0.0, 1.0, queued=2).target == 0


def a_world(*names: str, policy: Any = POLICY, application: Any = None) -> World:
    overrides = tuple({"name": name, "autoscaling_config": {**SCALED, "policy": policy}} for name in names)
    app = an_app(deployments=overrides, autoscaling_policy=application)
    return started(World(a_goal(app)), *names)


def started(world: World, *names: str) -> World:
    world.builds["app"] = a_build(*names)
    return world.run()


def wait(world: World, seconds: float) -> None:
    """Turns whenever the plan wants to look again."""
    end = world.now + seconds
    while world.wake_at <= end:
        world.now = max(world.now, world.wake_at)
        world.run()
    world.now = end
    world.run()


def asked(world: World) -> list[actions.AskPolicy]:
    return [action for action in world.log if isinstance(action, actions.AskPolicy)]


def answer(world: World, wanted: dict[str, float], error: str = "") -> None:
    world.observed.apply(PolicyAnswer(asked(world)[-1].ask.ask_id, wanted, error), world.now)
    world.run()


def fact(world: World, name: str = "D") -> Any:
    return world.observed.deployments["app", name]


def test_the_controller_asks_and_does_as_it_is_told() -> None:
    world = a_world("D")
    (first,) = asked(world)
    assert (first.ask.function, first.deployments) == ("m:policy", (("app", "D"),))
    (context,) = json.loads(first.ask.contexts)
    assert (context["current_num_replicas"], context["target_num_replicas"], context["max_replicas"]) == (0, 1, 9)
    assert "policy" not in context["config"]
    # no second question before the first is answered
    wait(world, 2.0)
    assert asked(world) == [first]
    answer(world, {"D": 3.0})
    assert fact(world).desired == 3
    assert len(world.replicas()) == 3
    assert fact(world).decisions[-1].reason == "the policy says 3, which makes 3"
    # the next one was due already
    assert len(asked(world)) == 2
    answer(world, {"D": 3.0})
    wait(world, 1.0)
    assert len(asked(world)) == 3
    assert json.loads(asked(world)[-1].ask.contexts)[0]["current_num_replicas"] == 3


def a_careful_world() -> World:
    """Ten replicas; the policy's next word is 50, a tenth of the way at once, once it has held for a minute."""
    careful = {**SCALED, "max_replicas": 99, "upscale_delay_s": 60.0, "upscaling_factor": 0.1, "initial_replicas": 10}
    app = an_app(deployments=({"name": "D", "autoscaling_config": {**careful, "policy": POLICY}},))
    world = started(World(a_goal(app)), "D")
    answer(world, {"D": 50.0})
    return world


def test_a_restart_of_the_controller_takes_neither_factor_nor_delay_away() -> None:
    world = restart_controller(a_careful_world())
    assert {replica.state for replica in world.replicas()} == {ReplicaState.RECOVERING}
    world.turn()
    assert fact(world).desired == 10
    (context,) = json.loads(ask_of("1", list(world.observed.targets.values()), world.observed, world.now).contexts)
    assert (context["current_num_replicas"], len(context["running_replicas"])) == (10, 10)
    for replica in world.replicas():
        world.turn(report(replica))
    wait(world, 61.0)
    assert fact(world).desired == 14


def test_replicas_that_take_another_config_are_counted() -> None:
    world = a_careful_world()
    for replica in world.replicas():
        world.observed.replicas[replica.replica_id] = replace(replica, state=ReplicaState.UPDATING)
    world.turn()
    assert fact(world).desired == 10


def test_the_first_answer_is_the_reason_also_where_it_changes_nothing() -> None:
    world = a_world("D")
    assert fact(world).reason == ""
    answer(world, {}, "ValueError: no")
    assert "1 replicas stay wanted since it has said nothing yet: ValueError: no" in message_of(world)
    wait(world, 1.0)
    answer(world, {"D": 1.0})
    assert fact(world).reason == "the policy says 1"
    wait(world, 1.0)
    answer(world, {}, "ValueError: no")
    assert "1 replicas stay wanted by what it said last: ValueError: no" in message_of(world)


def test_a_policy_is_told_of_the_last_step_up_after_any_number_down() -> None:
    world = a_world("D")
    answer(world, {"D": 9.0})
    for count in range(8, 2, -1):
        wait(world, 1.0)
        answer(world, {"D": float(count)})
    wait(world, 1.0)
    (context,) = json.loads(asked(world)[-1].ask.contexts)
    assert (context["last_scale_up_s"], context["last_scale_down_s"]) == (7.0, 1.0)
    # a new document forgets neither
    world.goal = a_goal(replace(world.goal.applications[0], deploy_id=2), revision=2)
    world.run()
    assert (fact(world).scaled_up_at, fact(world).scaled_down_at) == (0.0, 6.0)


def test_the_last_answer_holds_when_a_question_fails() -> None:
    world = a_world("D")
    answer(world, {"D": 3.0})
    wait(world, 1.0)
    answer(world, {}, "ValueError: no")
    assert (fact(world).desired, fact(world).policy.error) == (3, "ValueError: no")
    since = fact(world).policy.failed_at
    wait(world, 1.0)
    answer(world, {}, "ValueError: no")
    assert fact(world).policy.failed_at == since
    wait(world, 1.0)
    answer(world, {"D": 2.0})
    assert (fact(world).desired, fact(world).policy.error) == (2, "")


def test_a_question_without_an_answer_is_given_up_and_put_again() -> None:
    world = a_world("D")
    late = asked(world)[-1]
    wait(world, POLICY_DEADLINE_S + 1.0)
    assert "not answered for 6 s" in fact(world).policy.error
    assert len(asked(world)) == 2
    # what comes too late is of another question
    world.turn(PolicyAnswer(late.ask.ask_id, {"D": 9.0}))
    assert fact(world).desired == 1
    answer(world, {"D": 2.0})
    assert (fact(world).desired, fact(world).policy.error) == (2, "")


@pytest.mark.parametrize("answers", [False, True])
def test_a_fork_server_that_answers_nothing_is_replaced_and_its_replicas_stay(answers: bool) -> None:
    world = a_world("D")
    first = asked(world)[-1].fork_server_id
    replicas = world.replicas()
    for _ in range(8):
        # the one that is stopped does not end by itself
        wait(world, POLICY_DEADLINE_S + 1.0)
        for replica in world.replicas():
            world.observed.apply(report(replica), world.now)
        if answers:
            answer(world, {}, "it took too long, and was ended")
    assert [r.replica_id for r in world.replicas()] == [r.replica_id for r in replicas]
    assert (first in world.observed.fork_servers) is answers
    assert (asked(world)[-1].fork_server_id == first) is answers
    answer(world, {"D": 2.0})
    assert fact(world).desired == 2


def test_a_policy_of_the_application_takes_the_place_of_the_deployments_own() -> None:
    world = a_world("D", "E", application={"policy_function": "m:of_all", "policy_kwargs": {"a": [1]}})
    (only,) = asked(world)
    assert (only.ask.function, only.ask.kwargs, only.ask.of_application) == ("m:of_all", '{"a": [1]}', True)
    assert [context["deployment"] for context in json.loads(only.ask.contexts)] == ["D", "E"]
    answer(world, {"E": 4.0})
    assert (fact(world, "D").desired, fact(world, "E").desired) == (1, 4)


def test_policies_are_asked_together_and_an_answer_that_changes_nothing_is_no_news() -> None:
    world = a_world("D", "E")
    world.now = 0.4
    for one in asked(world):
        world.observed.apply(PolicyAnswer(one.ask.ask_id, {one.ask.deployment: 1.0}), world.now)
    world.turn()
    world.observed.take_changes()
    before = len(asked(world))
    assert world.wake_at == 1.0
    for second in range(1, 4):
        world.now = float(second)
        world.turn()
        both = asked(world)[before:]
        before += 2
        assert sorted(one.ask.deployment for one in both) == ["D", "E"]
        assert world.wake_at == second + 1.0
        for one in both:
            assert not world.observed.apply(PolicyAnswer(one.ask.ask_id, {one.ask.deployment: 1.0}), world.now)
    assert world.observed.take_changes() == {}
    # neither does load decide anything there
    (replica,) = world.replicas()
    assert not world.observed.apply(report(replica, ongoing=5), world.now)


def test_an_answer_that_comes_when_the_next_question_is_due_is_news() -> None:
    world = a_world("D")
    answer(world, {"D": 1.0})
    wait(world, 1.0)
    assert len(asked(world)) == 2
    world.now = 2.2
    assert world.observed.apply(PolicyAnswer(asked(world)[-1].ask.ask_id, {"D": 1.0}), world.now)
    world.turn()
    assert len(asked(world)) == 3


def test_what_was_asked_of_another_policy_counts_for_nothing() -> None:
    world = a_world("D")
    other = {"name": "D", "autoscaling_config": {**SCALED, "policy": {"policy_function": "m:other"}}}
    late = asked(world)[-1]
    world.goal = a_goal(an_app(deploy_id=2, deployments=(other,)), revision=2)
    world.run()
    assert asked(world)[-1].ask.function == "m:other"
    world.turn(PolicyAnswer(late.ask.ask_id, {"D": 9.0}))
    assert (fact(world).desired, fact(world).policy.wanted) == (1, None)


def test_nobody_is_asked_where_the_count_is_given() -> None:
    world = started(World(a_goal(an_app(deployments=({"name": "D", "num_replicas": 2},)))), "D")
    assert asked(world) == []


def parsed(policy: Any) -> Any:
    deployments = [{"name": "D", "autoscaling_config": {"max_replicas": 2, "policy": policy}}]
    document = parse_v2({"applications": [{"import_path": "m:app", "deployments": deployments}]})
    return document.applications[0].deployments[0]["autoscaling_config"].get("policy")


@pytest.mark.parametrize("path", ["m.n:policy", "m.policy"])
def test_a_policy_of_a_document(path: str) -> None:
    found = parsed({"policy_function": path, "policy_kwargs": {"a": [1, {"b": None}]}})
    assert found == {"policy_function": path, "policy_kwargs": {"a": [1, {"b": None}]}}
    document = parse_v2({"applications": [{"import_path": "m:app", "autoscaling_policy": {"policy_function": path}}]})
    assert document.applications[0].autoscaling_policy == {"policy_function": path, "policy_kwargs": {}}


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"policy_function": "policy"}, "must have the form module:name"),
        ({"policy_function": "m:f()"}, "must have the form module:name"),
        ({"policy_function": "m:f", "policy_kwargs": {"a": math.nan}}, "JSON-serialisable"),
        ({"policy_function": "m:f", "other": 1}, "policy.other: unknown key"),
        ("m:f", "policy"),
    ],
)
def test_a_policy_that_is_none(policy: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parsed(policy)


def test_a_policy_in_code_is_named_by_its_import_path() -> None:
    assert AutoscalingPolicy(policy_function=by_requests).policy_function == f"{__name__}:by_requests"  # type: ignore[arg-type]
    assert AutoscalingPolicy(policy_function=Steps, policy_kwargs={"step": 2}).policy_kwargs == {"step": 2}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top level of a module"):
        AutoscalingPolicy(policy_function=lambda _: (1, {}))  # type: ignore[arg-type]


def test_a_report_of_load_asks_no_policy_of_itself() -> None:
    world = a_world("D")
    answer(world, {"D": 1.0})
    (replica,) = world.replicas()
    world.turn(ReplicaReport(replica.replica_id, "running", applied=replica.config_version, ongoing=50))
    world.run()
    assert fact(world).desired == 1
