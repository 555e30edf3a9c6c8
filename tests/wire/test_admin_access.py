"""Who is let into the admin plane: users, tokens, browsers."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servd.exceptions import StateError
from servd.ground.settings import Settings
from servd.rest.access import AccessRules, rules_for
from servd.rest.peers import Peer, peer_of
from servd.rest.sessions import COOKIE, SESSION_S, cookie, is_session, new_session
from tests.wire.fake_plane import FakePlane, Server

NOBODY = 65534
V2 = "/api/serve/applications/"
OWN = Peer(is_unix=False, uid=os.getuid())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(FakePlane(), AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


@pytest.mark.parametrize(
    ("peer", "headers", "status"),
    [
        (OWN, {}, None),
        (OWN, {"host": "localhost:52365"}, None),
        (OWN, {"host": "127.0.0.9"}, None),
        (OWN, {"host": "[::1]:52365"}, None),
        (OWN, {"host": "admin.example:1"}, None),
        (OWN, {"host": "ADMIN.example"}, None),
        (OWN, {"host": "evil.example"}, 403),
        (OWN, {"host": "127.0.0.1.evil.example"}, 403),
        (OWN, {"host": ""}, 403),
        (OWN, {"host": "evil.example@localhost"}, 403),
        (OWN, {"host": "localhost/evil"}, 403),
        (OWN, {"host": "[::1"}, 403),
        (OWN, {"host": "localhost:1", "origin": "http://localhost:1"}, None),
        (OWN, {"host": "localhost:1", "origin": "http://evil.example"}, 403),
        (OWN, {"host": "localhost:1", "origin": "null"}, 403),
        (OWN, {"host": "localhost:1", "origin": "http://[::1"}, 403),
        (OWN, {"host": "localhost:1", "sec-fetch-site": "cross-site"}, 403),
        (OWN, {"host": "localhost:1", "sec-fetch-site": "same-origin"}, None),
        (Peer(is_unix=False, uid=0), {}, None),
        (Peer(is_unix=False, uid=NOBODY), {}, 403),
        (Peer(is_unix=False, uid=None), {}, 403),
        (Peer(is_unix=True), {"host": "evil.example", "origin": "http://evil.example"}, None),
    ],
)
def test_rules_on_loopback(peer: Peer, headers: dict[str, str], status: int | None) -> None:
    rules = AccessRules("127.0.0.1", allowed_hosts=frozenset({"admin.example"}))
    refusal = rules.refusal(peer, headers)
    assert (refusal.status if refusal else None) == status


@pytest.mark.parametrize(
    ("peer", "headers", "status"),
    [
        (Peer(is_unix=False), {"authorization": "Bearer secret", "host": "10.0.0.1:52365"}, None),
        (Peer(is_unix=False), {"authorization": "bearer secret"}, None),
        (Peer(is_unix=False), {}, 401),
        (Peer(is_unix=False), {"authorization": "Bearer wrong"}, 401),
        (Peer(is_unix=False), {"authorization": "Bearer sécret"}, 401),
        (Peer(is_unix=False), {"authorization": "Basic secret"}, 401),
        (OWN, {}, 401),
        (Peer(is_unix=False), {"authorization": "Bearer secret", "host": "evil.example"}, 403),
        (Peer(is_unix=True), {}, None),
    ],
)
def test_rules_elsewhere(peer: Peer, headers: dict[str, str], status: int | None) -> None:
    rules = AccessRules("0.0.0.0", token="secret")
    refusal = rules.refusal(peer, headers, "10.0.0.1")
    assert (refusal.status if refusal else None) == status
    assert "secret" not in repr(rules)


SESSION = new_session("secret", 1000.0)
BEFORE_ITS_END, AFTER_ITS_END = 1000.0 + SESSION_S - 1, 1000.0 + SESSION_S
LOCAL = {"host": "localhost:1"}
OF_THE_PAGE = {**LOCAL, "sec-fetch-site": "same-origin"}


@pytest.mark.parametrize(
    ("method", "session", "headers", "at", "status"),
    [
        ("GET", SESSION, LOCAL, BEFORE_ITS_END, None),
        ("HEAD", SESSION, LOCAL, BEFORE_ITS_END, None),
        ("GET", SESSION, LOCAL, AFTER_ITS_END, 401),
        ("POST", SESSION, OF_THE_PAGE, 1000.0, None),
        ("DELETE", SESSION, {**LOCAL, "origin": "http://localhost:1"}, 1000.0, None),
        # a browser sends the cookie with the requests of pages on other ports of this host too
        ("DELETE", SESSION, LOCAL, 1000.0, 403),
        ("POST", SESSION, {**LOCAL, "sec-fetch-site": "same-site"}, 1000.0, 403),
        ("POST", SESSION, {**LOCAL, "sec-fetch-site": "none"}, 1000.0, 403),
        ("POST", SESSION, {**OF_THE_PAGE, "origin": "http://localhost:2"}, 1000.0, 403),
        ("POST", SESSION, {**LOCAL, "sec-fetch-site": "same-site", "origin": "http://localhost:1"}, 1000.0, 403),
        ("GET", SESSION, {"host": "evil.example"}, 1000.0, 403),
        ("GET", SESSION, {**LOCAL, "sec-fetch-site": "cross-site"}, 1000.0, 403),
        ("GET", SESSION, {**LOCAL, "authorization": "Bearer wrong"}, 1000.0, 401),
        ("GET", new_session("another", 1000.0), LOCAL, 1000.0, 401),
        ("GET", f"9{SESSION}", LOCAL, 1000.0, 401),
        ("GET", SESSION[:-1], LOCAL, 1000.0, 401),
        ("GET", f"²{SESSION}", LOCAL, 1000.0, 401),
        ("GET", ".", LOCAL, 1000.0, 401),
        ("GET", "", LOCAL, 1000.0, 401),
        ("GET", "secret", LOCAL, 1000.0, 401),
    ],
)
def test_a_session_stands_for_the_token(
    method: str, session: str, headers: dict[str, str], at: float, status: int | None
) -> None:
    cookies = f"other=1; {COOKIE}_52365={session}; {COOKIE}_1=x.y"
    rules = AccessRules("127.0.0.1", token="secret")
    refusal = rules.refusal(OWN, {**headers, "cookie": cookies}, port=52365, method=method, at=at)
    assert (refusal.status if refusal else None) == status
    # a session of another port of this host is that port's: its log-out would not end it here
    refusal = rules.refusal(OWN, {**headers, "cookie": cookies}, port=8265, method=method, at=at)
    assert refusal is not None


def test_a_session_lets_nobody_in_who_could_not_with_the_token() -> None:
    rules = AccessRules("127.0.0.1", token="secret")
    headers = {**OF_THE_PAGE, "cookie": f"{COOKIE}_1={SESSION}"}
    for uid in (NOBODY, None):
        refusal = rules.refusal(Peer(is_unix=False, uid=uid), headers, port=1, at=1000.0)
        assert refusal is not None
        assert refusal.status == 403


def test_no_session_is_good_where_there_is_no_token() -> None:
    assert not is_session("", ".", 0.0)
    rules = AccessRules("127.0.0.1")
    headers = {**LOCAL, "cookie": f"{COOKIE}_1={new_session('', 1000.0)}"}
    assert rules.refusal(Peer(is_unix=False, uid=NOBODY), headers, at=1000.0) is not None
    assert not rules.is_token("")


def test_the_cookie_is_for_this_daemons_page_alone() -> None:
    assert (
        cookie(52365, "s", is_tls=False) == f"{COOKIE}_52365=s; Path=/; Max-Age={SESSION_S}; HttpOnly; SameSite=Strict"
    )
    assert cookie(1, "s", is_tls=True).endswith("; Secure")
    assert "Max-Age=0" in cookie(1, "", is_tls=True)


def test_a_host_beyond_loopback_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="--admin-token-file"):
        rules_for(Settings("s", "d", admin_host="0.0.0.0"))
    with pytest.raises(StateError, match="cannot read"):
        rules_for(Settings("s", "d", admin_token_file=str(tmp_path / "nothing")))
    token = tmp_path / "token"
    token.write_text("\n")
    with pytest.raises(StateError, match="empty"):
        rules_for(Settings("s", "d", admin_token_file=str(token)))
    token.write_text("secret\n")
    assert rules_for(Settings("s", "d", admin_host="0.0.0.0", admin_token_file=str(token))).token == "secret"


def test_refusals_come_before_paths_and_are_text(server: Server) -> None:
    status, headers, text = server.ask("GET", "/nothing", headers={"Host": "evil.example"})
    assert status == 403
    assert headers["content-type"].startswith("text/plain")
    assert "--admin-allowed-host" in text
    assert server.ask("GET", "/nothing", headers={"Host": "evil.example"}, unix=True)[0] == 404


def test_the_token_is_asked_for_over_tcp_only(tmp_path: Path) -> None:
    with Server(FakePlane(), AccessRules("127.0.0.1", token="secret"), tmp_path).running() as server:
        status, headers, _ = server.ask("GET", V2)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert server.ask("GET", V2, headers={"Authorization": "Bearer secret"})[0] == 200
        assert server.ask("GET", V2, unix=True)[0] == 200


def test_the_unix_socket_is_private(server: Server) -> None:
    assert stat.S_IMODE(os.stat(server.unix_path).st_mode) == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_other_users_are_refused(server: Server) -> None:
    request = f"PUT {V2} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n" + '{"applications": []}'
    program = (
        "import encodings.idna, os, socket\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        f"s = socket.create_connection(('127.0.0.1', {server.port}), 10)\n"
        f"s.sendall({request.encode()!r})\n"
        "print(s.recv(100).split()[1].decode())\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert found.stdout.strip() == "403"
    assert server.plane.calls == []


@pytest.mark.parametrize(
    ("family", "bind", "connect"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
def test_the_owner_of_a_connection_is_known_while_it_lives(
    family: socket.AddressFamily, bind: str, connect: str
) -> None:
    with socket.create_server((bind, 0), family=family, dualstack_ipv6=bind == "::") as listener:
        client = socket.create_connection((connect, listener.getsockname()[1]))
        accepted, _ = listener.accept()
        with accepted:
            assert peer_of(accepted) == Peer(is_unix=False, uid=os.getuid())
            client.close()
            accepted.recv(1)
            # the row of a closed client says uid 0: it must not pass for root
            assert peer_of(accepted).uid is None


def test_a_websocket_is_refused(server: Server) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert server.ask("GET", V2, headers=headers)[0] == 403
