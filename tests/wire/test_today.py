"""Today's dialect of the admin API: which requests are answered in it, and that its answers have the recorded form."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from servd.documents.control_plane import DeadReplicaView
from servd.documents.controller_views import ScalingView
from servd.ground.states import DeploymentStanding, ReplicaState, StatusTrigger
from servd.rest.access import AccessRules
from servd.rest.today import details, stored_config
from servd.rest.today_shapes import TodayInstance
from servd.schema import ServeInstanceDetails
from tests.wire.fake_plane import FakePlane, Server, an_application, an_instance

RECORDED = sorted((Path(__file__).parent / "today").glob("*.json"))
EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*v2-get-[!s]*.json"))
EXACT = TypeAdapter(TodayInstance)
V2 = "/api/serve/applications/"
SCALE = "/api/v1/applications/a/deployments/D/scale"
DOCUMENT = {"applications": [{"name": "a", "import_path": "m:a", "route_prefix": "/"}]}
ONLY_RAY = {
    "grpc_options",
    "keep_alive_timeout_s",
    "ssl_keyfile_password",
}
"""Keys of recorded answers that servd's do not have."""
TABLES = {"applications", "deployments", "proxies", "nodes"}
OPEN = {"deployment_config", "deployed_app_config", "required_resources", "controller_health_metrics", "grpc_options"}
"""Objects of which the keys are not fixed."""


def a_busy_instance() -> Any:
    app = an_application("a")
    config = {
        "name": "a_D",
        "max_concurrent_queries": 7,
        "user_config": {"price": 5},
        "autoscaling_config": {"max_replicas": 3, "target_num_ongoing_requests_per_replica": 2.0},
        "ray_actor_options": {"runtime_env": {"working_dir": "file:///code", "env_vars": {}}, "num_cpus": 0.1},
        "is_driver_deployment": False,
        "memory_limit_bytes": 10_000,
    }
    deployment = replace(
        app.deployments[0],
        config=config,
        recent_dead=(DeadReplicaView("a_D#zzzzzz", 9, -9, 4.0, "killed", actor_id="1" * 32, start_time_s=3.5),),
        autoscaling={"target": 2, "reason": "so"},
        standing=DeploymentStanding.UPSCALING,
        status_trigger=StatusTrigger.AUTOSCALING,
        target_num_replicas=3,
        outbound=("E",),
        decisions=(ScalingView(5.0, 1, 3, "asks for 3"),),
    )
    stored = {"name": "a", "import_path": "m:a", "deployments": [{"name": "D", "max_concurrent_queries": 7}]}
    by_document = replace(app, deployments=(deployment,), ingress="D", config=stored)
    by_program = replace(an_application("b", config=None), is_declarative=False)
    return an_instance(running=True, applications=(by_document, by_program))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(FakePlane(a_busy_instance()), AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


def paths_of(value: Any, at: str = "") -> set[tuple[str, str]]:
    """Every key of an answer with the keys above it, names of applications, deployments, proxies and nodes left out."""
    found: set[tuple[str, str]] = set()
    for item in value if isinstance(value, list) else ():
        found |= paths_of(item, at)
    for key, item in value.items() if isinstance(value, dict) else ():
        found.add((at, key))
        below = item.values() if key in TABLES and isinstance(item, dict) else [item]
        if key not in OPEN:
            found |= {pair for each in below for pair in paths_of(each, f"{at}.{key}")}
    return found


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_the_models_take_what_was_recorded(path: Path) -> None:
    EXACT.validate_json(path.read_bytes())


@pytest.mark.parametrize("path", [*RECORDED, *EXAMPLES], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_public_types_take_the_answers_of_either_dialect(path: Path) -> None:
    answer = json.loads(path.read_text())
    answer = answer["response"]["json"] if "response" in answer else answer
    found = ServeInstanceDetails(**answer)
    assert {name: app.status for name, app in found.applications.items()} == {
        name: app["status"] for name, app in answer["applications"].items()
    }


def test_the_public_types_take_what_is_answered_here() -> None:
    answer = json.loads(json.dumps(details(a_busy_instance())))
    found = ServeInstanceDetails(**answer)
    assert found.http_options is not None
    assert (found.http_options.port, found.http_options["port"]) == (answer["http_options"]["port"],) * 2
    app = found.applications["a"]
    assert app.deployed_app_config is not None
    sent = answer["applications"]["a"]["deployed_app_config"]
    assert app.deployed_app_config.model_dump(exclude_unset=True) == sent
    assert (app.source, app.deployments["D"].status_trigger) == ("declarative", StatusTrigger.AUTOSCALING)
    assert [replica.state for replica in app.deployments["D"].recent_dead_replicas] == ["STOPPED"]


def test_an_answer_has_every_recorded_key_and_no_other() -> None:
    ours = json.loads(json.dumps(details(a_busy_instance())))
    EXACT.validate_python(ours)
    recorded = {pair for path in RECORDED for pair in paths_of(json.loads(path.read_text()))}
    scaling, node = ".applications.deployments.autoscaling_detail", ".applications.deployment_topology.nodes"
    assert {key for _, key in recorded - paths_of(ours)} == ONLY_RAY
    # what was recorded had neither decisions nor calls
    assert {at for at, _ in paths_of(ours) - recorded} == {
        ".applications.deployments",
        scaling,
        f"{scaling}.decisions",
        f"{node}.outbound_deployments",
    }


def test_nothing_runs() -> None:
    assert details(an_instance()) == json.loads(RECORDED[0].read_text())


def test_names_are_bare_and_options_are_todays() -> None:
    app = details(a_busy_instance())["applications"]["a"]
    deployment = app["deployments"]["D"]
    assert deployment["name"] == "D"
    assert deployment["message"] == "Scaling up from 1 to 3 replicas."
    assert deployment["required_resources"] == {"CPU": 0.1}
    assert deployment["deployment_config"] == {
        "name": "D",
        "max_ongoing_requests": 7,
        "user_config": {"price": 5},
        "autoscaling_config": {"max_replicas": 3, "target_ongoing_requests": 2.0},
        "ray_actor_options": {"runtime_env": {"working_dir": "local:///code"}, "num_cpus": 0.1},
        "max_queued_requests": -1,
        "backpressure_config": {"status_code": 503, "retry_after_s": None},
    }
    assert app["deployed_app_config"] == {
        "name": "a",
        "import_path": "m:a",
        "deployments": [{"name": "D", "max_ongoing_requests": 7}],
    }
    [replica] = deployment["replicas"]
    assert (replica["replica_id"], replica["actor_name"]) == ("aBcDeF", "SERVE_REPLICA::a#D#aBcDeF")
    [dead] = deployment["recent_dead_replicas"]
    assert (dead["replica_id"], dead["state"], dead["start_time_s"]) == ("zzzzzz", "STOPPED", 3.5)


def test_no_process_is_without_its_node() -> None:
    view = a_busy_instance()
    starting = replace(view.applications[0].deployments[0].replicas[0], state=ReplicaState.STARTING, pid=None)
    deployment = replace(view.applications[0].deployments[0], replicas=(starting,))
    view = replace(view, applications=(replace(view.applications[0], deployments=(deployment,)),))
    [replica] = details(view)["applications"]["a"]["deployments"]["D"]["replicas"]
    assert replica["node_id"] == view.node_id


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ({"runtime_env": {"working_dir": "file:///a b.zip"}}, {"runtime_env": {"working_dir": "file:///a b.zip"}}),
        ({"runtime_env": {"py_modules": ["/a b"]}}, {"runtime_env": {"py_modules": ["local:///a%20b"]}}),
        ({"deployments": [{"name": "D", "user_config": [1]}]}, {"deployments": [{"name": "D"}]}),
        ({"deployments": [{"name": "D", "user_config": None}]}, {"deployments": [{"name": "D", "user_config": None}]}),
        ({"args": {"x": 1}}, {"args": {"x": 1}}),
    ],
)
def test_a_stored_config_is_shown_as_todays_client_takes_it(stored: dict[str, Any], shown: dict[str, Any]) -> None:
    assert stored_config(stored) == shown


def is_today(server: Server, query: str = "", **where: bool) -> bool:
    status, headers, text = server.ask("GET", V2 + query, **where)
    assert (status, headers["etag"]) == (200, '"0"')
    return "proxies" in json.loads(text)


def test_the_port_decides_and_the_query_overrides_it(server: Server) -> None:
    assert [is_today(server, today=port) for port in (False, True)] == [False, True]
    assert not is_today(server, unix=True)
    for where in ({}, {"unix": True}, {"today": True}):
        assert is_today(server, "?dialect=today", **where)
        assert not is_today(server, "?dialect=2.5", **where)


def test_a_dialect_that_is_none_is_refused(server: Server) -> None:
    put = json.dumps(DOCUMENT)
    asked = (("GET", V2, None), ("PUT", V2, put), ("DELETE", V2, None), ("GET", "/api/ray/version", None))
    for verb, path, body in asked:
        status, _, text = server.ask(verb, f"{path}?dialect=2.6", body)
        assert (status, text) == (400, "query parameter dialect must be 2.5 or today, got '2.6'")
    assert server.plane.calls == []


def test_each_client_finds_its_release(server: Server) -> None:
    found = [json.loads(server.ask("GET", "/api/ray/version", today=port)[2]) for port in (False, True)]
    assert [(body["version"], body["ray_version"]) for body in found] == [("4", "2.5.1"), ("4", "2.60.0")]
    assert set(found[1]) == {"version", "ray_version", "ray_commit", "session_name"}


def test_only_applications_that_came_one_way_are_asked_for(server: Server) -> None:
    for query, names in (("", ["a", "b"]), ("?api_type=declarative", ["a"]), ("?api_type=IMPERATIVE", ["b"])):
        assert sorted(json.loads(server.ask("GET", V2 + query, today=True)[2])["applications"]) == names
    assert server.ask("GET", f"{V2}?api_type=unknown", today=True)[0] == 400


def test_a_document_of_today_leaves_others_alone_and_one_of_the_seed_does_not(server: Server) -> None:
    for port in (False, True):
        assert server.ask("PUT", V2, json.dumps(DOCUMENT), today=port)[::2] == (200, "")
    assert [call[1].keeps_others for call in server.plane.calls] == [False, True]
    status, _, text = server.ask("PUT", V2, json.dumps({**DOCUMENT, "aplications": []}), today=True)
    assert status == 400
    assert "applications" in text


def test_scale_answers_as_each_client_reads_it(server: Server) -> None:
    body = json.dumps({"target_num_replicas": 2})
    assert json.loads(server.ask("POST", SCALE, body)[2])["target_num_replicas"] == 2
    assert "message" in json.loads(server.ask("POST", SCALE, body, today=True)[2])
    for path, sent, status in ((SCALE, "{}", 400), (SCALE.replace("D", "E"), body, 404)):
        found = server.ask("POST", path, sent, today=True)
        assert (found[0], list(json.loads(found[2]))) == (status, ["error"])
    assert [call[:4] for call in server.plane.calls] == [("scale", "a", "D", 2)] * 2


def test_the_same_lock_is_on_both_doors(tmp_path: Path) -> None:
    with Server(FakePlane(), AccessRules("127.0.0.1", token="secret"), tmp_path).running() as server:
        assert [server.ask("GET", V2, today=port)[0] for port in (False, True)] == [401, 401]
