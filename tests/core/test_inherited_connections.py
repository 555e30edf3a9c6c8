"""Connections that are open before a fork: which there are, which forbid to fork, and which children find at their end."""

import http.client
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from servd.ground.process import open_fds
from servd.replica.native import connections
from servd.replica.native.connections import Connection, end_inherited, let_end_in_children, open_connections
from servd.replica.native.fork_safety import judge
from servd.replica.native.inherited import shared_lines


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def connected(stack: ExitStack, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, socket.socket]:
    """A connection over TCP, or UDP, and its other end."""
    server = stack.enter_context(socket.socket(socket.AF_INET, kind))
    server.bind(("127.0.0.1", 0))
    client = stack.enter_context(socket.socket(socket.AF_INET, kind))
    if kind != socket.SOCK_STREAM:
        client.connect(server.getsockname())
        return client, server
    server.listen()
    client.connect(server.getsockname())
    other, _ = server.accept()
    stack.callback(other.close)
    return client, other


def test_those_that_are_open_are_found(stack: ExitStack, tmp_path: Path) -> None:
    before = open_fds()
    client, other = connected(stack)
    host, port = client.getpeername()
    [found, accepted] = open_connections(open_fds() - before)
    assert (found.fd, found.peer, found.is_http) == (client.fileno(), f"{host}:{port}", False)
    assert accepted.fd == other.fileno(), "both ends are here"
    assert shared_lines(open_fds()) == []

    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "db"))
    listener.listen()
    by_path = stack.enter_context(socket.socket(socket.AF_UNIX))
    by_path.connect(str(tmp_path / "db"))
    assert [one.peer for one in open_connections(open_fds() - before)][2:] == [str(tmp_path / "db")]


def test_what_is_no_connection_to_somebody_is_left_out(stack: ExitStack, tmp_path: Path) -> None:
    before = open_fds()
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    stack.enter_context(socket.socket())
    for one in socket.socketpair():
        stack.enter_context(one)
    connected(stack, socket.SOCK_DGRAM)
    stack.enter_context((tmp_path / "file").open("w"))
    for end in os.pipe():
        stack.callback(os.close, end)
    assert open_connections(open_fds() - before) == []


def test_one_whose_other_end_is_closed_is_left_out(stack: ExitStack) -> None:
    before = open_fds()
    client, other = connected(stack)
    other.close()
    # the news is there once it can be read
    assert client.recv(1) == b""
    assert open_connections(open_fds() - before) == []


def test_a_class_of_the_applications_changes_nothing(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    client, _ = connected(stack)
    monkeypatch.setattr(socket, "socket", None)
    assert client.fileno() in [one.fd for one in open_connections(open_fds() - before)]


def test_children_find_those_of_http_at_their_end(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    client, other = connected(stack)
    database, _ = connected(stack)
    monkeypatch.setattr(connections, "HTTP_PORTS", (client.getpeername()[1],))
    monkeypatch.setattr(connections, "_of_http", [])
    let_end_in_children(open_connections(open_fds() - before))
    pid = os.fork()
    if not pid:
        try:
            end_inherited()
            is_right = client.recv(1) == b"" and database.getpeername() and not os.get_inheritable(client.fileno())
            os._exit(0 if is_right else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    # the parent's goes on
    other.sendall(b"x")
    assert client.recv(1) == b"x"


def test_those_of_clients_of_http_are_known_whatever_the_port(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream:
        """As httpcore's."""

        def __init__(self, sock: socket.socket | None) -> None:
            self._sock = sock

    class Urllib3s(http.client.HTTPConnection):
        pass

    before = open_fds()
    monkeypatch.setitem(sys.modules, "httpcore._backends.sync", SimpleNamespace(SyncStream=Stream))
    monkeypatch.setitem(sys.modules, "urllib3.connection", SimpleNamespace(HTTPConnection=Urllib3s))
    one, other, third = (connected(stack)[0] for _ in range(3))
    kept: list[object] = [Stream(one), Stream(None), Urllib3s("localhost")]
    client, plain = Urllib3s("localhost"), http.client.HTTPConnection("localhost")
    client.sock, plain.sock = other, third
    fds = {found.fd for found in open_connections(open_fds() - before) if found.is_http}
    assert fds == {one.fileno(), other.fileno()}
    assert len(kept) == 3, "those without a connection too"


def test_what_has_come_in_the_place_of_one_is_left_alone(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    client, _ = connected(stack)
    monkeypatch.setattr(connections, "HTTP_PORTS", (client.getpeername()[1],))
    monkeypatch.setattr(connections, "_of_http", [])
    let_end_in_children(open_connections(open_fds() - before))
    one, other = socket.socketpair()
    stack.enter_context(one), stack.enter_context(other)
    os.dup2(one.fileno(), client.fileno())
    end_inherited()
    other.sendall(b"x")
    assert client.recv(1) == b"x"


DATABASE = Connection(5, 1, "10.0.0.1:5432")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], ""),
        ([Connection(5, 1, "10.0.0.1:443", is_http=True)], ""),
        (
            [DATABASE, DATABASE, Connection(6, 2, "10.0.0.1:443", is_http=True)],
            "the import left a connection open to 10.0.0.1:5432, and replicas that share one read each other's answers; "
            "open it after the fork, in the constructor, to have replicas forked",
        ),
        (
            [Connection(number, number, f"/run/{number}") for number in range(5)],
            "the import left a connection open to /run/0, /run/1, /run/2, ..., and replicas that share one read each "
            "other's answers; open it after the fork, in the constructor, to have replicas forked",
        ),
    ],
)
def test_the_verdict(found: list[Connection], expected: str) -> None:
    assert judge((), (), found) == expected


def test_threads_come_first() -> None:
    assert "1 thread(s)" in judge(("poller",), (), [DATABASE])
