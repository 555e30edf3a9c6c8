"""Documents made by chance: what is accepted comes back as it was sent, can be sent again, and then changes nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servd.controller.plan.goal import ApplicationGoal
from servd.controller.shown.dry_run import compare
from servd.documents import runtime_env
from servd.documents.files import dump_yaml, parse_document
from servd.exceptions import ConfigError
from servd.schema import parse_v1, parse_v2
from tests.core.build import HTTP, World, a_build, a_goal

bounded = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)
names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,6}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=3)
positive = st.floats(0.01, 1e6)
environments = st.fixed_dictionaries(
    {},
    optional={
        "env_vars": st.dictionaries(names, texts, max_size=3),
        "working_dir": st.sampled_from(["https://h/a.zip", "file:///srv/app", "/srv/app"]),
        "pip": st.lists(texts, max_size=2),
    },
)
options = {
    "num_replicas": st.integers(1, 9),
    "max_concurrent_queries": st.integers(1, 500),
    "user_config": st.none() | objects,
    "graceful_shutdown_wait_loop_s": st.floats(0, 100),
    "graceful_shutdown_timeout_s": st.integers(0, 100),
    "health_check_period_s": positive,
    "health_check_timeout_s": positive,
    "ray_actor_options": st.fixed_dictionaries({}, optional={"num_cpus": st.floats(0, 8), "runtime_env": environments}),
    "max_queued_requests": st.integers(1, 100) | st.just(-1),
    "request_timeout_s": st.none() | positive,
    "cancel_on_disconnect": st.booleans(),
    "start_method": st.sampled_from(["fork", "spawn"]),
    "preload": st.booleans(),
}
overrides = st.fixed_dictionaries({"name": st.sampled_from(["A", "B"])}, optional=options).filter(
    lambda override: not (override.get("preload") and override.get("start_method") == "spawn")
)
applications = st.fixed_dictionaries(
    {"import_path": st.just("m:app")},
    optional={
        "runtime_env": environments,
        "args": objects,
        "deployments": st.lists(overrides, max_size=2, unique_by=lambda item: item["name"]),
    },
)
configs = st.lists(
    st.tuples(names, applications), max_size=3, unique_by=lambda pair: pair[0]
).map(
    lambda pairs: {
        "applications": [{"name": name, "route_prefix": f"/{name}", **app} for name, app in pairs]
    }
)  # fmt: skip


@bounded
@given(configs)
def test_what_is_stored_can_be_sent_again_and_stays(config: dict[str, Any]) -> None:
    stored = parse_v2(config).stored
    assert parse_v2(stored).stored == stored
    assert parse_v2(json.loads(json.dumps(stored))) == parse_v2(stored)
    sent = {app["name"]: app for app in config["applications"]}
    for app in stored["applications"]:
        assert set(app) == set(sent[app["name"]])


@bounded
@given(configs)
def test_a_document_survives_its_yaml(config: dict[str, Any]) -> None:
    assert parse_document(dump_yaml(config).encode(), "x").value == config


@bounded
@given(values)
def test_any_json_value_is_a_document_or_a_config_error(value: Any) -> None:
    for parse in (parse_v1, parse_v2):
        for raw in (value, {"applications": value}, {"import_path": "m:a", "deployments": [value], "args": value}):
            assert "Schema" in refusal(parse, raw)


def refusal(parse: Callable[[Any], Any], raw: Any) -> str:
    """The text of the refusal; "Schema" where there is none."""
    try:
        parse(raw)
    except ConfigError as error:
        return str(error)
    return "Schema"


@bounded
@given(environments, environments, environments)
def test_merging_environments(one: dict[str, Any], two: dict[str, Any], three: dict[str, Any]) -> None:
    merged = runtime_env.merge(one, two)
    assert runtime_env.merge(merged, {}) == merged
    assert runtime_env.merge(runtime_env.merge(one, two), three) == runtime_env.merge(
        one, runtime_env.merge(two, three)
    )
    assert merged["env_vars"].items() >= (two.get("env_vars") or {}).items()
    assert runtime_env.normalised(runtime_env.normalised(one)) == runtime_env.normalised(one)


@bounded
@given(applications, applications)
def test_a_plan_is_empty_after_it_was_applied(first: dict[str, Any], second: dict[str, Any]) -> None:
    world = World(a_goal(wish(first, 1)))
    world.builds["app"] = a_build("A", "B")
    world.run()
    for deploy_id, app in ((2, second), (3, first)):
        goal = a_goal(wish(app, deploy_id), revision=deploy_id)
        plan = compare(world.goal, goal, HTTP, world.observed).applications["app"]
        foretold = {name: change.replicas_after for name, change in plan.deployments.items()}
        world.goal = goal
        if plan.note:
            # other code: its build has another version
            world.builds["app"] = replace(world.builds["app"], code_version=f"c{deploy_id}")
        world.run(200)
        assert foretold == {f"app_{name}": len(world.replicas(name)) for name in ("A", "B")}
        again = compare(world.goal, a_goal(wish(app, deploy_id + 10), revision=9), HTTP, world.observed)
        assert again.applications["app"].action == "unchanged"
        assert all(change.fields == () for change in again.applications["app"].deployments.values())


def wish(app: dict[str, Any], deploy_id: int) -> ApplicationGoal:
    (document,) = parse_v2({"applications": [{"name": "app", "route_prefix": "/app", **app}]}).applications
    return ApplicationGoal(document, deploy_id=deploy_id, deployed_at=1000.0)
