"""What an earlier version left behind: it starts and serves, whatever moved since in the code."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.kept_state.unpack import ARCHIVES, unpacked
from tests.system.running_daemon import a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow


def archive_of(path: Path) -> Any:
    """A case; what a single commit wrote is one for the long run."""
    name = path.name.removesuffix(".tar.gz")
    return pytest.param(path, id=name, marks=[pytest.mark.long] if "-" in name else [])


@pytest.mark.parametrize("archive", [archive_of(path) for path in ARCHIVES])
def test_what_an_earlier_version_left_is_served(archive: Path) -> None:
    with unpacked(archive) as home, a_daemon(settings_in(home)) as daemon:
        # an application by value is read by the minor version of Python that wrote it
        expected = {"words"} if sys.version_info[:2] != (3, 11) else {"words", "shipped", "graph"}
        eventually(
            lambda: expected <= {n for n, a in daemon.status()["applications"].items() if a["status"] == "RUNNING"}
        )
        assert daemon.get("/words") == (200, "snapshot!")
        if "shipped" in expected:
            assert daemon.get("/shipped/?word=hello") == (200, json.dumps("hello?"))
        assert len(daemon.ask("GET", "/api/servd/v1/revisions")[1]["revisions"]) == 3
