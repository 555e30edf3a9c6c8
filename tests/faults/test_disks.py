"""Directories of a daemon that are full, read-only or gone cost no request, and no process for long."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import disks

pytestmark = pytest.mark.skipif(bool(disks.why_not()), reason=disks.why_not())


@pytest.fixture
def directory() -> Iterator[Path]:
    """One with a short path, since sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="servd-disks-") as path:
        yield Path(path)


@pytest.mark.slow
@pytest.mark.parametrize("cell", disks.QUICK_CELLS)
def test_a_trouble(directory: Path, cell: str) -> None:
    done = disks.run_apart(cell, directory)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("cell", [cell for cell in disks.CELLS if cell not in disks.QUICK_CELLS])
def test_every_trouble(directory: Path, cell: str) -> None:
    done = disks.run_apart(cell, directory)
    assert done.returncode == 0, done.stdout + done.stderr
