"""What the `serve` command of Ray 2.5.0 sends, recorded byte for byte, and what it does with the answers."""

import json
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from servd.documents.answers import ServeInstanceDetails
from servd.documents.sent import HttpWish
from servd.ground.states import ApplicationStatus, DeployMode
from servd.rest.access import AccessRules
from tests.wire.fake_plane import FakePlane, Server, an_application, an_instance

REQUEST = (
    "{} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nUser-Agent: python-requests/2.34.2\r\n"
    "Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n"
)
JSON = "Content-Length: {}\r\nContent-Type: application/json\r\n\r\n"
V1, V2 = "/api/serve/deployments/", "/api/serve/applications/"
V1_DOCUMENT = (
    '{"import_path": "app_mod:app", "runtime_env": {"working_dir": "file:///tmp/code.zip"}, "host": "127.0.0.1", '
    '"port": 20912, "deployments": [{"name": "Hello", "num_replicas": 2}]}'
)
V2_DOCUMENT = (
    '{"proxy_location": "EveryNode", "http_options": {"host": "127.0.0.1", "port": 20912}, "applications": ['
    '{"name": "app1", "route_prefix": "/one", "import_path": "app_mod:app", '
    '"runtime_env": {"working_dir": "file:///tmp/code.zip"}}, '
    '{"name": "app2", "route_prefix": "/two", "import_path": "app_mod:app", '
    '"runtime_env": {"working_dir": "file:///tmp/code.zip"}, "deployments": [{"name": "Hello", "num_replicas": 2}]}]}'
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(FakePlane(), AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


def exchange(server: Server, line: str, *parts: str) -> tuple[int, str]:
    """Status and body of the answer to a recorded request, on a connection of its own as the client has it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        for part in (REQUEST.format(line, server.port) + (parts[0] if parts else "\r\n"), *parts[1:]):
            connection.sendall(part.encode())
        response = HTTPResponse(connection)
        response.begin()
        return response.status, response.read().decode()


def probe(server: Server) -> None:
    """The client's first request, whatever the command: 404 or a version below 1.12 ends it."""
    status, body = exchange(server, "GET /api/ray/version")
    assert status == 200
    major, minor, _ = json.loads(body)["ray_version"].split(".")
    assert (int(major), int(minor)) >= (1, 12)


def put(server: Server, path: str, document: str) -> tuple[int, str]:
    # the client sends a short body behind its head, or in the packet after it
    return exchange(server, f"PUT {path}", JSON.format(len(document)), document)


def details(server: Server) -> dict[str, Any]:
    probe(server)
    status, body = exchange(server, f"GET {V2}")
    assert status == 200
    found: dict[str, Any] = json.loads(body)
    ServeInstanceDetails.model_validate(found)
    return found


def test_deploy_takes_both_forms(server: Server) -> None:
    probe(server)
    assert put(server, V1, V1_DOCUMENT) == (200, "")
    assert put(server, V2, V2_DOCUMENT) == (200, "")
    first, second = (call[1] for call in server.plane.calls)
    assert (first.stored, second.stored) == (json.loads(V1_DOCUMENT), json.loads(V2_DOCUMENT))
    assert first.http == HttpWish(host="127.0.0.1", port=20912)
    assert second.http == HttpWish(host="127.0.0.1", port=20912, location="EveryNode")


def test_a_refusal_is_text_for_people(server: Server) -> None:
    status, body = put(server, V2, V2_DOCUMENT.replace('"name": "Hello"', '"nome": "Hello"'))
    assert status == 400
    # the client prints it as it is
    assert "nome" in body
    assert not server.plane.calls


def test_shutdown(server: Server) -> None:
    probe(server)
    assert exchange(server, f"DELETE {V1}", "Content-Length: 0\r\n\r\n") == (200, "")
    assert server.plane.calls[0][0] == "delete"


def test_status_and_config_while_nothing_runs(server: Server) -> None:
    # `serve status`: no applications; `serve config`: the app `default` of a mode that is not MULTI_APP, or an empty one
    assert details(server) == {"deploy_mode": "UNSET", "controller_info": {}, "applications": {}}


@pytest.mark.parametrize("status", list(ApplicationStatus))
def test_status_and_config_of_applications(server: Server, status: ApplicationStatus) -> None:
    app = an_application("app1", status=status, message="because")
    server.plane.instance = an_instance(running=True, mode=DeployMode.MULTI_APP, applications=(app,))
    found = details(server)
    assert found["deploy_mode"] == "MULTI_APP"
    # what the client's own model of an application has: it refuses any other key
    assert list(found["applications"]["app1"]) == [
        "name", "route_prefix", "docs_path", "status", "message", "last_deployed_time_s", "deployed_app_config",
        "deployments",
    ]  # fmt: skip
    assert found["applications"]["app1"]["deployed_app_config"] == app.config
