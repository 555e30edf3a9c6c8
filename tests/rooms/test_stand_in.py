"""While no controller can be started, whoever asks for it is told why, at once."""

import contextlib
import errno
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servd.daemon.admin_client import CA_FILE_VARIABLE, AdminClient, RefusedError
from servd.daemon.stand_in import LIMIT_S, MOST_GUESTS, StandIn
from servd.daemon.takeover import Belongings
from servd.daemon.unix_sockets import bind_unix
from servd.ground.clock import SystemClock
from tests.fakes import make_certificate

REASON = "the controller cannot be started: no process is left"


class SteppedClock(SystemClock):
    """Time passes when a test says so."""

    time = 1.0

    def now(self) -> float:
        return self.time


class Daemon:
    """The part of a daemon's loop that matters here, on one Unix socket.

    certificate: with which its other sockets speak TLS.
    """

    def __init__(self, path: Path, certificate: tuple[str, str] = ("", "")) -> None:
        self.path = str(path)
        self.address = f"unix://{path}"
        self.sockets = [bind_unix(self.path)]
        self.poll = select.poll()
        self.clock = SteppedClock()
        self.stand_in = StandIn(self.poll, self.clock, lambda: self.sockets, certificate)

    def turn(self, wait_ms: int = 0) -> int:
        """One turn of the loop; gives the number of descriptors that were ready."""
        ready = self.poll.poll(wait_ms)
        for fd, _ in ready:
            self.stand_in.handle(fd)
        return len(ready)

    def answer(self, method: str = "GET", body: bytes | None = None) -> RefusedError:
        """What a client of the admin API is told."""
        found: list[Exception] = []

        def ask() -> None:
            with pytest.raises(RefusedError) as refused:
                AdminClient(self.address).request(method, "/api/serve/applications/", body, timeout_s=10)
            found.append(refused.value)

        client = threading.Thread(target=ask)
        client.start()
        while client.is_alive():
            self.turn(20)
        assert isinstance(found[0], RefusedError)
        return found[0]

    def client(self) -> socket.socket:
        """A connection of somebody who says nothing."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(self.path)
        return sock

    def close(self) -> None:
        """Close what it has."""
        self.stand_in.end()
        self.clock.time += LIMIT_S
        self.stand_in.tend()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path / "admin.sock")
    yield made
    made.close()


def test_everybody_is_told_the_reason_whatever_is_asked(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        daemon.stand_in.begin(REASON)
    for method, body in (("GET", None), ("PUT", b"{}"), ("PUT", b"x" * 3_000_000)):
        refused = daemon.answer(method, body)
        assert (refused.status, refused.text) == (503, f"{REASON}, and what runs goes on")
    assert capfd.readouterr().err.count(REASON) == 1


def test_it_stands_in_wherever_the_admin_api_is_asked() -> None:
    has: Any = SimpleNamespace(
        unix=SimpleNamespace(sockets=["control", "unix"]), ports=("admin", None), dashboard="dashboard"
    )
    assert Belongings.admin_sockets(has) == ["unix", "admin", "dashboard"]


@pytest.fixture
def over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon that is asked at a TCP port, over TLS."""
    certificate, key = make_certificate(tmp_path, "daemon")
    monkeypatch.setenv(CA_FILE_VARIABLE, str(certificate))
    made = Daemon(tmp_path / "admin.sock", (str(certificate), str(key)))
    made.sockets.append(socket.create_server(("127.0.0.1", 0)))
    made.address = f"https://127.0.0.1:{made.sockets[1].getsockname()[1]}"
    yield made
    made.close()


def test_everybody_is_told_the_reason_over_tls_too(over_tls: Daemon) -> None:
    over_tls.stand_in.begin(REASON)
    for method, body in (("GET", None), ("PUT", b"{}"), ("PUT", b"x" * 3_000_000)):
        refused = over_tls.answer(method, body)
        assert (refused.status, refused.text) == (503, f"{REASON}, and what runs goes on")
    # and those without TLS where they always may
    over_tls.address = f"unix://{over_tls.path}"
    assert over_tls.answer().status == 503


def test_who_does_not_speak_tls_or_says_nothing_goes(over_tls: Daemon) -> None:
    over_tls.stand_in.begin(REASON)
    place = over_tls.sockets[1].getsockname()
    with socket.create_connection(place) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while not select.select([plain], [], [], 0)[0]:
            over_tls.turn(20)
        with contextlib.suppress(ConnectionResetError):
            assert not plain.recv(4096).startswith(b"HTTP")
    with socket.create_connection(place) as silent:
        while "1 guests" not in repr(over_tls.stand_in):
            over_tls.turn(20)
        over_tls.clock.time += LIMIT_S
        over_tls.stand_in.tend()
        silent.settimeout(10)
        assert silent.recv(1) == b""


def test_without_its_certificate_the_others_are_told_and_it_is_tried_again(
    over_tls: Daemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "daemon.key"
    text = key.read_bytes()
    key.unlink()
    over_tls.stand_in.begin(REASON)
    over_tls.stand_in.tend()
    assert capfd.readouterr().err.count("nobody is answered over TLS: cannot use --admin-tls-cert") == 1
    secure, over_tls.address = over_tls.address, f"unix://{over_tls.path}"
    assert over_tls.answer().status == 503
    key.write_bytes(text)
    over_tls.stand_in.tend()
    over_tls.address = secure
    assert over_tls.answer().status == 503


def test_who_comes_before_and_after_waits_for_a_controller(daemon: Daemon) -> None:
    with daemon.client() as before:
        before.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert not daemon.turn()
        daemon.stand_in.begin(REASON)
        daemon.turn()
        daemon.turn()
        assert before.recv(12) == b"HTTP/1.1 503"
        daemon.stand_in.end()
        with daemon.client() as after:
            after.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert not daemon.turn()
            accepted, _ = daemon.sockets[0].accept()
            accepted.close()


def test_who_says_nothing_goes_and_makes_room(daemon: Daemon) -> None:
    daemon.stand_in.begin(REASON)
    silent = [daemon.client() for _ in range(MOST_GUESTS)]
    for _ in silent:
        daemon.turn()
    assert not daemon.turn()
    with daemon.client() as late:
        late.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert not daemon.turn()
        daemon.clock.time += LIMIT_S
        daemon.stand_in.tend()
        assert [sock.recv(1) for sock in silent] == [b""] * MOST_GUESTS
        while daemon.turn():
            pass
        assert late.recv(12) == b"HTTP/1.1 503"
    for sock in silent:
        sock.close()


def test_sockets_that_were_bound_anew_are_answered_on(daemon: Daemon) -> None:
    daemon.stand_in.begin(REASON)
    Path(daemon.path).unlink()
    daemon.sockets[0].close()
    daemon.sockets = [bind_unix(daemon.path)]
    daemon.stand_in.tend()
    assert daemon.answer().status == 503


class Exhausted(socket.socket):
    """Cannot accept: there is no descriptor for it."""

    def accept(self) -> tuple[socket.socket, object]:
        raise OSError(errno.EMFILE, "too many open files")


def test_without_a_descriptor_it_is_tried_again_later_and_not_without_a_pause(daemon: Daemon) -> None:
    bound = daemon.sockets[0]
    with Exhausted(fileno=bound.fileno()) as exhausted:
        daemon.sockets = [exhausted]
        daemon.stand_in.begin(REASON)
        with daemon.client() as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert daemon.turn()
            assert not daemon.turn()
            daemon.sockets = [bound]
            daemon.stand_in.tend()
            daemon.turn()
            daemon.turn()
            assert client.recv(12) == b"HTTP/1.1 503"
        exhausted.detach()


def test_an_answer_that_comes_after_a_controller_says_so(daemon: Daemon) -> None:
    daemon.stand_in.begin(REASON)
    with daemon.client() as client:
        daemon.turn()
        daemon.stand_in.end()
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        daemon.turn()
        assert b"ask once more" in client.recv(4096)
