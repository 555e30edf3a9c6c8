"""Deployment options, autoscaling, logging and HTTP options as users write them."""

from typing import Any

import pytest
from pydantic import ValidationError

from servd.config import (
    AggregationFunction,
    AutoscalingConfig,
    DeploymentConfig,
    DeploymentMode,
    HTTPOptions,
    LoggingConfig,
    RayActorOptions,
)


def places(error: pytest.ExceptionInfo[ValidationError]) -> set[str]:
    return {".".join(map(str, found["loc"])) for found in error.value.errors()}


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"num_replicas": 0}, "num_replicas"),
        ({"num_replicas": -1}, "num_replicas"),
        ({"num_replicas": 2.7}, "num_replicas"),
        ({"num_replicas": "two"}, "num_replicas"),
        ({"max_concurrent_queries": 0}, "max_concurrent_queries"),
        ({"max_ongoing_requests": 0}, "max_ongoing_requests"),
        ({"graceful_shutdown_wait_loop_s": -1}, "graceful_shutdown_wait_loop_s"),
        ({"graceful_shutdown_timeout_s": -0.1}, "graceful_shutdown_timeout_s"),
        ({"health_check_period_s": 0}, "health_check_period_s"),
        ({"health_check_timeout_s": 0}, "health_check_timeout_s"),
        ({"health_check_timeout_s": float("inf")}, "health_check_timeout_s"),
        ({"max_queued_requests": 0}, "max_queued_requests"),
        ({"max_queued_requests": -2}, "max_queued_requests"),
        ({"request_timeout_s": 0}, "request_timeout_s"),
        ({"max_sync_threads": 0}, "max_sync_threads"),
        ({"max_sync_threads": 10_001}, "max_sync_threads"),
        ({"num_replicas": 100_001}, "num_replicas"),
        ({"autoscaling_config": {"max_replicas": 100_001}}, "autoscaling_config.max_replicas"),
        ({"max_concurrent_queries": 2**63}, "max_concurrent_queries"),
        ({"max_queued_requests": 2**63}, "max_queued_requests"),
        ({"memory_limit_bytes": 10**1000}, "memory_limit_bytes"),
        ({"memory_limit_bytes": 0}, "memory_limit_bytes"),
        ({"start_method": "thread"}, "start_method"),
        ({"cancel_on_disconnect": "perhaps"}, "cancel_on_disconnect"),
        ({"user_config": {"a": object()}}, "user_config"),
        ({"colour": "red"}, "colour"),
        ({"is_driver_deployment": True, "num_replicas": 2}, "is_driver_deployment"),
        ({"is_driver_deployment": True, "autoscaling_config": {}}, "is_driver_deployment"),
    ],
)
def test_wrong_options_are_refused_with_their_place(options: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as error:
        DeploymentConfig(**options)
    assert places(error) == {place}


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({}, {}),
        ({"num_replicas": None}, {}),
        ({"num_replicas": "3"}, {"num_replicas": 3}),
        ({"max_ongoing_requests": 7}, {"max_concurrent_queries": 7}),
        ({"max_queued_requests": -1}, {"max_queued_requests": -1}),
        ({"request_timeout_s": None}, {"request_timeout_s": None}),
        ({"user_config": None}, {"user_config": None}),
        ({"health_check_period_s": "1.5"}, {"health_check_period_s": 1.5}),
        (
            {"num_replicas": "auto"},
            {
                "autoscaling_config": {
                    "min_replicas": 1,
                    "max_replicas": 100,
                    "target_num_ongoing_requests_per_replica": 2.0,
                }
            },
        ),
        (
            {"num_replicas": "auto", "autoscaling_config": {"max_replicas": 3, "target_ongoing_requests": 5}},
            {
                "autoscaling_config": {
                    "min_replicas": 1,
                    "max_replicas": 3,
                    "target_num_ongoing_requests_per_replica": 5.0,
                }
            },
        ),
    ],
)
def test_given_options_come_back_in_the_old_names(options: dict[str, Any], given: dict[str, Any]) -> None:
    assert DeploymentConfig(**options).given() == given


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ValidationError) as error:
        DeploymentConfig(
            num_replicas=-1, max_ongoing_requests=0, autoscaling_config={"min_replicas": 2, "x": 1}, colour="red"
        )
    assert places(error) == {
        "num_replicas",
        "max_ongoing_requests",
        "autoscaling_config.max_replicas",
        "autoscaling_config.x",
        "colour",
    }
    assert "num_replicas and autoscaling_config exclude each other" in str(error.value)


@pytest.mark.parametrize(
    ("model", "options", "names"),
    [
        (DeploymentConfig, {"max_concurrent_queries": 1, "max_ongoing_requests": 1}, "max_ongoing_requests"),
        (
            AutoscalingConfig,
            {"target_ongoing_requests": 1, "target_num_ongoing_requests_per_replica": 1},
            "target_num_ongoing_requests_per_replica",
        ),
    ],
)
def test_both_spellings_of_one_option_are_refused(model: Any, options: dict[str, Any], names: str) -> None:
    with pytest.raises(ValidationError, match="two spellings") as error:
        model(**options)
    assert names in str(error.value)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"min_replicas": 2}, ("1", "2")),
        ({"min_replicas": 5, "max_replicas": 3}, ("5", "3")),
        ({"min_replicas": 2, "max_replicas": 4, "initial_replicas": 1}, ("2", "1")),
        ({"max_replicas": 4, "initial_replicas": 9}, ("4", "9")),
    ],
)
def test_autoscaling_bounds_name_both_numbers(options: dict[str, Any], numbers: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        AutoscalingConfig(**options)
    message = error.value.errors()[0]["msg"]
    assert all(number in message for number in numbers)


def test_the_default_policy_may_be_spelled_out() -> None:
    policy = {"policy_function": "ray.serve.autoscaling_policy:default_autoscaling_policy", "policy_kwargs": {}}
    config = AutoscalingConfig(upscaling_factor=2, downscaling_factor=None, policy=policy)  # type: ignore[arg-type]
    assert config.model_dump(exclude_unset=True) == {"upscaling_factor": 2}


@pytest.mark.parametrize("given", [AggregationFunction.MAX, "max", "MAX"])
def test_an_aggregation_function_is_a_value_or_its_name(given: str) -> None:
    config = AutoscalingConfig(aggregation_function=given)
    assert config.model_dump(mode="json", exclude_unset=True) == {"aggregation_function": "max"}


def test_a_wrong_factor_is_told_with_its_place() -> None:
    with pytest.raises(ValidationError) as refused:
        DeploymentConfig(autoscaling_config={"upscaling_factor": "banana"})  # type: ignore[arg-type]
    assert "autoscaling_config.upscaling_factor" in str(refused.value)
    assert "banana" in str(refused.value)


def test_keys_of_today_are_in_the_json_schema() -> None:
    properties = AutoscalingConfig.model_json_schema()["properties"]
    assert properties["upscaling_factor"]["anyOf"][0] == {"exclusiveMinimum": 0, "type": "number"}
    assert properties["policy"]["anyOf"][1] == {"type": "null"}


def test_a_limit_below_the_target_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    DeploymentConfig(max_concurrent_queries=1, autoscaling_config={"target_ongoing_requests": 5})  # type: ignore[arg-type]
    assert "max_concurrent_queries=1 is below the 5" in caplog.text
    assert "it will never scale up" in caplog.text


def test_env_vars_shorthand_moves_and_the_nested_variable_wins() -> None:
    options = RayActorOptions(  # type: ignore[call-arg]
        env_vars={"a": "1", "b": "1"}, runtime_env={"env_vars": {"b": "2"}}
    )
    assert options.model_dump(exclude_unset=True) == {"runtime_env": {"env_vars": {"a": "1", "b": "2"}}}


@pytest.mark.parametrize(
    "options",
    [{"num_cpus": -1}, {"resources": {"CPU": 1}}, {"env_vars": 3}, {"max_restarts": 1}, {"num_gpus": "many"}],
)
def test_wrong_actor_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RayActorOptions(**options)


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        ({"log_level": "debug", "encoding": "JSON"}, True),
        ({"log_level": 10}, True),
        ({"logs_dir": None, "additional_log_standard_attrs": []}, True),
        ({"logs_dir": "/tmp"}, True),
        ({"logs_dir": "logs"}, False),
        ({"logs_dir": "/tmp/a\0b"}, False),
        ({"log_level": "loud"}, False),
        ({"encoding": "XML"}, False),
    ],
)
def test_logging_config(options: dict[str, Any], accepted: bool) -> None:
    if accepted:
        LoggingConfig(**options)
    else:
        with pytest.raises(ValidationError):
            LoggingConfig(**options)


def test_an_attribute_of_log_records_is_taken_once() -> None:
    assert LoggingConfig(additional_log_standard_attrs=["name", "process", "name"]).additional_log_standard_attrs == [
        "name",
        "process",
    ]


@pytest.mark.parametrize(
    ("options", "location"),
    [
        ({}, DeploymentMode.EveryNode),
        ({"host": None}, DeploymentMode.NoServer),
        ({"location": None}, DeploymentMode.NoServer),
        ({"location": "HeadOnly"}, DeploymentMode.HeadOnly),
        ({"location": "FixedNumber", "fixed_number_replicas": 1}, DeploymentMode.FixedNumber),
    ],
)
def test_http_location(options: dict[str, Any], location: DeploymentMode) -> None:
    assert HTTPOptions(**options).location == location


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"middlewares": [1]}, "wrap the application's own ASGI app"),
        ({"location": "FixedNumber"}, "fixed_number_replicas"),
        ({"port": 70000}, "65535"),
        ({"colour": 1}, "unknown key"),
    ],
)
def test_wrong_http_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        HTTPOptions(**options)
