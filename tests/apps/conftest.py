"""One daemon per test module, started from Python, and an HTTP client."""

import socket
from collections.abc import Iterator

import pytest

import servd


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Data-plane port of a daemon that this process starts, and that ends with the module."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SERVD_STATE_DIR", str(tmp_path_factory.mktemp("state")))
    for name in ("SERVD_ADDRESS", "RAY_AGENT_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        patch.delenv(name, raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = int(probe.getsockname()[1])
    client = servd.start(detached=False, http_options={"port": free})
    yield free
    client.shutdown()
    patch.undo()
