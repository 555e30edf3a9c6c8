"""Starting a daemon from a program, without one."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from servd import client
from servd.exceptions import AlreadyRunningError, DeployError
from servd.ground.settings import DEFAULT_ADMIN_PORT, Settings


@pytest.mark.parametrize(
    ("found_free", "tried"),
    [
        ([DEFAULT_ADMIN_PORT, 40_001, 40_001], [DEFAULT_ADMIN_PORT, 40_001]),
        ([DEFAULT_ADMIN_PORT, DEFAULT_ADMIN_PORT], [DEFAULT_ADMIN_PORT]),
        ([40_001], [40_001]),
    ],
    ids=["another program took it", "nobody took it", "it was taken before"],
)
def test_only_a_default_port_that_was_taken_meanwhile_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found_free: list[int], tried: list[int]
) -> None:
    asked: list[int] = []

    def start(settings: Settings) -> Any:
        asked.append(settings.admin_port)
        if len(asked) == 1:
            raise DeployError("the daemon did not start")

    ports = iter(found_free)
    monkeypatch.setenv("SERVD_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(client, "find", lambda: None)
    monkeypatch.setattr(client, "start_tied", start)
    monkeypatch.setattr(client, "free_admin_port", lambda: next(ports))
    monkeypatch.setattr(client.connection, "install", [].append)
    if len(tried) == 1:
        with pytest.raises(DeployError):
            client.find_or_start(host=None, port=None)
    else:
        client.find_or_start(host=None, port=None)
    assert asked == tried


def test_threads_that_start_one_at_once_share_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Any] = []
    monkeypatch.setenv("SERVD_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(client, "find", lambda: made[0] if made else None)

    def started(*_: Any) -> Any:
        # long enough for the others to come in, if they could
        threading.Event().wait(0.05)
        made.append(object())
        return made[-1]

    monkeypatch.setattr(client, "_started", started)
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: client.find_or_start(host=None, port=None), range(4))]
    assert len(made) == 1
    assert found == made * 4


@pytest.mark.parametrize("error", [DeployError("exit 1"), AlreadyRunningError("/s", 7)])
def test_a_daemon_that_another_program_starts_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    its_client = object()
    answers = iter([None, None, None, its_client])
    pids = iter([None, 7, 7, 7])

    def start(_: Settings) -> Any:
        raise error

    monkeypatch.setenv("SERVD_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(client, "find", lambda: next(answers))
    monkeypatch.setattr(client, "running_pid", lambda _: next(pids))
    monkeypatch.setattr(client, "start_tied", start)
    assert client.find_or_start(host=None, port=None) is its_client
    assert next(pids, "none left") == "none left"
