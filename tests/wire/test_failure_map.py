"""Every message of the failure map, letter by letter: people read these. `SERVD_UPDATE_SNAPSHOTS=1` writes them anew."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servd.controller.goal_store import GoalStore
from servd.controller.plan import change
from servd.controller.plan.goal import Goal, HttpGoal
from servd.controller.snapshots import take_snapshots
from servd.documents.sent import HttpWish
from servd.exceptions import ConfigError, DeployError, GoalNotSavedError, ListenError
from servd.ground.states import DeployMode
from servd.rest.access import AccessRules
from servd.schema import parse_v1, parse_v2
from tests.wire.fake_plane import FakePlane, Server, an_instance

SNAPSHOTS = Path(__file__).with_suffix(".json")
V1, V2 = "/api/serve/deployments/", "/api/serve/applications/"
HTTP = HttpGoal("127.0.0.1", 8000)
MANY_FAULTS = {
    "proxy_location": "Moon",
    "http_options": {"port": 70000, "hots": "x"},
    "applications": [
        {"name": "a", "import_path": "m", "colour": "red", "route_prefix": "x"},
        {
            "name": "a",
            "import_path": "m:a",
            "port": 1,
            "runtime_env": {"working_dir": "."},
            "deployments": [
                {"name": "D", "num_replica": 2, "autoscaling_config": {"min_replicas": 3}},
                {"name": "D", "num_replicas": 0, "user_config": [1], "max_replicas_per_node": 1},
                {"name": "E", "num_replicas": 1, "autoscaling_config": {}, "ray_actor_options": {"num_cpu": 1}},
                {"name": "F", "max_concurrent_queries": 1, "max_ongoing_requests": 2},
            ],
        },
    ],
    "target_capacity": 5,
}

REQUESTS: dict[str, tuple[str, str, Any, dict[str, str]]] = {
    "unknown path": ("GET", "/api/serve/applications", None, {}),
    "wrong verb": ("POST", V2, None, {}),
    "foreign host": ("GET", V2, None, {"Host": "evil.example:52365"}),
    "foreign origin": ("PUT", V2, {}, {"Origin": "http://evil.example"}),
    "cross site": ("PUT", V2, {}, {"Sec-Fetch-Site": "cross-site"}),
    "body too large": ("PUT", V2, "x" * (1024 * 1024 + 1), {}),
    "other revision": ("PUT", V2, {}, {"If-Match": '"9"'}),
    "empty body": ("PUT", V2, "", {}),
    "no json": ("PUT", V2, '{"applications": [', {}),
    "number": ("PUT", V1, 3, {}),
    "list": ("PUT", V2, [1], {}),
    "many faults": ("PUT", V2, MANY_FAULTS, {}),
    "missing keys": ("PUT", V1, {}, {}),
    "v1 with a name": ("PUT", V1, {"name": "default", "import_path": "m:a"}, {}),
    "duplicate prefix": (
        "PUT",
        V2,
        {"applications": [{"name": "a", "import_path": "m:a"}, {"import_path": "m:a"}]},
        {},
    ),
    "no dry run": ("PUT", f"{V2}?dry_run=perhaps", {"applications": []}, {}),
    "scale": ("POST", "/api/v1/applications/a/deployments/D/scale", {"target_num_replicas": "1", "n": 2}, {}),
    "unknown revision": ("GET", "/api/servd/v1/revisions/latest", None, {}),
}
PLANE_ERRORS: dict[str, Exception] = {
    "listener": ListenError("127.0.0.1", 8001, "address already in use"),
    "delete takes too long": DeployError("not everything was gone within 60 s: a_D"),
    "unexpected": RuntimeError("the moon is in the wrong house"),
}


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, list[Any]]]:
    """What was said in this run: name -> [status, text]. The snapshots are compared by each test."""
    said: dict[str, list[Any]] = {}
    yield said
    if os.environ.get("SERVD_UPDATE_SNAPSHOTS"):
        SNAPSHOTS.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")


def check(found: dict[str, list[Any]], name: str, status: int, text: str) -> None:
    found[name] = [status, text.splitlines()]
    if not os.environ.get("SERVD_UPDATE_SNAPSHOTS"):
        assert found[name] == json.loads(SNAPSHOTS.read_text())[name]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(FakePlane(), AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


@pytest.mark.parametrize("name", REQUESTS)
def test_what_the_server_refuses(server: Server, found: dict[str, list[Any]], name: str) -> None:
    method, path, body, headers = REQUESTS[name]
    data = body if body is None or isinstance(body, str) else json.dumps(body)
    status, _, text = server.ask(method, path, data, headers=headers)
    assert server.plane.calls == []
    check(found, name, status, text)


@pytest.mark.parametrize("name", PLANE_ERRORS)
def test_what_goes_wrong_inside(server: Server, found: dict[str, list[Any]], name: str) -> None:
    server.plane.error = PLANE_ERRORS[name]
    status, _, text = server.ask("DELETE", V2)
    check(found, name, status, text)


@pytest.mark.parametrize(("name", "headers"), [("no token", {}), ("wrong token", {"Authorization": "Bearer x"})])
def test_who_has_no_token(tmp_path: Path, found: dict[str, list[Any]], name: str, headers: dict[str, str]) -> None:
    with Server(FakePlane(), AccessRules("127.0.0.1", token="secret"), tmp_path).running() as server:
        status, _, text = server.ask("GET", V2, headers=headers)
    check(found, name, status, text)


def test_another_user(tmp_path: Path, found: dict[str, list[Any]]) -> None:
    rules = AccessRules("127.0.0.1", uids=frozenset({os.getuid() + 1}))
    with Server(FakePlane(an_instance()), rules, tmp_path).running() as server:
        status, _, text = server.ask("GET", V2)
    check(found, "another user", status, text.replace(f"uid {os.getuid()}", "uid 1000"))


def situation(**changes: Any) -> change.Situation:
    fields = {"http": HTTP, "present": (), "deployed": (), "deployed_at": 0.0, "deploy_id": 1, **changes}
    return change.Situation(**fields)


def app(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "import_path": "m:a", "route_prefix": f"/{name}", **keys}


def of_deployment(name: str) -> dict[str, Any]:
    return {"deployments": [{"name": name}]}


V2_OPTIONS = {
    "host": {"http_options": {"host": "0.0.0.0"}},
    "port": {"http_options": {"port": 8001}},
    "root path": {"http_options": {"root_path": "/r"}},
    "location": {"proxy_location": "NoServer"},
}


@pytest.mark.parametrize("option", V2_OPTIONS)
def test_other_options_than_those_in_force(found: dict[str, list[Any]], option: str) -> None:
    document = parse_v2({**V2_OPTIONS[option], "applications": []})
    with pytest.raises(ConfigError) as caught:
        change.check_put(Goal(), document, situation(present={"a"}))
    check(found, f"option {option}", caught.value.status_code, str(caught.value))


def test_versions_that_do_not_mix(found: dict[str, list[Any]]) -> None:
    for mode, document in (
        (DeployMode.MULTI_APP, parse_v1({"import_path": "m:a"})),
        (DeployMode.SINGLE_APP, parse_v2({"applications": []})),
    ):
        with pytest.raises(ConfigError) as caught:
            change.check_put(Goal(1, True, mode, HTTP), document, situation())
        check(found, f"mode {mode}", caught.value.status_code, str(caught.value))


def test_environments_that_are_malformed(found: dict[str, list[Any]]) -> None:
    own = {"ray_actor_options": {"runtime_env": {"conda": "x"}}}
    env = {"env_vars": {"A": 1}, "pip": {"packages": [], "colour": "red"}}
    document = parse_v2({"applications": [app("a", runtime_env=env, deployments=[{"name": "D", **own}])]})
    with pytest.raises(ConfigError) as caught:
        change.check_put(Goal(), document, situation())
    check(found, "runtime_env", caught.value.status_code, str(caught.value))


def test_a_directory_that_is_missing(tmp_path: Path, found: dict[str, list[Any]]) -> None:
    document = parse_v2({"applications": [app("a", runtime_env={"working_dir": "/no/such/directory"})]})
    with pytest.raises(ConfigError) as caught:
        take_snapshots(document.applications, str(tmp_path))
    check(found, "missing directory", caught.value.status_code, str(caught.value))


def test_one_full_name_for_two(found: dict[str, list[Any]]) -> None:
    document = parse_v2({"applications": [app("a", **of_deployment("b_c")), app("a_b", **of_deployment("c"))]})
    with pytest.raises(ConfigError) as caught:
        change.check_put(Goal(), document, situation())
    check(found, "full name", caught.value.status_code, str(caught.value))


def test_a_store_that_is_full(tmp_path: Path, found: dict[str, list[Any]]) -> None:
    store = GoalStore.open(str(tmp_path), max_pages=1)
    goal = change.put(Goal(), parse_v2({"applications": [app("a", args={"x": "y" * 9000})]}), HTTP, situation(), {})
    with pytest.raises(GoalNotSavedError) as caught:
        store.save(replace(goal, asked=HttpWish()), "", 0.0)
    store.close()
    check(found, "full store", caught.value.status_code, str(caught.value).replace(str(tmp_path), "<state>"))
