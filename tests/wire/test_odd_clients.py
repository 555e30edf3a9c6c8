"""Clients of the admin plane that speak HTTP in ways of their own: who say no more than their request, who name the whole URL."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from servd.rest.access import AccessRules
from tests.wire.fake_plane import FakePlane, Server

LIMIT_S = 10.0


class SlowPlane(FakePlane):
    """Gives its metrics once it is told to: a controller asks all processes for theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = threading.Event(), threading.Event()

    async def metrics(self, is_todays: bool = False) -> str:
        self.asked.set()
        while not self.go_on.is_set():  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0.01)
        return await super().metrics(is_todays)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(SlowPlane(), AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


def all_of(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


@pytest.mark.parametrize(
    ("asked", "answers"),
    [
        (b"GET /metrics HTTP/1.0\r\n\r\n", 1),
        (b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n", 1),
        (b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2, 2),
        (b"GET /api/ray/version HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2, 2),
    ],
    ids=["HTTP/1.0", "HTTP/1.1", "two", "two quick ones"],
)
def test_who_says_no_more_than_its_request_is_answered(server: Server, asked: bytes, answers: int) -> None:
    plane = server.plane
    assert isinstance(plane, SlowPlane)
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S) as connection:
        connection.sendall(asked)
        # as `nc -N` does
        connection.shutdown(socket.SHUT_WR)
        if b"metrics" in asked:
            assert plane.asked.wait(LIMIT_S)
        threading.Timer(0.1, plane.go_on.set).start()
        assert all_of(connection).count(b" 200 ") == answers


def test_who_names_the_whole_url_is_answered(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S) as connection:
        where = f"http://localhost:{server.port}/api/ray/version?x=1"
        connection.sendall(f"GET {where} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        assert b" 200 " in all_of(connection)
