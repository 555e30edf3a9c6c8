"""Requests made from the admin plane's own OpenAPI (`openapi_fuzz`), a few or many."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "test_answers_are_those_described",
        pytest.param("test_answers_are_those_described_at_length", marks=pytest.mark.long),
    ],
)
def test_fuzz(name: str) -> None:
    test = f"{Path(__file__).with_name('openapi_fuzz.py')}::{name}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "schemathesis.pytest.plugin", "-m", "", test]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
