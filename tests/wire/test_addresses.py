"""Which daemon a command means: the order of addresses."""

import socket
from pathlib import Path

import pytest

from servd.daemon.admin_client import ADDRESS_VARIABLES, DEFAULT_ADDRESS, find_address
from servd.daemon.unix_sockets import bind_unix
from servd.exceptions import ConfigError
from servd.ground.settings import admin_socket, socket_dir_for


@pytest.fixture(autouse=True)
def nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ADDRESS_VARIABLES, "SERVD_STATE_DIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    # nobody listens on the default port of this host, whatever runs there
    monkeypatch.setattr("servd.daemon.admin_client.DEFAULT_ADMIN_PORT", 1)


def a_daemon_on(state_dir: Path | str) -> tuple[socket.socket, str]:
    path = admin_socket(socket_dir_for(str(state_dir)))
    Path(path).parent.mkdir(exist_ok=True)
    return bind_unix(path), f"unix://{path}"


def test_the_first_that_is_given_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listeners = []
    assert find_address() == DEFAULT_ADDRESS
    for folder, name in ((tmp_path / "servd", ""), (tmp_path / "other", "SERVD_STATE_DIR")):
        listener, address = a_daemon_on(folder)
        listeners.append(listener)
        if name:
            monkeypatch.setenv(name, str(folder))
        assert find_address() == address
    listener, address = a_daemon_on(tmp_path / "third")
    listeners.append(listener)
    assert find_address(state_dir=str(tmp_path / "third")) == address
    monkeypatch.setenv("RAY_ADDRESS", "http://never.read:1")
    for name in ("RAY_DASHBOARD_ADDRESS", "RAY_AGENT_ADDRESS", "SERVD_ADDRESS"):
        monkeypatch.setenv(name, f"http://{name.lower()}:1///")
        assert find_address(state_dir=str(tmp_path / "third")) == f"http://{name.lower()}:1"
    assert find_address("https://given:1/") == "https://given:1"
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("address", ["localhost:52365", "ftp://h", "http://", "unix://", "//h"])
def test_other_forms_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="must have the form"):
        find_address(address)


def test_another_daemon_stands_in_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr("servd.daemon.admin_client.DEFAULT_ADMIN_PORT", listener.getsockname()[1])
        assert find_address(state_dir=str(tmp_path / "silent")) == DEFAULT_ADDRESS
    assert f"{tmp_path}/silent: turning to" in capsys.readouterr().err


def test_a_state_directory_without_a_daemon_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_address(state_dir=str(tmp_path / "silent")) == DEFAULT_ADDRESS
    assert capsys.readouterr().err.strip().endswith(f"no daemon answers on {tmp_path}/silent")
