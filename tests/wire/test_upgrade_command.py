"""`servd upgrade` against a fake control plane behind the real admin server."""

import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from servd.documents.control_plane import InstanceView
from servd.documents.controller_views import UpgradeView
from servd.exceptions import UpgradeError
from servd.ground.states import UpgradeStage
from servd.rest.access import AccessRules
from tests.system.running_daemon import eventually
from tests.wire.fake_plane import FakePlane, Server, an_instance
from tests.wire.test_commands import Command

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(FakePlane(), AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


@pytest.fixture
def servd(tmp_path: Path) -> Command:
    return Command(tmp_path)


def at(stage: UpgradeStage, message: str = "", *, edition: str = "", left: int = 0) -> InstanceView:
    """An instance whose upgrade is so far."""
    offer = FakePlane().offer
    return an_instance(upgrade=UpgradeView(edition or offer.edition, offer.before, stage, message, left, 0, left))


def test_it_begins_after_the_answer_and_says_from_what_to_what(servd: Command, server: Server) -> None:
    code, out, err = servd("upgrade", "-a", server.url)
    assert (code, err) == (0, "")
    assert "Upgrading from servd 0.1.0+aaaa (protocol 1) to 0.2.0+bbbb (protocol 1)." in out
    # the second comes when the answer has left
    eventually(lambda: [call[0] for call in server.plane.calls] == ["prepare_upgrade", "begin_upgrade"])
    assert server.plane.calls[0][1].startswith("POST /api/servd/v1/upgrade by ")


@pytest.mark.long
def test_the_edition_that_runs_already_is_left_alone(servd: Command, server: Server) -> None:
    server.plane.offer = replace(server.plane.offer, is_needed=False)
    code, out, _ = servd("upgrade", "--wait", "-a", server.url)
    assert code == 0
    assert "The daemon runs servd 0.2.0+bbbb (protocol 1) already" in out
    assert [call[0] for call in server.plane.calls] == ["prepare_upgrade"]


def test_it_shows_how_an_upgrade_goes_until_all_is_replaced(servd: Command, server: Server) -> None:
    server.plane.instance = at(UpgradeStage.DONE, edition="0.0.9+0000 (protocol 1)")
    server.plane.next_views = [
        at(UpgradeStage.REPLICAS, "app_D: ImportError: x", left=3),
        at(UpgradeStage.DONE),
    ]
    # who asks first sees the controller of before, and an older upgrade
    server.plane.offer = replace(server.plane.offer, is_needed=False)
    server.plane.instance = at(UpgradeStage.PROXIES, left=2)
    code, out, err = servd("upgrade", "--wait", "-a", server.url)
    assert (code, err) == (0, "")
    assert "is under way" in out
    assert "left of the old version: 2 proxies, 2 replicas" in out
    assert "3 replicas; app_D: ImportError: x" in out
    assert "Everything runs servd 0.2.0+bbbb (protocol 1)." in out


@pytest.mark.long
def test_one_that_failed_is_told_with_the_reason(servd: Command, server: Server) -> None:
    server.plane.instance = at(UpgradeStage.FAILED, "its controller exited with 1")
    code, _, err = servd("upgrade", "--wait", "-a", server.url)
    assert code == 1
    assert "did not come up, the old one goes on: its controller exited with 1" in err


@pytest.mark.long
def test_what_cannot_be_is_refused_with_409(servd: Command, server: Server) -> None:
    server.plane.error = UpgradeError("servd 9 does not start; the old one goes on:\nSyntaxError: x")
    code, _, err = servd("upgrade", "-a", server.url)
    assert code == 1
    assert err.splitlines() == [
        "Error: the daemon answered 409: servd 9 does not start; the old one goes on:",
        "SyntaxError: x",
    ]
    assert server.plane.calls == []


@pytest.mark.long
def test_waiting_has_a_limit(servd: Command, server: Server) -> None:
    server.plane.instance = at(UpgradeStage.REPLICAS, left=1)
    code, _, err = servd("upgrade", "--timeout", "0.3", "-a", server.url)
    assert code == 1
    assert "not all is replaced after 0.3 s: left of the old version: 1 proxies, 1 replicas" in err


class _OfBefore(http.server.BaseHTTPRequestHandler):
    """A daemon that knows no upgrade."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"version": "4"}')

    def do_POST(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"404: Not Found")

    def log_message(self, *_: object) -> None:
        """Nobody wants to know."""


def test_a_daemon_of_before_upgrades_must_be_restarted(servd: Command) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _OfBefore) as daemon:
        thread = threading.Thread(target=daemon.serve_forever, args=(0.01,))
        thread.start()
        code, _, err = servd("upgrade", "-a", f"http://127.0.0.1:{daemon.server_port}")
        daemon.shutdown()
        thread.join(10)
    assert code == 1
    assert "of an older servd" in err
    assert "servd stop && servd start" in err
