"""Starting a daemon from a program, without one."""

from pathlib import Path
from typing import Any

import pytest

from servd import client
from servd.exceptions import DeployError
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
    monkeypatch.setattr(client, "_free_admin_port", lambda: next(ports))
    monkeypatch.setattr(client.connection, "install", [].append)
    if len(tried) == 1:
        with pytest.raises(DeployError):
            client.find_or_start(host=None, port=None)
    else:
        client.find_or_start(host=None, port=None)
    assert asked == tried
