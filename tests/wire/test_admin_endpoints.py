"""Paths, verbs, statuses, headers and bodies of the admin plane, over real HTTP."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servd.exceptions import ConfigError, DeployError, GoalNotSavedError, ListenError
from servd.ground.states import ApplicationStatus, DeployMode
from servd.rest.access import AccessRules
from tests.wire.fake_plane import FakePlane, Server, an_application, an_instance

V1 = "/api/serve/deployments/"
V1_STATUS = "/api/serve/deployments/status"
V2 = "/api/serve/applications/"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(FakePlane(), AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


@pytest.mark.parametrize(
    "path",
    [
        "/api/serve/deployments",
        "/api/serve/applications",
        "/api/serve/deployments/status/",
        "/api/serve/applications%2F",
        "/api/serve/%61pplications/",
        "//api/serve/applications/",
        "/api/servd/v1/applications",
        "/api/servd/v1/applications/a/b",
        "/page",
        "/page/index.html",
        "/page/../access.py",
        "/index.html",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_any_other_spelling_is_not_found(server: Server, method: str, path: str) -> None:
    status, headers, body = server.ask(method, path)
    assert (status, body) == (404, "404: Not Found")
    assert headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", V1, "GET, PUT, DELETE, HEAD"),
        ("POST", V2, "GET, PUT, DELETE, HEAD"),
        ("OPTIONS", V2, "GET, PUT, DELETE, HEAD"),
        ("PUT", V1_STATUS, "GET, HEAD"),
        ("DELETE", "/api/ray/version", "GET, HEAD"),
        ("GET", "/api/servd/v1/start", "POST"),
    ],
)
def test_wrong_verbs_are_answered_with_the_right_ones(server: Server, method: str, path: str, allow: str) -> None:
    status, headers, body = server.ask(method, path)
    assert (status, body, headers["allow"]) == (405, "405: Method Not Allowed", allow)


def test_bodies_when_serve_does_not_run(server: Server) -> None:
    assert json.loads(server.ask("GET", V1)[2]) == {"import_path": "", "runtime_env": {}, "deployments": []}
    assert json.loads(server.ask("GET", V1_STATUS)[2]) == {
        "app_status": {"status": "NOT_STARTED", "message": "", "deployment_timestamp": 0},
        "deployment_statuses": [],
    }
    assert json.loads(server.ask("GET", V2)[2]) == {"deploy_mode": "UNSET", "controller_info": {}, "applications": {}}


def test_v1_status_of_a_running_instance(server: Server) -> None:
    server.plane.instance = an_instance(running=True)
    body = json.loads(server.ask("GET", V1_STATUS)[2])
    assert body["app_status"]["status"] == "NOT_STARTED"
    assert "does not exist" in body["app_status"]["message"]
    server.plane.instance = an_instance(running=True, applications=(an_application(),))
    assert json.loads(server.ask("GET", V1_STATUS)[2]) == {
        "name": "default",
        "app_status": {"status": "RUNNING", "message": "", "deployment_timestamp": 1.25},
        "deployment_statuses": [{"name": "D", "status": "HEALTHY", "message": ""}],
    }


def test_v2_details_have_the_contract_keys_in_order(server: Server) -> None:
    server.plane.instance = an_instance(running=True, mode=DeployMode.MULTI_APP, applications=(an_application("a"),))
    body = json.loads(server.ask("GET", V2)[2])
    assert list(body) == [
        "controller_info", "proxy_location", "http_options", "http_proxies", "deploy_mode", "applications",
    ]  # fmt: skip
    assert body["http_options"] == {"host": "127.0.0.1", "port": 8000}
    assert list(body["http_proxies"]) == ["e" * 56]
    assert body["http_proxies"]["e" * 56]["status"] == "HEALTHY"
    app = body["applications"]["a"]
    assert list(app) == [
        "name", "route_prefix", "docs_path", "status", "message", "last_deployed_time_s", "deployed_app_config",
        "deployments",
    ]  # fmt: skip
    replica = app["deployments"]["a_D"]["replicas"][0]
    assert replica["actor_name"] == "SERVE_REPLICA::a_D#aBcDeF"
    assert replica["log_file_path"] == "/serve/deployment_a_D_a_D#aBcDeF.log"
    assert list(replica)[:10] == [
        "node_id", "node_ip", "actor_id", "actor_name", "worker_id", "log_file_path", "replica_id", "state", "pid",
        "start_time_s",
    ]  # fmt: skip


def test_head_and_headers_of_success(server: Server) -> None:
    status, headers, body = server.ask("HEAD", V2)
    assert (status, body, headers["etag"]) == (200, "", '"0"')
    assert headers["content-type"] == "application/json; charset=utf-8"
    server.plane.instance = an_instance(running=True, applications=(an_application(message="Ä"),))
    assert '"message": "\\u00c4"' in server.ask("GET", V2)[2]
    assert "access-control-allow-origin" not in headers


def test_put_has_an_empty_json_answer_and_reaches_the_plane(server: Server) -> None:
    document = {"import_path": "m:a", "port": 8001}
    status, headers, body = server.ask("PUT", V1, json.dumps(document), headers={"Content-Type": "text/plain"})
    assert (status, body) == (200, "")
    assert (headers["content-type"], headers["content-length"], headers["etag"]) == ("application/json", "0", '"1"')
    verb, goal, _ = server.plane.calls[0]
    assert (verb, goal.mode, goal.stored, goal.http.port) == ("put", DeployMode.SINGLE_APP, document, 8001)


@pytest.mark.parametrize("path", [V1, V2])
@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        ("", "empty"),
        ("{", "line 1 column 2"),
        ('{"a": NaN}', "NaN"),
        (b'{"a": "\xff"}', "UTF-8"),
        ("[" * 100_000, "nested"),
        ("1" * 10_000, "JSON"),
        ("3", "Schema"),
        ("[1]", "Schema"),
        ("null", "Schema"),
        ('{"a": ' * 500 + "1" + "}" * 500, "deep"),
    ],
)
def test_what_is_no_json_object_is_a_400(server: Server, path: str, body: bytes | str, fragment: str) -> None:
    status, headers, text = server.ask("PUT", path, body)
    assert status == 400
    assert fragment in text
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert server.plane.calls == []


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 3 * 1024 * 1024])
def test_too_large_bodies_are_a_413(server: Server, size: int) -> None:
    status, _, text = server.ask("PUT", V2, b" " * size)
    assert status == 413
    assert "1048576" in text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("port: current 8000, requested 8001"), 400),
        (GoalNotSavedError("the goal store is full"), 507),
        (ListenError("127.0.0.1", 8001, "address in use"), 500),
        (RuntimeError("unexpected"), 500),
    ],
)
def test_errors_of_the_plane_become_statuses(server: Server, error: Exception, status: int) -> None:
    server.plane.error = error
    found, _, text = server.ask("PUT", V2, '{"applications": []}')
    assert found == status
    assert str(error) in text


def test_delete_is_the_same_on_both_paths(server: Server) -> None:
    assert server.ask("DELETE", V1)[0] == 200
    assert server.ask("DELETE", V2)[0] == 200
    assert [call[0] for call in server.plane.calls] == ["delete", "delete"]
    server.plane.error = DeployError("still alive after 60 s: a_D")
    assert server.ask("DELETE", V2)[::2] == (500, "still alive after 60 s: a_D")


@pytest.mark.parametrize(("method", "body"), [("PUT", "{"), ("DELETE", None)])
def test_if_match_comes_before_the_body(server: Server, method: str, body: str | None) -> None:
    status, _, text = server.ask(method, V2, body, headers={"If-Match": '"7"'})
    assert status == 412
    assert '"7"' in text
    assert '"0"' in text
    assert server.plane.calls == []


@pytest.mark.parametrize("condition", ['"0"', "*", '"7", "0"', ""])
def test_a_matching_condition_lets_the_change_in(server: Server, condition: str) -> None:
    assert server.ask("PUT", V2, '{"applications": []}', headers={"If-Match": condition})[0] == 200


def test_version_for_stock_clients(server: Server) -> None:
    body = json.loads(server.ask("GET", "/api/ray/version")[2])
    assert (body["version"], body["ray_version"]) == ("4", "2.5.1")
    assert "ray_commit" in body


def test_own_status_waits_for_another_version(server: Server) -> None:
    failed = an_application("a", status=ApplicationStatus.DEPLOY_FAILED, message="no")
    server.plane.next_views = [an_instance(running=True, applications=(failed,))]
    body = json.loads(server.ask("GET", "/api/servd/v1/status?seen=1&timeout_s=500")[2])
    assert server.plane.calls == [("changed", 1, 60.0)]
    assert (body["version"], body["applications"]["a"]["status"]) == (2, "DEPLOY_FAILED")
    assert {"revision", "http", "proxies", "applications"} <= set(body)
    deployment = body["applications"]["a"]["deployments"]["a_D"]
    assert {"status", "status_trigger", "message", "target_num_replicas", "replicas"} <= set(deployment)
    assert deployment["recent_dead_replicas"] == []
    assert server.ask("GET", "/api/servd/v1/status?seen=x")[0] == 400


@pytest.mark.parametrize(
    ("order", "status"),
    [
        ({"import_path": "m:a", "args": {"x": "1"}, "route_prefix": None, "port": 8001}, 200),
        ({"application_hash": "0" * 64, "driver_path": ["/x"]}, 200),
        ({}, 400),
        ({"import_path": "m"}, 400),
        ({"import_path": "m:a", "application_hash": "0" * 64}, 400),
        ({"import_path": "m:a", "runtime_env": {"working_dir": "."}}, 400),
        ({"import_path": "m:a", "colour": 1}, 400),
    ],
)
def test_one_application_joins_or_leaves(server: Server, order: dict[str, Any], status: int) -> None:
    found, _, text = server.ask("PUT", "/api/servd/v1/applications/my%20app", json.dumps(order))
    assert found == status, text
    if status == 200:
        verb, application, http, _ = server.plane.calls[0]
        assert (verb, application.name, application.stored) == ("put_application", "my app", None)
        assert application.route_prefix_given == ("route_prefix" in order)
        assert http.port == order.get("port")
        assert server.ask("DELETE", "/api/servd/v1/applications/my%20app")[0] == 200
        assert server.plane.calls[1][:2] == ("delete_application", "my app")


def test_start(server: Server) -> None:
    assert server.ask("POST", "/api/servd/v1/start", '{"port": 8001}')[0] == 200
    assert server.ask("POST", "/api/servd/v1/start")[0] == 200
    assert [(call[0], call[1].host, call[1].port) for call in server.plane.calls] == [
        ("start_instance", None, 8001),
        ("start_instance", None, None),
    ]


def test_shipped_code_is_kept_by_its_hash_over_the_unix_socket_only(server: Server) -> None:
    body = b"x" * (2 * 1024 * 1024)
    digest = hashlib.sha256(body).hexdigest()
    path = f"/api/servd/v1/code/{digest}"
    assert server.ask("PUT", path, body)[0] == 403
    assert server.ask("PUT", f"/api/servd/v1/code/{'0' * 64}", body, unix=True)[0] == 400
    assert server.ask("PUT", "/api/servd/v1/code/..%2Fx", body, unix=True)[0] == 400
    assert server.ask("PUT", path, body, unix=True)[0] == 200
    assert [entry.name for entry in server.code_dir.iterdir()] == [f"{digest}.pkl"]
    assert (server.code_dir / f"{digest}.pkl").read_bytes() == body


def test_shipped_code_that_cannot_be_kept_is_507(server: Server) -> None:
    server.code_dir.write_text("in the way")
    path = f"/api/servd/v1/code/{hashlib.sha256(b'x').hexdigest()}"
    status, _, text = server.ask("PUT", path, b"x", unix=True)
    assert status == 507, text
    assert str(server.code_dir) in text
