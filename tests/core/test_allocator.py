import subprocess
import sys

import pytest

from servd.wire.allocator import keep_freed_memory

BLOCK = 1_000_000
SCRIPT = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from servd.wire.allocator import keep_freed_memory
keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    blocks = [b"x" * {BLOCK} for _ in range(8)]
    del blocks
use()
before = faults()
for _ in range(20):
    use()
print(faults() - before)
"""


def faults(**environment: str) -> int:
    """Page faults of a process that takes and frees large blocks again and again."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    return int(run.stdout)


def test_blocks_are_used_again() -> None:
    assert faults() < 20 * 8 * BLOCK / 4096 / 10


def test_the_users_own_wish_stays() -> None:
    assert faults(MALLOC_MMAP_THRESHOLD_="100000") > 20 * 8 * BLOCK / 4096 / 2


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.wire.allocator.ctypes.CDLL", lambda _: object())
    keep_freed_memory()
