"""The bounds of every option, row by row: what is accepted, and what is refused with which word in the text."""

from typing import Any

import pytest

from servd.exceptions import ConfigError
from servd.schema import parse_v1, parse_v2

APP = {"import_path": "m:a"}

DEPLOYMENT_OPTIONS: dict[str, tuple[list[Any], list[Any]]] = {
    "num_replicas": ([1, "2", None, "auto", 2.0], [0, -1, 2.7, "x", [1]]),
    "route_prefix": (["/a", "/", None], ["a", "/a/", "/{x}", ""]),
    "max_concurrent_queries": ([1, "5"], [0, None, 1.5]),
    "user_config": ([{}, None, {"a": [1]}], [[], "x", 1]),
    "graceful_shutdown_wait_loop_s": ([0, 1.5, "2"], [-1, None]),
    "graceful_shutdown_timeout_s": ([0, 2], [-0.1, None]),
    "health_check_period_s": ([0.1], [0, None, -1]),
    "health_check_timeout_s": ([1], [0, None]),
    "ray_actor_options": ([{}], [None, []]),
    "is_driver_deployment": ([True, False], [None]),
    "max_queued_requests": ([1, -1], [0, -2, None, 1.5]),
    "request_timeout_s": ([1, 0.5, None], [0, -1]),
    "cancel_on_disconnect": ([True], [None]),
    "max_sync_threads": ([1], [0, None]),
    "memory_limit_bytes": ([1, None], [0]),
    "start_method": (["fork", "spawn"], ["x", None]),
    "preload": ([True, False], ["x", None, 2]),
    "rolling_update_percentage": ([0.1, 1], [0, -1, 1.1, None]),
    "max_surge_percent": ([0, 50, 100, None], [-1, 101, 0.5]),
    "max_constructor_retry_count": ([1, 100], [0, -1, None]),
    "backpressure_config": ([{}, {"status_code": 429, "retry_after_s": 0}], [{"retry_after_s": -1}, [], 429]),
}
AUTOSCALING_OPTIONS: dict[str, tuple[list[Any], list[Any]]] = {
    "min_replicas": ([0, 1], [-1, None]),
    "max_replicas": ([1, 7], [0, None]),
    "initial_replicas": ([1, None], [-1, 0]),
    **dict.fromkeys(
        ("metrics_interval_s", "look_back_period_s", "smoothing_factor", "target_num_ongoing_requests_per_replica"),
        ([0.1, 2], [0, -1]),
    ),
    **dict.fromkeys(("downscale_delay_s", "upscale_delay_s"), ([0, 1.5], [-1])),
    **dict.fromkeys(
        ("upscaling_factor", "downscaling_factor", "upscale_smoothing_factor", "downscale_smoothing_factor"),
        ([1, 0.5, "2", None], ["banana", 0, -1, [1], float("inf")]),
    ),
    "downscale_to_zero_delay_s": ([0, 1.5, None], ["banana", -1, {}]),
    "aggregation_function": (["mean", "max", "MIN"], ["median", 1, ["max"]]),
    "policy": (
        [
            None,
            {},
            {"policy_function": "ray.serve.autoscaling_policy:default_autoscaling_policy", "policy_kwargs": {}},
            "ray.serve.autoscaling_policy.default_autoscaling_policy",
            {"policy_function": "m:f"},
            {"policy_function": "m.n.f", "policy_kwargs": {"a": 1}},
        ],
        [1, "m:f", {"policy_function": "f"}, {"policy_function": 1}, {"policy_kwargs": []}],
    ),
    "foo": ([], [1]),
}
ACTOR_OPTIONS: dict[str, tuple[list[Any], list[Any]]] = {
    **dict.fromkeys(("num_cpus", "num_gpus", "memory", "object_store_memory"), ([0, 0.5, None, 2], [-1])),
    "resources": (
        [{}, {"x": 1}, {"x": 0.5}],
        [{"CPU": 1}, {"GPU": 1}, {"memory": 1}, {"object_store_memory": 1}, {"x": "banana"}, {"x": -1}],
    ),
    "accelerator_type": (["A100", None], []),
    "env_vars": ([{"A": "b"}], []),
    "foo": ([], [1]),
}
URIS = (
    ["https://a.b/c.zip", "file:///a/b.zip", "/a/b.zip", "http://127.0.0.1/a.zip", "http://localhost:1/a.zip", "/a/d"],
    ["https://a.b/c.tgz", "http://a.b/a.zip", ".", "a/b", "s3://a/b.zip", "gs://a/b.zip", "gcs://x.zip", "conda://x"],
)
APPLICATION_OPTIONS: dict[str, tuple[list[Any], list[Any]]] = {
    "external_scaler_enabled": ([True, False], ["banana", 7, {}]),
    "autoscaling_policy": ([None, {"policy_function": "m:f"}], [1, {"policy_function": "f"}]),
}
V2_OPTIONS: dict[str, tuple[list[Any], list[Any]]] = {
    "proxy_location": (["NoServer", "HeadOnly", "EveryNode", "Disabled"], ["FixedNumber", None, "Moon"]),
    "http_options": (
        [
            {},
            {"port": "8000"},
            {"port": 65535},
            {"root_path": "/r"},
            {"request_timeout_s": 0.5},
            {"request_timeout_s": None},
        ],
        [None, {"host": None}, {"port": -1}, {"port": 65536}, {"port": 1.5}, {"x": 1}, {"request_timeout_s": 0}],
    ),
    "logging_config": (
        [
            {"encoding": "JSON", "log_level": "DEBUG", "enable_access_log": False},
            {"logs_dir": None},
            {"logs_dir": "/x"},
            {"additional_log_standard_attrs": ["process", "threadName"]},
        ],
        [
            {"logs_dir": "x"},
            {"logs_dir": 0},
            {"additional_log_standard_attrs": ""},
            {"additional_log_standard_attrs": ["colour"]},
            {"encoding": "XML"},
            {"log_level": 7},
            {"log_level": "LOUD"},
        ],
    ),
    "grpc_options": (
        [{}, {"grpc_servicer_functions": []}, {"port": 9000, "request_timeout_s": 1, "enable_reflection": True}, None],
        [{"grpc_servicer_functions": ["a"]}, {"port": "banana"}, {"request_timeout_s": -1}, {"x": 1}, [], "x"],
    ),
    "target_capacity": ([None, 0, 33.3, 100, "50"], [-1, 100.1, "x", []]),
    "foo": ([], [1]),
}


def rows(options: dict[str, tuple[list[Any], list[Any]]]) -> list[Any]:
    found = []
    for name, (good, bad) in options.items():
        found += [pytest.param(name, value, True, id=f"{name}={value!r}") for value in good]
        found += [pytest.param(name, value, False, id=f"{name}={value!r}-refused") for value in bad]
    return found


def judge(document: dict[str, Any], name: str, accepted: bool) -> None:
    parse = parse_v2 if "applications" in document else parse_v1
    if accepted:
        parse(document)
        return
    with pytest.raises(ConfigError) as refusal:
        parse(document)
    assert name in str(refusal.value)


def deployment(**options: Any) -> dict[str, Any]:
    return {**APP, "deployments": [{"name": "D", **options}]}


@pytest.mark.parametrize(("name", "value", "accepted"), rows(DEPLOYMENT_OPTIONS))
def test_options_of_a_deployment(name: str, value: Any, accepted: bool) -> None:
    judge(deployment(**{name: value}), name, accepted)


@pytest.mark.parametrize(("name", "value", "accepted"), rows(AUTOSCALING_OPTIONS))
def test_options_of_autoscaling(name: str, value: Any, accepted: bool) -> None:
    judge(deployment(autoscaling_config={"max_replicas": 9, name: value}), name, accepted)


@pytest.mark.parametrize(("name", "value", "accepted"), rows(ACTOR_OPTIONS))
def test_ray_actor_options(name: str, value: Any, accepted: bool) -> None:
    judge(deployment(ray_actor_options={name: value}), name, accepted)


@pytest.mark.parametrize(("name", "value", "accepted"), rows({"working_dir": URIS, "py_modules": URIS}))
def test_uris_in_every_place(name: str, value: str, accepted: bool) -> None:
    env = {name: [value] if name == "py_modules" else value}
    judge({**APP, "runtime_env": env}, name, accepted)
    judge(deployment(ray_actor_options={"runtime_env": env}), name, accepted)
    judge({"applications": [{**APP, "runtime_env": env}]}, name, accepted)


@pytest.mark.parametrize(("name", "value", "accepted"), rows(V2_OPTIONS))
def test_options_of_the_whole_document(name: str, value: Any, accepted: bool) -> None:
    judge({"applications": [APP], name: value}, name, accepted)


@pytest.mark.parametrize(("name", "value", "accepted"), rows(APPLICATION_OPTIONS))
def test_options_of_an_application(name: str, value: Any, accepted: bool) -> None:
    judge({"applications": [{**APP, name: value}]}, name, accepted)


@pytest.mark.parametrize("option", [{"num_replicas": "auto"}, {"autoscaling_config": {"max_replicas": 2}}])
def test_somebody_else_scales_or_servd_does(option: dict[str, Any]) -> None:
    app = {**deployment(**option), "external_scaler_enabled": True}
    judge({"applications": [app]}, "external_scaler_enabled", False)
    judge({"applications": [{**app, "external_scaler_enabled": False}]}, "", True)


@pytest.mark.parametrize("name", ["import_path", "runtime_env", "host", "port", "deployments", "args"])
def test_what_may_not_be_null(name: str) -> None:
    judge({**APP, name: None}, name, False)


@pytest.mark.parametrize("name", ["placement_group_bundles", "placement_group_strategy", "max_replicas_per_node"])
def test_options_of_later_releases_that_servd_has_not(name: str) -> None:
    judge(deployment(**{name: 1}), f"servd has no {name}", False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_replicas": 2, "autoscaling_config": {}}, ("num_replicas", "autoscaling_config")),
        ({"autoscaling_config": {"min_replicas": 3, "max_replicas": 2}}, ("3", "2")),
        ({"autoscaling_config": {"min_replicas": 2}}, ("2", "1")),
        ({"autoscaling_config": {"min_replicas": 3, "max_replicas": 5, "initial_replicas": 2}}, ("2", "3")),
        ({"autoscaling_config": {"max_replicas": 5, "initial_replicas": 9}}, ("9", "5")),
        ({"is_driver_deployment": True, "num_replicas": 2}, ("is_driver_deployment",)),
        ({"is_driver_deployment": True, "autoscaling_config": {}}, ("is_driver_deployment",)),
        (
            {"max_ongoing_requests": 1, "max_concurrent_queries": 1},
            ("max_ongoing_requests", "max_concurrent_queries"),
        ),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], words: tuple[str, ...]) -> None:
    for word in words:
        judge(deployment(**options), word, False)


@pytest.mark.parametrize(
    "options",
    [
        {"num_replicas": None, "autoscaling_config": {}},
        {"num_replicas": 2, "autoscaling_config": None},
        {"is_driver_deployment": True, "num_replicas": 1},
        {"max_ongoing_requests": 5},
        {"autoscaling_config": {"target_ongoing_requests": 2}},
    ],
)
def test_options_that_go_together(options: dict[str, Any]) -> None:
    judge(deployment(**options), "", True)
