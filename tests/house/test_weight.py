"""What each kind of process loads: proxies and the daemon stay light, a plain replica knows no FastAPI."""

import subprocess
import sys

import pytest

HEAVY = {
    "pydantic",
    "fastapi",
    "starlette",
    "cloudpickle",
    "hypercorn",
    "websockets",
    "typer",
    "rich",
    "yaml",
    "prometheus_client",
    "grpc",
    "opentelemetry",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("servd.daemon.boot", set()),
        ("servd.proxy.main", set()),
        ("servd.controller.main", set()),
        ("servd.cli", {"typer", "rich"}),
        ("servd.replica.fork_server", set()),
        ("servd.replica.spawned", set()),
        ("servd.replica.builder", {"pydantic", "starlette", "cloudpickle"}),
    ],
)
def test_modules_loaded(module: str, allowed: set[str]) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY & set(found) <= allowed
