"""Options of code and document merged, and what counts as a change."""

from typing import Any

import pytest

from servd.controller.plan.targets import DeploymentTarget, likely_prefix, resolve, wanted_prefix
from servd.documents.runtime_env import faults, pip_field
from servd.exceptions import DeployError
from servd.wire.build_messages import BuildResult, BuiltDeployment
from tests.core.build import an_app


def target(
    code: dict[str, Any] | None = None, override: dict[str, Any] | None = None, app_env: dict[str, Any] | None = None
) -> DeploymentTarget:
    deployments = () if override is None else ({"name": "D", **override},)
    build = BuildResult("b", deployments=(BuiltDeployment("D", code or {}),), ingress="D")
    [found] = resolve(an_app(runtime_env=app_env or {}, deployments=deployments), build, "c1")
    return found


def test_the_worked_case_of_the_runtime_contract() -> None:
    code = {"ray_actor_options": {"num_cpus": 0.1, "runtime_env": {"env_vars": {"override_factor": "-2"}}}}
    found = target(code, {"ray_actor_options": {"num_cpus": 0.5}}, {"working_dir": "file:///a.zip"})
    assert found.shown["ray_actor_options"] == {
        "runtime_env": {"working_dir": "file:///a.zip", "env_vars": {}},
        "num_cpus": 0.5,
    }


@pytest.mark.parametrize(
    ("code_env", "override", "expected"),
    [
        (None, None, {"working_dir": "w"}),
        (None, {}, {"working_dir": "w", "env_vars": {}}),
        ({"env_vars": {"A": "1"}}, None, {"working_dir": "w", "env_vars": {"A": "1"}}),
        ({"env_vars": {"A": "1"}}, {}, {"working_dir": "w", "env_vars": {"A": "1"}}),
        ({"env_vars": {"A": "1"}}, {"ray_actor_options": {}}, {"working_dir": "w", "env_vars": {}}),
    ],
)
def test_effective_environment(
    code_env: dict[str, Any] | None, override: dict[str, Any] | None, expected: dict[str, Any]
) -> None:
    code = {"ray_actor_options": {"runtime_env": code_env}} if code_env else {}
    assert target(code, override, {"working_dir": "w"}).shown["ray_actor_options"]["runtime_env"] == expected


def test_env_vars_merge_key_by_key_and_the_deployment_wins() -> None:
    code = {"ray_actor_options": {"runtime_env": {"env_vars": {"A": "d"}}}}
    found = target(code, None, {"env_vars": {"A": "a", "B": "b"}})
    assert found.runtime_env["env_vars"] == {"A": "d", "B": "b"}


@pytest.mark.parametrize(
    ("app_env", "own", "installed"),
    [
        ({"uv": ["a"]}, {"pip": ["b"]}, ["b"]),
        ({"pip": ["a"]}, {"uv": ["b"]}, ["b"]),
        ({"uv": ["a"]}, {"pip": None}, ["a"]),
        ({"uv": ["a"]}, {"env_vars": {"A": "1"}}, ["a"]),
        ({"pip": ["a"]}, {"pip": ["b"]}, ["b"]),
    ],
)
def test_what_a_deployment_installs_is_its_own_in_either_spelling(
    app_env: dict[str, Any], own: dict[str, Any], installed: list[str]
) -> None:
    found = target({"ray_actor_options": {"runtime_env": own}}, None, app_env)
    assert pip_field(found.runtime_env) == installed
    assert faults(found.runtime_env) == []


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ({}, []),
        ({"num_replicas": 3}, []),
        ({"max_concurrent_queries": 5}, []),
        ({"user_config": {"a": 1}}, ["config_version"]),
        ({"graceful_shutdown_wait_loop_s": 3}, ["config_version"]),
        ({"graceful_shutdown_timeout_s": 3}, []),
        ({"ray_actor_options": {"num_cpus": 1}}, []),  # written: thread counts follow at the next start
        ({"ray_actor_options": {"num_cpus": 2}}, ["version"]),
        ({"ray_actor_options": {"num_cpus": 2.0}}, ["version"]),
        ({"ray_actor_options": {"runtime_env": {"env_vars": {"A": "1"}}}}, ["version", "env_key"]),
        ({"max_sync_threads": 2}, ["version"]),
        ({"memory_limit_bytes": 1}, ["version"]),
        ({"start_method": "spawn"}, ["version"]),
        ({"preload": True}, ["version"]),
        ({"preload": False}, []),
        ({"request_timeout_s": 1}, []),
    ],
)
def test_what_a_change_does(override: dict[str, Any], changes: list[str]) -> None:
    before, after = target(), target(override=override)
    found = [name for name in ("version", "config_version", "env_key") if getattr(before, name) != getattr(after, name)]
    assert found == changes


@pytest.mark.parametrize(
    ("code", "override", "autoscaled", "count"),
    [
        ({"num_replicas": 2}, None, False, 2),
        ({"num_replicas": 2}, {"num_replicas": None}, False, 2),
        ({"autoscaling_config": {"max_replicas": 4}}, {"num_replicas": 3}, True, 3),
        ({"autoscaling_config": {"max_replicas": 4}}, {"num_replicas": 3, "autoscaling_config": None}, False, 3),
        ({"num_replicas": 2}, {"autoscaling_config": {"max_replicas": 4}}, True, 2),
    ],
)
def test_counts_of_code_and_document(
    code: dict[str, Any], override: dict[str, Any] | None, autoscaled: bool, count: int
) -> None:
    found = target(code, override)
    assert (found.autoscaling is not None, found.num_replicas) == (autoscaled, count)
    assert ("num_replicas" in found.shown) is not autoscaled


def test_shown_config_has_the_contracts_keys_in_order() -> None:
    assert list(target().shown) == [
        "name", "num_replicas", "max_concurrent_queries", "user_config", "graceful_shutdown_wait_loop_s",
        "graceful_shutdown_timeout_s", "health_check_period_s", "health_check_timeout_s", "ray_actor_options",
        "is_driver_deployment",
    ]  # fmt: skip


def test_null_user_config_clears() -> None:
    assert target({"user_config": {"a": 1}}, {"user_config": None}).replica_goal("D#1").user_config == ""


def test_own_options_are_shown_only_if_set() -> None:
    assert "max_queued_requests" not in target().shown
    assert target(override={"max_queued_requests": 5}).shown["max_queued_requests"] == 5


def test_local_directories_are_replaced_by_their_snapshots() -> None:
    app = an_app(runtime_env={"working_dir": "file:///src"})
    app.snapshots["file:///src"] = "/state/code/abc"
    build = BuildResult("b", deployments=(BuiltDeployment("D", {}),), ingress="D")
    [found] = resolve(app, build, "c1")
    assert found.runtime_env["working_dir"] == "/state/code/abc"
    assert found.shown["ray_actor_options"]["runtime_env"]["working_dir"] == "file:///src"


def test_unknown_overrides_name_themselves() -> None:
    build = BuildResult("b", deployments=(BuiltDeployment("D", {}),), ingress="D")
    with pytest.raises(DeployError, match=r"overrides Kiwi.*only deployments are D"):
        resolve(an_app(deployments=({"name": "Kiwi"},)), build, "c1")


@pytest.mark.parametrize(
    ("autoscaling", "period_s"),
    [(None, 0.25), ({}, 0.25), ({"metrics_interval_s": 10}, 0.25), ({"metrics_interval_s": 0.1}, 0.1),
     ({"metrics_interval_s": 0.0001}, 0.02)],
)  # fmt: skip
def test_load_is_sampled_at_least_as_often_as_asked(autoscaling: dict[str, Any] | None, period_s: float) -> None:
    found = target(override={"autoscaling_config": autoscaling})
    assert found.replica_goal("D#1").report_period_s == period_s


@pytest.mark.parametrize(
    ("document", "overrides", "wanted"),
    [
        ({}, {}, "/code"),
        ({}, {"D": "/own"}, "/own"),
        ({}, {"D": None}, "/code"),
        ({"route_prefix": "/app", "route_prefix_given": True}, {"D": "/own"}, "/app"),
        ({"route_prefix": None, "route_prefix_given": True}, {"D": "/own"}, None),
    ],
)
def test_the_prefix_of_an_application(document: dict[str, Any], overrides: dict[str, Any], wanted: str | None) -> None:
    deployments = tuple({"name": name, "route_prefix": prefix} for name, prefix in overrides.items())
    wish = an_app(deployments=deployments, **document)
    build = BuildResult("b", deployments=(BuiltDeployment("D", {}),), ingress="D", route_prefix="/code")
    assert wanted_prefix(wish.document, build) == wanted
    assert likely_prefix(wish.document) == ("/" if wanted == "/code" else wanted)
    assert resolve(wish, build, "c1")


def test_only_the_ingress_can_have_a_prefix() -> None:
    wish = an_app(deployments=({"name": "D", "route_prefix": "/own"},))
    build = BuildResult("b", deployments=(BuiltDeployment("D", {}), BuiltDeployment("I", {})), ingress="I")
    with pytest.raises(DeployError, match="only the ingress I can have a route_prefix, D has '/own'"):
        resolve(wish, build, "c1")
