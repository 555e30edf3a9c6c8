"""Which daemon a command means: the order of addresses."""

import errno
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from servd.daemon.admin_client import ADDRESS_VARIABLES, DEFAULT_ADDRESS, UnreachableError, find_address
from servd.daemon.directories import empty_socket_dir, tell_socket_dir
from servd.daemon.unix_sockets import bind_unix
from servd.exceptions import ConfigError, StateError
from servd.ground.settings import Settings, admin_socket, default_state_dir, is_default_state_dir, socket_dir_for


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
        assert find_address("auto") == address
    monkeypatch.setenv("RAY_ADDRESS", "http://never.read:1")
    monkeypatch.setenv("RAY_AGENT_ADDRESS", "auto")
    assert find_address() == address
    for name in ("RAY_DASHBOARD_ADDRESS", "RAY_AGENT_ADDRESS", "SERVD_ADDRESS"):
        monkeypatch.setenv(name, f"http://{name.lower()}:1///")
        assert find_address() == f"http://{name.lower()}:1"
    listener, address = a_daemon_on(tmp_path / "third")
    listeners.append(listener)
    assert find_address(state_dir=str(tmp_path / "third")) == address
    monkeypatch.chdir(tmp_path)
    assert find_address(state_dir="third") == address
    assert find_address("https://given:1/", str(tmp_path / "third")) == "https://given:1"
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("address", ["localhost:52365", "ftp://h", "http://", "unix://", "//h"])
def test_other_forms_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="must have the form"):
        find_address(address)


@pytest.fixture
def somebody_else(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A daemon on the default port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr("servd.daemon.admin_client.DEFAULT_ADMIN_PORT", listener.getsockname()[1])
        yield


@pytest.mark.usefixtures("somebody_else")
@pytest.mark.parametrize("way", ["option", "option beats variable", "variable"])
def test_no_other_daemon_stands_in_for_a_named_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    silent = str(tmp_path / "silent")
    if way == "variable":
        monkeypatch.setenv("SERVD_STATE_DIR", silent)
    if way == "option beats variable":
        monkeypatch.setenv("SERVD_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(
        UnreachableError, match=f"no daemon answers on {silent}: there is no socket .*--state-dir {silent}"
    ):
        find_address(state_dir=None if way == "variable" else silent)


def test_the_socket_of_a_dead_daemon_is_no_daemon(tmp_path: Path) -> None:
    listener, address = a_daemon_on(tmp_path / "dead")
    assert find_address(state_dir=str(tmp_path / "dead")) == address
    listener.close()
    with pytest.raises(UnreachableError, match=f"no daemon answers on {tmp_path}/dead: Connection refused"):
        find_address(state_dir=str(tmp_path / "dead"))


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the user of a container that is in no list of users."""
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)


@pytest.mark.usefixtures("no_home")
def test_who_has_no_home_needs_a_state_directory_only_where_one_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_address() == DEFAULT_ADDRESS
    listener, address = a_daemon_on(tmp_path / "named")
    with listener:
        assert find_address(state_dir=str(tmp_path / "named")) == address
    assert not is_default_state_dir(str(tmp_path / "named"))
    with pytest.raises(StateError, match=r"uid .* name a state directory with --state-dir or SERVD_STATE_DIR"):
        default_state_dir()
    monkeypatch.setenv("SERVD_STATE_DIR", str(tmp_path / "named"))
    assert is_default_state_dir(str(tmp_path / "named"))


def test_a_daemon_is_found_where_it_says_that_its_sockets_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir(mode=0o700)
    settings = Settings(str(state_dir), socket_dir_for(str(state_dir)))
    listener, address = a_daemon_on(state_dir)
    tell_socket_dir(settings)
    monkeypatch.setenv("SERVD_STATE_DIR", str(state_dir))
    # as in a job of cron, which has no such directory, or with a full temporary directory
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert find_address(state_dir=str(state_dir)) == find_address() == address
    copy = shutil.copytree(state_dir, tmp_path / "copy")
    # what a copy says is of another daemon
    with pytest.raises(UnreachableError, match=r"no daemon answers on .*copy"):
        find_address(state_dir=str(copy))
    empty_socket_dir(settings.socket_dir)
    listener.close()
    elsewhere, address = a_daemon_on(state_dir)
    with elsewhere:
        assert find_address() == address, "the word of a daemon that has ended is none"
    empty_socket_dir(socket_dir_for(str(state_dir)))
    Path(socket_dir_for(str(state_dir))).rmdir()


def test_without_a_place_for_sockets_it_is_said_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gettempdir() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.gettempdir", gettempdir)
    with pytest.raises(StateError, match=r"no directory for sockets: .*/tmp.* Set XDG_RUNTIME_DIR or TMPDIR"):
        socket_dir_for(str(tmp_path))
