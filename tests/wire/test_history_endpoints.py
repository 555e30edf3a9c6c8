"""Revisions, dry runs, scale and stacks over real HTTP."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servd.controller.goal_store import Revision
from servd.controller.history import _view
from servd.controller.plan.change import Situation, put
from servd.controller.plan.goal import Goal, HttpGoal
from servd.documents.sent import top_level
from servd.exceptions import ConfigError
from servd.ground.states import DeployMode
from servd.rest.access import AccessRules
from servd.rest.revisions import document_of
from servd.schema import parse_v2
from tests.wire.fake_plane import FakePlane, Server, a_revision, an_application, an_instance

V1 = "/api/serve/deployments/"
V2 = "/api/serve/applications/"
REVISIONS = "/api/servd/v1/revisions"
SCALE = "/api/v1/applications/a/deployments/{}/scale"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    history = (a_revision(1, "a"), a_revision(2, "a", "b", port=8001, location="HeadOnly"))
    single = a_revision(3, "default", mode=DeployMode.SINGLE_APP)
    instance = an_instance(running=True, revision=3, applications=(an_application("a"),))
    plane = FakePlane(instance, history=(*history, single))
    with Server(plane, AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


def ask(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    status, _, text = server.ask(method, path, None if body is None else json.dumps(body), headers=headers)
    return status, json.loads(text) if status == 200 and text else text


def test_revisions_are_listed_newest_first(server: Server) -> None:
    status, body = ask(server, "GET", REVISIONS)
    assert (status, body["revision"]) == (200, 3)
    assert [(r["revision"], r["applications"], r["deploy_mode"]) for r in body["revisions"]] == [
        (3, ["default"], "SINGLE_APP"), (2, ["a", "b"], "MULTI_APP"), (1, ["a"], "MULTI_APP"),
    ]  # fmt: skip
    assert len(ask(server, "GET", f"{REVISIONS}?limit=1")[1]["revisions"]) == 1
    assert ask(server, "GET", f"{REVISIONS}?limit=many")[0] == 400


def test_a_revision_shows_the_document_to_send_again(server: Server) -> None:
    second = ask(server, "GET", f"{REVISIONS}/2")[1]["document"]
    assert list(second) == ["proxy_location", "http_options", "applications"]
    assert second["http_options"] == {"port": 8001}
    assert [app["name"] for app in second["applications"]] == ["a", "b"]
    assert ask(server, "GET", f"{REVISIONS}/3")[1]["document"] == {"name": "default", "import_path": "m3:a"}


def test_the_document_of_a_revision_is_as_its_file() -> None:
    apps = [{"name": "a", "import_path": "m:a"}]
    sent = {
        "http_options": {"port": 8001, "request_timeout_s": None},
        "applications": apps,
        "logging_config": {"encoding": "JSON"},
        "target_capacity": 0.0,
        "grpc_options": {"grpc_servicer_functions": ["m:add"], "request_timeout_s": None},
    }
    http = HttpGoal("127.0.0.1", 8001)
    goal = put(Goal(), parse_v2(sent), http, Situation(http, (), (), 5.0, 1), {})
    found = document_of(_view(Revision(1, 0.0, "", ""), goal))
    assert found is not None
    # the order counts: `servd diff` shows it
    assert json.dumps(found) == json.dumps(parse_v2(sent).stored)
    # as `servd build` of today's Ray writes it
    built = {"http_options": {}, "applications": apps, "grpc_options": {"port": 9000, "grpc_servicer_functions": []}}
    again = parse_v2({**sent, **built})
    assert "port" not in top_level(again, apps)["grpc_options"]


@pytest.mark.parametrize("number", ["9", "x", "-1", "1.0", "%C2%B2", "9" * 5000])
def test_unknown_revisions_are_not_found(server: Server, number: str) -> None:
    path = f"{REVISIONS}/{number}"
    assert server.ask("GET", path)[0] == 404
    assert server.ask("POST", f"{path}/rollback")[0] == 404
    assert server.plane.calls == []


def test_rollback_makes_a_new_revision(server: Server) -> None:
    assert ask(server, "POST", f"{REVISIONS}/1/rollback") == (200, {"revision": 4})
    verb, number, origin = server.plane.calls[-1]
    assert (verb, number) == ("rollback", 1)
    assert origin.startswith(f"POST {REVISIONS}/1/rollback by ")
    assert f"(uid {os.getuid()}) from 127.0.0.1:" in origin


def test_rollback_has_a_condition_and_a_dry_run(server: Server) -> None:
    status, text = ask(server, "POST", f"{REVISIONS}/1/rollback", **{"If-Match": '"2"'})
    assert status == 412
    assert '"3"' in text
    assert ask(server, "POST", f"{REVISIONS}/1/rollback?dry_run=true")[1]["applications"]["a"]["action"] == "changed"
    assert server.plane.calls == []
    assert ask(server, "POST", f"{REVISIONS}/1/rollback", **{"If-Match": '"3"'})[0] == 200


@pytest.mark.parametrize(("path", "body"), [(V1, {"import_path": "m:a"}), (V2, {"applications": []})])
def test_a_dry_run_checks_and_changes_nothing(server: Server, path: str, body: dict[str, Any]) -> None:
    status, plan = ask(server, "PUT", f"{path}?dry_run=true", body)
    assert status == 200
    assert plan["http"] == {"port": [8000, 8001]}
    assert plan["applications"]["a"]["deployments"]["a_D"] == {
        "name": "D",
        "action": "restarted",
        "fields": ["ray_actor_options.num_cpus"],
        "replicas_before": 1,
        "replicas_after": 2,
    }
    assert server.plane.calls == []
    assert ask(server, "PUT", f"{path}?dry_run=true", {**body, "colour": 1})[0] == 400
    assert ask(server, "PUT", f"{path}?dry_run=maybe", body)[0] == 400
    assert ask(server, "PUT", f"{path}?dry_run=true", body, **{"If-Match": '"1"'})[0] == 412
    server.plane.error = ConfigError("port differs")
    assert ask(server, "PUT", f"{path}?dry_run=true", body) == (400, "port differs")
    server.plane.error = None
    assert ask(server, "PUT", f"{path}?dry_run=false", body)[0] == 200
    assert [call[0] for call in server.plane.calls] == ["put"]


def test_scale_pins_a_count(server: Server) -> None:
    assert ask(server, "POST", SCALE.format("D"), {"target_num_replicas": 0})[0] == 200
    assert server.plane.calls[-1][:4] == ("scale", "a", "D", 0)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (SCALE.format("X"), {"target_num_replicas": 1}, 404),
        ("/api/v1/applications/z/deployments/D/scale", {"target_num_replicas": 1}, 404),
        (SCALE.format("D"), {"target_num_replicas": -1}, 400),
        (SCALE.format("D"), {"target_num_replicas": 1.5}, 400),
        (SCALE.format("D"), {"target_num_replicas": True}, 400),
        (SCALE.format("D"), {"target_num_replicas": None}, 400),
        (SCALE.format("D"), {"target_num_replicas": 1, "x": 1}, 400),
        (SCALE.format("D"), {"target_num_replicas": 10**30}, 400),
        (SCALE.format("D"), {}, 400),
        (SCALE.format("D"), [1], 400),
        (SCALE.format("D"), None, 400),
    ],
)
def test_wrong_counts_and_names_are_refused(server: Server, path: str, body: Any, status: int) -> None:
    assert ask(server, "POST", path, body)[0] == status
    assert server.plane.calls == []


def test_stacks_are_text(server: Server) -> None:
    status, headers, text = server.ask("GET", "/api/servd/v1/replicas/a_D%23aBcDeF/stack")
    assert (status, text) == (200, "stacks of a_D#aBcDeF\n")
    assert headers["content-type"].startswith("text/plain")
    assert server.ask("GET", "/api/servd/v1/replicas/nobody/stack")[0] == 404
    assert server.ask("GET", "/api/servd/v1/replicas/silent/stack")[0] == 504
