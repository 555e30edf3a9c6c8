"""A server's sockets, found among the process's: no new connection, and none that waits is lost."""

import asyncio
import os
import socket
import subprocess
import sys

import pytest

from servd.proxy.grpc import sockets
from servd.proxy.grpc.sockets import Connections, listeners, others_listen, stop_listening
from tests.fakes import wait_until

LISTENER = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1])), reuse_port=True):
    print(flush=True)
    input()
"""


async def test_listening_ends_once_what_waits_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def look(sock: socket.socket) -> bool:
        nonlocal looks
        looks += 1
        return has_ended(sock)

    has_ended = sockets._ended
    monkeypatch.setattr(sockets, "_ended", look)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        port = server.getsockname()[1]
        server.setblocking(False)
        with socket.create_connection(("127.0.0.1", port)) as client:
            ending = asyncio.create_task(stop_listening(port))
            await wait_until(lambda: looks >= 10)
            assert not ending.done()
            # the library shares it, and must not wait in it
            assert not os.get_blocking(server.fileno())
            assert Connections(port).left() == 0
            accepted, _ = server.accept()
            await ending
            found = Connections(port)
            assert found.left() == 1
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
            accepted.close()
        assert found.left() == 0
        with other.dup():
            # its number is another's now
            assert found.left() == 0
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            raise AssertionError("it listens still")
        except ConnectionRefusedError:
            pass
        socket.create_connection(other.getsockname()).close()


def test_looks_leave_no_descriptor_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # as if each were a socket when it is looked at first
    monkeypatch.setattr("servd.proxy.grpc.sockets.stat.S_ISSOCK", lambda _: True)
    before = len(os.listdir("/proc/self/fd"))
    assert listeners(1) == set()
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_process_that_listens_at_the_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as server:
        port = server.getsockname()[1]
        own = listeners(port)
        assert not others_listen(port, own)
        command = [sys.executable, "-c", LISTENER, str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            other.stdout.readline()
            assert others_listen(port, own)
            other.communicate("\n")
        assert not others_listen(port, own)
