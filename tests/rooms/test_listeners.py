"""The daemon's listening sockets."""

import socket

import pytest

from servd.daemon.listeners import Listeners
from servd.exceptions import ListenError
from tests.ports import free_port


def test_one_socket_per_slot_and_the_same_ones_again() -> None:
    listeners, port = Listeners(), free_port()
    first = listeners.open("127.0.0.1", port, 2)
    assert len(first) == 2
    assert all(listener.getsockname() == ("127.0.0.1", port) for listener in first)
    assert listeners.open("127.0.0.1", port, 3)[:2] == first
    with socket.create_connection(("127.0.0.1", port), 5):
        pass
    listeners.close("127.0.0.1", port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_a_taken_port_is_an_error_even_if_its_owner_shares() -> None:
    with socket.socket() as owner:
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{port}: address already in use; .*--http-port"):
            Listeners().open("127.0.0.1", port, 1)
        with pytest.raises(ListenError, match="--admin-port"):
            Listeners().bind_admin("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "option"),
    [
        ("no.such.host.invalid", 1, "--http-host"),
        ("127.0.0.1", 70_000, "--http-port"),
        ("203.0.113.1", 1, "--http-host"),
    ],
)
def test_an_address_that_cannot_be_bound_is_named_with_the_option_at_fault(host: str, port: int, option: str) -> None:
    with pytest.raises(ListenError, match=f"cannot listen on {host}:{port}: .+; choose another with {option}"):
        Listeners().open(host, port, 1)
