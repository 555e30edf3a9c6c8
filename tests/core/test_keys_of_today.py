"""Every key of the documents of Ray Serve 2.60 works, or is refused with a reason: nothing is accepted and ignored."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from servd.documents import runtime_env
from servd.documents.request_router import ROUTER_DEFAULTS
from servd.documents.router_names import DEFAULT_CLASS
from servd.exceptions import ConfigError
from servd.schema import parse_v2

KEYS: dict[str, list[str]] = json.loads(Path(__file__).with_name("keys_of_today.json").read_text())
"""Object of a document -> its keys, as the schemas of 2.60 have them."""
PAGE = (Path(__file__).parents[2] / "docs" / "from-ray-serve.md").read_text()


class Works(NamedTuple):
    """The key changes what is wanted, with this value."""

    value: Any


class Default(NamedTuple):
    """The value that documents of today spell out and that means nothing here is taken; others are refused."""

    value: Any
    other: Any


class Refused(NamedTuple):
    """The key is refused, with this value."""

    value: Any


State = Works | Default | Refused
STATES: dict[str, dict[str, State]] = {
    "": {
        "proxy_location": Works("HeadOnly"),
        "http_options": Works({"port": 9}),
        "grpc_options": Works({"grpc_servicer_functions": ["m:f"]}),
        "controller_options": Refused({}),
        "logging_config": Works({"encoding": "JSON"}),
        "tracing_config": Refused({}),
        "applications": Works([{"import_path": "other:app"}]),
        "target_capacity": Works(50),
    },
    "http_options": {
        "host": Works("0.0.0.0"),
        "port": Works(81),
        "root_path": Works("/r"),
        "request_timeout_s": Works(3),
        "keep_alive_timeout_s": Works(5),
        "ssl_keyfile": Works("/other/key"),
        "ssl_certfile": Works("/other/certificate"),
        "ssl_keyfile_password": Works("x"),
        "ssl_ca_certs": Works("/a"),
    },
    "grpc_options": {
        "port": Works(9001),
        "grpc_servicer_functions": Works(["m:f"]),
        "request_timeout_s": Works(3),
        "enable_reflection": Works(False),
    },
    "controller_options": {"runtime_env": Refused({})},
    "logging_config": {
        "encoding": Works("JSON"),
        "log_level": Works("DEBUG"),
        "logs_dir": Works("/logs"),
        "enable_access_log": Works(False),
        "additional_log_standard_attrs": Works(["process"]),
    },
    "tracing_config": dict.fromkeys(("enabled", "exporter_import_path", "sampling_ratio"), Refused(1)),
    "applications": {
        "name": Works("b"),
        "route_prefix": Works("/b"),
        "import_path": Works("other:app"),
        "runtime_env": Works({"env_vars": {"A": "1"}}),
        "host": Refused("0.0.0.0"),
        "port": Refused(81),
        "deployments": Works([{"name": "D"}]),
        "autoscaling_policy": Works({"policy_function": "m:f"}),
        "args": Works({"a": 1}),
        "logging_config": Works({"encoding": "JSON"}),
        "external_scaler_enabled": Works(True),
    },
    "deployments": {
        "name": Works("E"),
        "num_replicas": Works(2),
        "max_ongoing_requests": Works(2),
        "max_queued_requests": Works(2),
        "backpressure_config": Works({"status_code": 429}),
        "user_config": Works({"a": 1}),
        "autoscaling_config": Works({"max_replicas": 2}),
        "graceful_shutdown_wait_loop_s": Works(1),
        "graceful_shutdown_timeout_s": Works(1),
        "health_check_period_s": Works(1),
        "health_check_timeout_s": Works(1),
        "ray_actor_options": Works({"num_cpus": 2}),
        "placement_group_bundles": Refused([{"CPU": 1}]),
        "placement_group_strategy": Refused("PACK"),
        "placement_group_bundle_label_selector": Refused([]),
        "max_replicas_per_node": Refused(1),
        "logging_config": Works({"encoding": "JSON"}),
        "request_router_config": Works({"request_router_class": "round_robin"}),
        "gang_scheduling_config": Refused({"gang_size": 2}),
        "deployment_actors": Refused([]),
        "rolling_update_percentage": Works(0.5),
        "max_surge_percent": Works(10),
    },
    "ray_actor_options": {
        "runtime_env": Works({"env_vars": {"A": "1"}}),
        "num_cpus": Works(2),
        "num_gpus": Works(1),
        "memory": Works(10),
        "resources": Works({"x": 1}),
        "accelerator_type": Works("A100"),
        "label_selector": Refused({}),
        "fallback_strategy": Refused([]),
    },
    "autoscaling_config": {
        "min_replicas": Works(0),
        "initial_replicas": Works(2),
        "max_replicas": Works(8),
        "target_ongoing_requests": Works(3),
        "metrics_interval_s": Works(1),
        "look_back_period_s": Works(5),
        "smoothing_factor": Works(0.5),
        "upscale_smoothing_factor": Works(0.5),
        "downscale_smoothing_factor": Works(0.5),
        "upscaling_factor": Works(0.5),
        "downscaling_factor": Works(0.5),
        "downscale_delay_s": Works(5),
        "downscale_to_zero_delay_s": Works(5),
        "upscale_delay_s": Works(5),
        "aggregation_function": Works("max"),
        "policy": Works({"policy_function": "m:f"}),
    },
    "policy": {"policy_function": Works("m:f"), "policy_kwargs": Works({"a": 1})},
    "backpressure_config": {"status_code": Works(429), "retry_after_s": Works(2)},
    "request_router_config": {
        "request_router_class": Works("round_robin"),
        "request_router_kwargs": Works({"num_virtual_nodes": 5}),
        **{key: Default(value, 1) for key, (value, _) in ROUTER_DEFAULTS.items()},
    },
    "gang_scheduling_config": dict.fromkeys(KEYS["gang_scheduling_config"], Refused(1)),
    "runtime_env": {
        **{key: Refused("x") for key in ("conda", "container", "image_uri", "java_jars", "py_executable")},
        "worker_process_setup_hook": Refused("m.f"),
        "config": Works({"setup_timeout_seconds": 5}),
        "env_vars": Works({"A": "1"}),
        "excludes": Works(["*.log"]),
        "pip": Works(["a"]),
        "uv": Works(["a"]),
        "py_modules": Works(["/a/b"]),
        "working_dir": Works("/a"),
    },
}
APP = {"import_path": "m:app"}
TLS = {"ssl_certfile": "/certificate", "ssl_keyfile": "/key"}


def deployment(**options: Any) -> dict[str, Any]:
    return {"applications": [{**APP, "deployments": [{"name": "D", **options}]}]}


PLACES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "": lambda keys: {"applications": [APP], **keys},
    **{
        name: lambda keys, name=name: {"applications": [APP], name: keys}  # type: ignore[misc]
        for name in ("grpc_options", "controller_options", "logging_config", "tracing_config")
    },
    "http_options": lambda keys: {"applications": [APP], "http_options": {**TLS, **keys}},
    "applications": lambda keys: {"applications": [{**APP, **keys}]},
    "deployments": lambda keys: deployment(**keys),
    "autoscaling_config": lambda keys: deployment(autoscaling_config={"max_replicas": 9, **keys}),
    "policy": lambda keys: deployment(autoscaling_config={"policy": {"policy_function": "m:policy", **keys}}),
    **{
        name: lambda keys, name=name: deployment(**{name: keys})  # type: ignore[misc]
        for name in ("ray_actor_options", "backpressure_config", "gang_scheduling_config")
    },
    "request_router_config": lambda keys: deployment(
        request_router_config={"request_router_class": "consistent_hash", **keys}
    ),
    "runtime_env": lambda keys: {"applications": [{**APP, "runtime_env": keys}]},
}


def rows() -> list[Any]:
    return [
        pytest.param(place, key, state, id=f"{place}.{key}".lstrip("."))
        for place, states in STATES.items()
        for key, state in states.items()
    ]


def wanted(place: str, keys: dict[str, Any]) -> Any:
    """The goal behind a document with these keys at that place.

    Raises:
        ConfigError: it is refused.
    """
    if place == "runtime_env":
        runtime_env.check_application("app", keys, ())
    return parse_v2(PLACES[place](keys))


def check_refused(place: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        wanted(place, {key: value})
    text = str(refusal.value)
    assert place in text
    assert key in text or f"servd has no {place}" in text
    assert "unknown key" not in text, "a reason, and the way to get the same"


def test_the_router_that_documents_of_today_spell_out_is_as_none() -> None:
    spelled_out = {key: value for key, (value, _) in ROUTER_DEFAULTS.items()}
    spelled_out |= {"request_router_class": DEFAULT_CLASS, "request_router_kwargs": {}}
    assert parse_v2(deployment(request_router_config=spelled_out)) == parse_v2(deployment())


def test_every_key_of_today_has_a_row() -> None:
    assert {place: set(keys) for place, keys in KEYS.items()} == {place: set(keys) for place, keys in STATES.items()}


@pytest.mark.parametrize(("place", "key", "state"), rows())
def test_a_key_works_or_is_refused_with_a_reason(place: str, key: str, state: State) -> None:
    if isinstance(state, Refused):
        check_refused(place, key, state.value)
        return
    without = wanted(place, {})
    assert (wanted(place, {key: state.value}) != without) is isinstance(state, Works), "accepted and ignored"
    if isinstance(state, Default):
        check_refused(place, key, state.other)


@pytest.mark.parametrize(("place", "key", "state"), rows())
def test_the_page_says_what_becomes_of_each_key(place: str, key: str, state: State) -> None:
    _, _, table = PAGE.partition("## Keys of documents")
    lines = [line for line in table.splitlines() if line.startswith("|") and re.search(rf"`{key}`", line)]
    section = f"`{place}`" if place else "top level"
    assert [line for line in lines if line.split("|")[1].strip() == section], f"{section}: {key} is not in the table"
