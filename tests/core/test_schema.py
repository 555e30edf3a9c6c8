"""V1 and V2 documents: every refusal with its text, and the form in which accepted ones are stored."""

from typing import Any

import pytest

from servd.documents.orders import StartOrder
from servd.documents.sent import HttpWish
from servd.exceptions import ConfigError
from servd.ground.states import DeployMode
from servd.schema import check_import_path, parse_v1, parse_v2


def an_app(**keys: Any) -> dict[str, Any]:
    return {"import_path": "m:a", **keys}


def with_deployment(**keys: Any) -> dict[str, Any]:
    return an_app(deployments=[{"name": "D", **keys}])


@pytest.mark.parametrize("path", ["m:a", "m.a", "p.q:a", "p.q.a"])
def test_good_import_paths(path: str) -> None:
    assert check_import_path(path) == path


@pytest.mark.parametrize("path", ["", "m", "a:b:c", ":a", "m:", ".a", "m.", ":", "."])
def test_bad_import_paths(path: str) -> None:
    with pytest.raises(ConfigError, match="import_path"):
        parse_v1({"import_path": path})


@pytest.mark.parametrize(
    ("document", "fragments"),
    [
        ({}, ["ServeApplicationSchema", "import_path"]),
        (an_app(name="default"), ["ServeDeploySchema", "name"]),
        (an_app(colour="red"), ["colour", "unknown key"]),
        (an_app(applications=[]), ["applications", "ServeDeploySchema"]),
        (an_app(route_prefix="fruit"), ["route_prefix", "'fruit'"]),
        (an_app(route_prefix="/fruit/"), ["route_prefix", "'/fruit/'"]),
        (an_app(route_prefix="/{x}"), ["route_prefix", "wildcards"]),
        (an_app(port="http"), ["port"]),
        (an_app(port=70000), ["port", "65535"]),
        (an_app(host=None), ["host"]),
        (an_app(args=[]), ["args"]),
        (an_app(deployments={}), ["deployments"]),
        (an_app(deployments=[{}]), ["deployments.0.name"]),
        (an_app(deployments=[{"name": "D"}, {"name": "D"}]), ["deployments.1.name", '"D"', "twice"]),
        (with_deployment(user_config=[1]), ["deployments.0.user_config"]),
        (with_deployment(max_concurrent_queries=None), ["deployments.0.max_concurrent_queries"]),
        (with_deployment(num_replicas=0), ["deployments.0.num_replicas"]),
        (with_deployment(num_replicas=1.5), ["deployments.0.num_replicas"]),
        (with_deployment(num_replicas="some"), ["deployments.0.num_replicas"]),
        (with_deployment(num_replicas=2, autoscaling_config={}), ["num_replicas", "autoscaling_config"]),
        (with_deployment(autoscaling_config={"min_replicas": 2}), ["autoscaling_config.max_replicas", "1", "2"]),
        (with_deployment(ray_actor_options={"colour": 1}), ["deployments.0.ray_actor_options.colour"]),
        (with_deployment(ray_actor_options={"runtime_env": {"working_dir": "."}}), ["working_dir", "relative"]),
        (with_deployment(placement_group_bundles=[]), ["servd has no placement_group_bundles"]),
        (with_deployment(backpressure_config={"status_code": 500}), ["backpressure_config.status_code", "429"]),
        (with_deployment(backpressure_config={"retry_after": 1}), ["backpressure_config.retry_after", "retry_after_s"]),
        (with_deployment(route_prefix="x"), ["deployments.0.route_prefix"]),
        (an_app(runtime_env={"working_dir": "s3://b/a.zip"}), ["runtime_env.working_dir", "https:"]),
        (an_app(runtime_env={"py_modules": ["https://h/a.tar"]}), ["runtime_env.py_modules.0", ".zip"]),
        (an_app(logging_config={"log_level": "loud"}), ["logging_config.log_level"]),
    ],
)
def test_v1_refusals_name_place_and_reason(document: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_v1(document)
    for fragment in ["ServeApplicationSchema", *fragments]:
        assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("document", "fragments"),
    [
        ({}, ["applications"]),
        ({"applications": None}, ["applications"]),
        ({"applications": [], "x": 1}, ["x"]),
        ({"applications": [], "proxy_location": "FixedNumber"}, ["proxy_location", "EveryNode"]),
        ({"applications": [], "proxy_location": "Moon"}, ["proxy_location"]),
        ({"applications": [], "http_options": {"host": None}}, ["http_options.host"]),
        ({"applications": [], "http_options": {"port": -1}}, ["http_options.port"]),
        (
            {"applications": [], "http_options": {"ssl_keyfile": "/x"}},
            ["http_options.ssl_keyfile", "give ssl_certfile too"],
        ),
        (
            {"applications": [], "http_options": {"ssl_keyfile": "x", "ssl_certfile": "/x"}},
            ["http_options.ssl_keyfile", "absolute path"],
        ),
        ({"applications": [], "target_capacity": 101}, ["target_capacity", "100"]),
        ({"applications": [], "controller_options": {}}, ["servd has no controller_options", "servd start"]),
        ({"applications": [], "tracing_config": {}}, ["servd has no tracing_config", "--trace-endpoint"]),
        ({"applications": [], "http_options": {"keep_alive_timeout_s": -5}}, ["http_options.keep_alive_timeout_s"]),
        (
            {"applications": [], "grpc_options": {"grpc_servicer_functions": ["f"]}},
            ["grpc_servicer_functions.0", "form"],
        ),
        ({"applications": [an_app(), an_app(route_prefix="/x")]}, ['"default"']),
        ({"applications": [an_app(name="a"), an_app(name="b")]}, ['"/"']),
        (
            {"applications": [an_app(name="a", route_prefix="/x"), an_app(name="b", route_prefix="/x")]},
            ['"/x"'],
        ),
        ({"applications": [an_app(name="")]}, ["applications.0.name", "nonempty"]),
        ({"applications": [an_app(name="a", host="0.0.0.0")]}, ["0.0.0.0", '"a"', "top-level config"]),
        ({"applications": [an_app(name="a", port=8000)]}, ["8000", '"a"', "top-level config"]),
        ({"applications": [3]}, ["applications.0"]),
    ],
)
def test_v2_refusals_name_place_and_reason(document: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_v2(document)
    for fragment in ["ServeDeploySchema", *fragments]:
        assert fragment in str(error.value)


@pytest.mark.parametrize("document", [1, "x", [1], None, True])
def test_what_is_no_object_is_refused_with_the_model_name(document: Any) -> None:
    with pytest.raises(ConfigError, match="ServeDeploySchema"):
        parse_v2(document)
    with pytest.raises(ConfigError, match="ServeApplicationSchema"):
        parse_v1(document)


def test_all_problems_are_listed_cross_field_ones_too() -> None:
    with pytest.raises(ConfigError) as error:
        parse_v2(
            {
                "colour": "red",
                "applications": [
                    an_app(name="a", port=1, import_path="x"),
                    {"name": "a", "deployments": [{"num_replicas": 0}]},
                ],
            }
        )
    text = str(error.value)
    for place in (
        "colour",
        "applications.0.port",
        "applications.0.import_path",
        "applications.1.import_path",
        "applications.1.deployments.0.name",
        "applications.1.deployments.0.num_replicas",
    ):
        assert f"  {place}: " in text
    assert '"a"' in text
    assert '"/"' in text


def nested(levels: int) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for _ in range(levels):
        document = {"x": document}
    return document


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (nested(5000), "levels deep"),
        ({"x": "\ud800"}, "surrogate"),
        ({1: 2}, "quote it"),
    ],
)
def test_values_that_cannot_be_stored_are_refused(args: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_v1(an_app(args=args))


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (an_app(), an_app()),
        (an_app(port="8001"), an_app(port=8001)),
        (an_app(external_scaler_enabled=False), an_app()),
        (
            an_app(runtime_env={"working_dir": "/srv/my app", "py_modules": [None, "/srv/x.zip"]}),
            an_app(runtime_env={"working_dir": "file:///srv/my%20app", "py_modules": ["file:///srv/x.zip"]}),
        ),
        (with_deployment(num_replicas=None), with_deployment(num_replicas=None)),
        (with_deployment(max_ongoing_requests=5), with_deployment(max_concurrent_queries=5)),
        (with_deployment(user_config=None), with_deployment(user_config=None)),
        (with_deployment(autoscaling_config=None), with_deployment(autoscaling_config=None)),
        (
            with_deployment(num_replicas="auto"),
            with_deployment(
                autoscaling_config={
                    "min_replicas": 1,
                    "max_replicas": 100,
                    "target_num_ongoing_requests_per_replica": 2.0,
                }
            ),
        ),
        (
            with_deployment(ray_actor_options={"num_cpus": 1, "env_vars": {"A": "1"}}),
            with_deployment(ray_actor_options={"runtime_env": {"env_vars": {"A": "1"}}, "num_cpus": 1.0}),
        ),
        (
            with_deployment(max_sync_threads=2, logging_config={}),
            with_deployment(max_sync_threads=2, logging_config={}),
        ),
    ],
)
def test_stored_form_holds_only_what_was_sent_in_the_old_spelling(sent: dict[str, Any], stored: Any) -> None:
    goal = parse_v1(sent)
    assert goal.stored == stored
    assert goal.applications[0].stored == stored
    assert list(goal.applications[0].deployments) == stored.get("deployments", [])


def test_stored_keys_are_in_contract_order() -> None:
    sent = {
        "args": {},
        "deployments": [{"start_method": "fork", "health_check_period_s": 1, "user_config": {}, "name": "D"}],
        "port": 1,
        "host": "h",
        "runtime_env": {},
        "import_path": "m:a",
        "route_prefix": None,
        "name": "n",
    }
    stored = parse_v2({"applications": [{k: v for k, v in sent.items() if k not in ("host", "port")}]}).stored
    app = stored["applications"][0]
    assert list(app) == ["name", "route_prefix", "import_path", "runtime_env", "deployments", "args"]
    assert list(app["deployments"][0]) == ["name", "user_config", "health_check_period_s", "start_method"]


def test_only_sent_options_are_wished_for() -> None:
    goal = parse_v2({"applications": []})
    assert (goal.mode, goal.applications) == (DeployMode.MULTI_APP, ())
    assert (goal.http.host, goal.http.port, goal.http.root_path, goal.http.location) == (None,) * 4
    goal = parse_v2({"applications": [], "proxy_location": "Disabled", "http_options": {"port": "81"}})
    assert (goal.http.host, goal.http.port, goal.http.location) == (None, 81, "NoServer")
    assert goal.stored["proxy_location"] == "NoServer"
    assert parse_v1(an_app(host="h")).http.host == "h"


def test_route_prefix_counts_only_if_given() -> None:
    assert not parse_v1(an_app()).applications[0].route_prefix_given
    app = parse_v1(an_app(route_prefix=None)).applications[0]
    assert app.route_prefix_given
    assert app.route_prefix is None


def test_keys_without_effect_are_accepted_and_not_stored() -> None:
    goal = parse_v2({"applications": [], "target_capacity": None})
    assert goal.stored == {"applications": []}


def test_the_innermost_logging_config_wins() -> None:
    goal = parse_v2(
        {
            "logging_config": {"log_level": "ERROR"},
            "applications": [
                an_app(name="a", route_prefix="/a"),
                an_app(name="b", logging_config={"encoding": "JSON"}),
            ],
        }
    )
    assert [app.logging_config for app in goal.applications] == [{"log_level": "ERROR"}, {"encoding": "JSON"}]


@pytest.mark.parametrize(
    ("order", "wish"),
    [
        ({}, HttpWish()),
        ({"port": 1, "root_path": ""}, HttpWish(port=1, root_path="")),
        (
            {"proxy_location": "EveryNode", "request_timeout_s": None},
            HttpWish(location="EveryNode", request_timeout_s=0.0),
        ),
        (
            {"ssl_certfile": None, "ssl_keyfile": None, "keep_alive_timeout_s": 2.0},
            HttpWish(ssl_certfile="", ssl_keyfile="", keep_alive_timeout_s=2.0),
        ),
        ({"grpc_options": {"grpc_servicer_functions": []}}, HttpWish(grpc_servicers=())),
    ],
)
def test_what_an_order_to_start_says_of_the_data_plane(order: dict[str, Any], wish: HttpWish) -> None:
    assert StartOrder.model_validate(order).wish() == wish
