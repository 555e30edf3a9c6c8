"""What clients and attackers send: never a 5xx for their fault, never a half-taken document, never a stuck server."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from servd.rest.access import AccessRules
from tests.wire.fake_plane import FakePlane, Server

V2 = "/api/serve/applications/"
NOBODY = 65534
DOCUMENT = b'{"applications": []}'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(FakePlane(), AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


def raw(server: Server, *parts: bytes) -> bytes:
    """The answer to bytes as they are, sent by a client that then says no more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        found = b""
        try:
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            while not is_whole(found) and (chunk := connection.recv(65536)):
                found += chunk
        # the server may have ended the connection before all was sent
        except OSError:
            pass
        return found


def is_whole(answer: bytes) -> bool:
    lines, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", lines)
    return bool(end) and length is not None and len(body) >= int(length[1])


def head(length: int | str, *extra: str, verb: str = "PUT", path: str = V2) -> bytes:
    lines = [f"{verb} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *extra, "", ""]
    return "\r\n".join(lines).encode()


def is_alive(server: Server) -> bool:
    return server.ask("GET", "/api/ray/version")[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\0" * 100,
        b'{"applications": "\\u0000"}',
        b'{"applications": [{"name": "a\\u0000", "import_path": "m:a", "runtime_env": {"working_dir": "/a\\u0000b"}}]}',
        b'{"applications": [{"import_path": "\\ud800:a"}]}',
        '{"applications": [], "größe": 1}'.encode("utf-16"),
        '{"applications": [], "größe": 1}'.encode("latin-1"),
        b"\xef\xbb\xbf" + DOCUMENT,
        b'{"applications": [' + b'{"import_path": "m:a", "args": ' + b'{"a":' * 2000 + b"1" + b"}" * 2000 + b"}]}",
        b"[" * 500_000,
        b'{"a":' * 150_000,
        b'{"applications": [' + b"{}," * 5_000 + b"{}]}",
        b'{"applications": [{"import_path": "m:a", "deployments": [{"name": "D", "num_replicas": 1' + b"0" * 5000 + b"}]}]}",
        b'{"applications": [{"import_path": "m:a", "deployments": [{"name": "D", "health_check_period_s": 1e999}]}]}',
        b'{"applications": Infinity}',
        b'{"applications": {"$ref": "#"}}',
        b'{"applications": [null, true, 1, "x", []]}',
        b'applications: []',
    ],
)  # fmt: skip
def test_bodies_that_are_no_document_are_a_400(server: Server, body: bytes) -> None:
    status, headers, text = server.ask("PUT", V2, body)
    assert status == 400, text[:500]
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert server.plane.calls == []


def test_a_key_that_comes_twice_is_refused(server: Server) -> None:
    status, _, text = server.ask("PUT", V2, '{"applications": [], "applications": [{"import_path": "m:a"}]}')
    assert (status, server.plane.calls) == (400, [])
    assert "'applications'" in text


def test_a_body_that_breaks_off_changes_nothing(server: Server) -> None:
    assert b" 200 " not in raw(server, head(len(DOCUMENT) + 50), DOCUMENT)
    assert b" 200 " not in raw(server, head(len(DOCUMENT)), DOCUMENT[:-1])
    assert server.plane.calls == []
    assert is_alive(server)


@pytest.mark.slow
def test_a_body_of_100_megabytes_is_refused_without_being_kept(server: Server) -> None:
    size = 100 * 1024 * 1024
    chunk = b" " * (1024 * 1024)
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head(size))
        try:
            for _ in range(100):
                connection.sendall(chunk)
        except OSError:
            pass  # it has heard enough
        try:
            answer = connection.recv(1000)
        except ConnectionResetError:
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
    assert server.plane.calls == []
    assert is_alive(server)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /nothing HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PUT " + V2.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"PUT " + V2.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\nContent-Length: 21\r\n\r\n" + DOCUMENT,
        b"PUT " + V2.encode() + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    ],
)  # fmt: skip
def test_what_is_no_http_gets_no_5xx(server: Server, request_bytes: bytes) -> None:
    answer = raw(server, request_bytes)
    assert not answer.startswith(b"HTTP/1.1 5")
    assert b" 200 " not in answer
    assert server.plane.calls == []
    assert is_alive(server)


@pytest.mark.parametrize(
    ("header", "path"),
    [
        ("Host: evil.example", V2),
        ("Host: localhost.evil.example", V2),
        ("Host: 127.0.0.1.nip.io:52365", V2),
        ("Host: evil.example@localhost", V2),
        ("Host: localhost@evil.example", V2),
        ("Host: 0x7f.1.evil", V2),
        ("Host: localhost\r\nOrigin: http://evil.example", V2),
        ("Host: localhost\r\nOrigin: null", V2),
        ("Host: localhost\r\nOrigin: http://localhost.evil.example", V2),
        ("Host: localhost\r\nOrigin: https://localhost:1", V2),
        ("Host: localhost\r\nOrigin: file://", V2),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site", V2),
        ("Host: localhost\r\nsec-fetch-site: Cross-Site", "/api/servd/v1/start"),
        ("Host: localhost\r\nOrigin: http://evil.example\r\nContent-Type: text/plain", "/api/servd/v1/start"),
    ],
)
def test_a_web_page_cannot_command_the_daemon(server: Server, header: str, path: str) -> None:
    verb = "PUT" if path == V2 else "POST"
    request = (
        f"{verb} {path} HTTP/1.1\r\n{header}\r\nConnection: close\r\nContent-Length: {len(DOCUMENT)}\r\n\r\n".encode()
    )
    answer = raw(server, request, DOCUMENT)
    assert answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 400"))
    assert b"access-control" not in answer.lower()
    assert server.plane.calls == []


def test_a_preflight_is_not_answered(server: Server) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "PUT"}
    status, found, _ = server.ask("OPTIONS", V2, headers=headers)
    assert status == 403
    assert not [name for name in found if name.startswith("access-control")]


@pytest.mark.parametrize("name", ["..%2F..%2Fetc", "%00", "%0a%0dX", "a%2Fb", "%ff", "." * 300, "%2e%2e"])
def test_names_in_paths_lead_nowhere(server: Server, name: str) -> None:
    for path in (
        f"/api/servd/v1/code/{name}",
        f"/api/servd/v1/revisions/{name}",
        f"/api/servd/v1/replicas/{name}/stack",
    ):
        status, _, _ = server.ask("PUT" if "/code/" in path else "GET", path, b"x", unix=True)
        assert status in (400, 404), path
    assert not server.code_dir.exists()
    assert is_alive(server)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_another_user_is_let_in_nowhere(server: Server) -> None:
    program = (
        "import os, socket, sys\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "def said(family, address):\n"
        "    try:\n"
        "        s = socket.socket(family); s.settimeout(10); s.connect(address)\n"
        f"        s.sendall(b'GET {V2} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n')\n"
        "        s.shutdown(socket.SHUT_WR)\n"
        "        return s.recv(100).split()[1].decode()\n"
        "    except OSError as error:\n"
        "        return type(error).__name__\n"
        f"print(said(socket.AF_INET, ('127.0.0.1', {server.port})), said(socket.AF_UNIX, {server.unix_path!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.split() == ["403", "PermissionError"]


def test_documents_at_once_are_taken_one_after_the_other(server: Server) -> None:
    answers: list[int] = []

    def put(number: int) -> None:
        document = {
            "applications": [
                {"name": f"a{number}-{part}", "import_path": "m:a", "route_prefix": f"/{part}"} for part in range(20)
            ]
        }
        answers.append(server.ask("PUT", V2, json.dumps(document))[0])

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == [200] * 8
    taken = [{app.name.partition("-")[0] for app in call[1].applications} for call in server.plane.calls]
    assert sorted(len(names) for names in taken) == [1] * 8
    assert len({next(iter(names)) for names in taken}) == 8
    assert server.plane.instance.revision == 8
