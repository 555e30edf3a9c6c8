"""The live page over real HTTP: who gets it, how it is kept up to date, the login, and clients that read slowly or not at all."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest

from servd.documents.control_plane import InstanceView
from servd.ground.clock import SystemClock
from servd.observability.error_groups import ErrorGroup, ErrorsReport
from servd.page import live
from servd.page.files import HEADERS, NAMES
from servd.rest.access import AccessRules
from servd.rest.sessions import COOKIE, SESSION_S, cookie, new_session
from tests.wire.fake_plane import FakePlane, Server, an_application, an_instance

HOST = {"Host": "localhost"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    plane = FakePlane(an_instance(running=True, revision=1, applications=(an_application("a"),)))
    with Server(plane, AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Server]:
    with Server(FakePlane(), AccessRules("127.0.0.1", token="secret"), tmp_path).running() as running:
        yield running


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in NAMES)])
def test_everything_of_the_page_comes_with_its_headers(server: Server, path: str) -> None:
    status, headers, text = server.ask("GET", path)
    assert status == 200
    assert text
    assert {name: headers[name.lower()] for name in HEADERS} == HEADERS
    assert server.ask("HEAD", path)[0] == 200
    assert server.ask("POST", path)[0] == 405
    if path != "/":
        assert server.ask("GET", path, headers={"If-None-Match": headers["etag"]})[0] == 304
    else:
        assert headers["cache-control"] == "no-store"
        assert "a_D" not in text.partition("<main>")[0]
        assert "<td>a</td>" in text


PATHS = ("/", "/page/page.js", "/page/events", "/login", "/page/page.css", "/page/icon.svg")
STRANGERS = (
    {"Host": "evil.example"},
    {**HOST, "Origin": "http://evil.example"},
    {**HOST, "Sec-Fetch-Site": "cross-site"},
)


@pytest.mark.parametrize(("token", "expected"), [("", {403}), ("secret", {401, 403})])
def test_the_page_has_the_lock_of_the_api(tmp_path: Path, token: str, expected: set[int]) -> None:
    with Server(FakePlane(), AccessRules("127.0.0.1", token=token), tmp_path).running() as running:
        for path in PATHS:
            for headers in STRANGERS:
                status, found, text = running.ask("GET", path, headers=headers)
                assert status in expected, (path, headers)
                assert "<html" not in text
                assert found["content-type"].startswith("text/plain")


def test_of_another_users_page_not_even_the_login_is_shown(tmp_path: Path) -> None:
    rules = AccessRules("127.0.0.1", token="secret", uids=frozenset({os.getuid() + 1}))
    with Server(FakePlane(), rules, tmp_path).running() as running:
        assert [running.ask("GET", path)[0] for path in ("/", "/page/page.css", "/page/page.js")] == [401, 403, 401]
        assert "<form" not in running.ask("GET", "/")[2]


def test_a_login_opens_a_session_and_its_end_closes_it(locked: Server) -> None:
    status, headers, text = locked.ask("GET", "/")
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert '<form method="post" action="/login">' in text
    assert [locked.ask("GET", f"/page/{name}")[0] for name in ("page.css", "page.js", "events")] == [200, 401, 401]
    from_page = {**HOST, "Origin": "http://localhost", "Content-Type": "application/x-www-form-urlencoded"}
    right, wrong = urlencode({"token": " secret\n"}), urlencode({"token": "Secret<b>"})
    assert locked.ask("POST", "/login", right, headers=HOST)[0] == 403, "it does not say that it is the page's"
    status, headers, text = locked.ask("POST", "/login", wrong, headers=from_page)
    assert (status, "set-cookie" in headers) == (401, False)
    assert "not the token" in text
    assert "Secret" not in text
    status, headers, _ = locked.ask("POST", "/login", right, headers=from_page)
    assert (status, headers["location"]) == (303, "/")
    session = {**HOST, "Cookie": headers["set-cookie"].partition(";")[0]}
    assert f"{COOKIE}_{locked.port}=" in session["Cookie"]
    assert "secret" not in session["Cookie"]
    assert [locked.ask("GET", path, headers=session)[0] for path in ("/", "/page/page.js", "/api/servd/v1/status")] == [
        200, 200, 200,
    ]  # fmt: skip
    delete = ("DELETE", "/api/servd/v1/applications/a")
    assert locked.ask(*delete, headers=session)[0] == 403
    assert locked.plane.calls == []
    assert locked.ask(*delete, headers={**session, "Origin": "http://localhost"})[0] == 200
    status, headers, _ = locked.ask("DELETE", "/login", headers={**session, "Origin": "http://localhost"})
    assert (status, "Max-Age=0" in headers["set-cookie"]) == (303, True)


def test_a_login_too_long_is_refused(locked: Server) -> None:
    from_page = {**HOST, "Origin": "http://localhost"}
    assert locked.ask("POST", "/login", "token=" + "x" * 100_000, headers=from_page)[0] == 413
    assert locked.ask("POST", "/login", b"\xff\0", headers=from_page)[0] == 401


class Stream:
    """An open page."""

    def __init__(self, server: Server, *, receive_bytes: int = 0, cookie: str = "") -> None:
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", server.port))
        more = f"Cookie: {cookie}\r\n" if cookie else ""
        self.socket.sendall(f"GET /page/events HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
        self._data = b""

    def until(self, mark: bytes) -> bytes:
        """All up to this mark, from where the last one ended."""
        while mark not in self._data:
            if not (part := self.socket.recv(65536)):
                raise EOFError(self._data)
            self._data += part
        found, _, self._data = self._data.partition(mark)
        return found

    def event(self) -> tuple[str, object]:
        name = self.until(b"\ndata: ").rpartition(b"event: ")[2].decode()
        return name, json.loads(self.until(b"\n\n"))


def test_an_open_page_is_told_what_changes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_REST_S", 0.02)
    page = Stream(server)
    with page.socket:
        head = page.until(b"\r\n\r\n")
        assert b"200" in head.splitlines()[0]
        assert b"content-type: text/event-stream" in head.lower()
        name, rows = page.event()
        assert name == "all"
        assert isinstance(rows, dict)
        assert rows["a/a"]["status"] == "RUNNING"
        group = ErrorGroup("e1", "ValueError", "app.py:7", "no", "Traceback", "__call__", "/", 1, 1.0, 1.0)
        server.plane.book.heard("a", "D", ErrorsReport("a_D#aBcDeF", (group,)))
        server.plane.instance = replace(server.plane.instance, applications=(), version=5)
        # one look may come between the two changes
        seen: dict[str, object] = {}
        gone: list[str] = []
        while not (seen and gone):
            name, told = page.event()
            assert name == "some"
            assert isinstance(told, dict)
            seen |= told["set"]
            gone += told["gone"]
        assert set(seen) == {"e/e1"}
        assert sorted(gone) == ["a/a", "d/a/D", "r/a_D#aBcDeF"]


def test_an_open_page_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with Server(FakePlane(), AccessRules("127.0.0.1"), tmp_path).running() as running:
        page = Stream(running)
        page.event()
    with page.socket, contextlib.suppress(EOFError):
        page.until(b"0\r\n\r\n")


@pytest.mark.parametrize("end", ["another token", "12 hours"])
def test_an_open_page_ends_with_its_session(locked: Server, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(live, "MOST_REST_S", 0.01)
    monkeypatch.setattr(live, "BEAT_S", 0.05)
    session = cookie(locked.port, new_session("secret", SystemClock().wall_time()), is_tls=False).partition(";")[0]
    page = Stream(locked, cookie=session)
    with page.socket:
        assert page.event()[0] == "all"
        assert page.event()[0] == "beat"
        if end == "another token":
            locked._app.admit_by(AccessRules("127.0.0.1", token="other"))
        else:
            monkeypatch.setattr(SystemClock, "wall_time", lambda _: time.time() + SESSION_S + 1)
        # the last piece of the stream
        page.until(b"\r\n0\r\n\r\n")
    assert locked.ask("GET", "/page/events", headers={**HOST, "Cookie": session})[0] == 401


def test_who_has_a_session_of_this_port_can_log_out(server: Server) -> None:
    for port, shows in ((server.port, True), (server.port * 10, False)):
        session = cookie(port, "s", is_tls=False).partition(";")[0]
        text = server.ask("GET", "/", headers={"Cookie": session})[2]
        assert ("Log out" in text) is shows


def test_of_too_many_pages_the_last_is_told_to_wait(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_PAGES", 2)
    pages = [Stream(server), Stream(server)]
    for page in pages:
        page.event()
    assert server.ask("HEAD", "/page/events")[0] == 503
    status, _, text = server.ask("GET", "/page/events")
    assert (status, "pages are open" in text) == (503, True)
    for page in pages:
        page.socket.close()
    while server.ask("HEAD", "/page/events")[0] != 200:
        pass


@pytest.mark.long
def test_a_page_that_reads_nothing_is_dropped_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "STUCK_S", 0.3)
    monkeypatch.setattr(live, "MOST_REST_S", 0.01)

    def large(text: str) -> InstanceView:
        apps = tuple(an_application(f"a{number}", standing_message=text * 2000) for number in range(300))
        return an_instance(running=True, applications=apps)

    both = [large("x"), large("y")]
    plane = FakePlane(both[0])
    with Server(plane, AccessRules("127.0.0.1"), tmp_path).running() as running:
        stuck = Stream(running, receive_bytes=4096)
        reads = Stream(running)
        with stuck.socket, reads.socket:
            assert reads.event()[0] == "all"
            while len(running._app._pages._pages) > 1:
                both.reverse()
                plane.instance = both[0]
                assert reads.event()[0] == "some"
            with pytest.raises((EOFError, ConnectionResetError)):
                stuck.until(b"this never comes")


def test_log_lines_are_those_of_whom_they_are_asked_of(server: Server, tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "serve"
    logs.mkdir(parents=True)
    head = "2026-11-28 22:00:0{},000 {} r app.py:1 - {}\n"
    (logs / "deployment_a_D_a_D#aBcDeF.log").write_text(
        "INFO "
        + head.format(1, "replica 7b" + "", "<b>one</b>")
        + "ERROR "
        + head.format(3, "replica 7c", "two")
        + "  and\x1b[31m more\n"
    )
    (logs / "deployment_a_D_a_D#gone00.log").write_text("INFO " + head.format(2, "replica 7d", "three"))
    (logs / "controller_1.log").write_text("WARNING " + head.format(4, "controller 1", "four"))
    server.plane.instance = replace(server.plane.instance, log_dir=str(tmp_path / "logs"))

    def lines(query: str) -> list[str]:
        status, _, text = server.ask("GET", f"/api/servd/v1/logs?{query}")
        assert status == 200, text
        return [line["text"].partition(" - ")[2] or line["text"] for line in json.loads(text)["lines"]]

    more = "  and\\x1b[31m more"
    assert lines("") == ["<b>one</b>", "three", "two", more, "four"]
    assert lines("application=a&deployment=D") == ["<b>one</b>", "three", "two", more]
    assert lines("application=a&replica=a_D%23gone00") == ["three"]
    assert lines("level=error") == ["two", more]
    assert lines("request=7c") == ["two", more]
    assert lines("limit=1") == ["four"]
    assert lines("application=b") == lines("replica=a_D%23..%2F..%2Fcontroller_1") == lines("replica=*") == []
    assert server.ask("GET", "/api/servd/v1/logs?level=loud")[0] == 400
