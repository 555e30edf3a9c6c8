import subprocess
import sys

import pytest

from servd.wire.allocator import FreedMemory, keep_freed_memory

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


MIB = 1024 * 1024
PIECES = f"""
import sys
sys.path[:0] = {sys.path!r}
from servd.ground.process import resident_bytes
from servd.wire.allocator import FreedMemory, keep_freed_memory
keep_freed_memory()
freed = FreedMemory(resident_bytes)
before = resident_bytes()
pieces = [bytes(8000 + number % 3) for number in range(50_000)]
lives = bytes(9000)
del pieces
held = resident_bytes() - before
freed.look()
# the kernel's own count may still have been on its way at the first of them
print(held, any([freed.look() for _ in range(3)]), resident_bytes() - before)
"""


@pytest.mark.parametrize(("environment", "gives"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "100000"}, False)])
def test_memory_freed_in_pieces_is_given_back_unless_the_user_has_a_wish(
    environment: dict[str, str], gives: bool
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PIECES], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    held, gave, left = run.stdout.split()
    assert (int(held) > 300 * MIB, gave, int(left) < 50 * MIB) == (True, str(gives), gives)


def test_memory_is_given_back_once_a_process_grows_no_more_and_seldom_where_it_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resident, gave = 50 * MIB, 0

    def give_back(_: int) -> int:
        nonlocal gave
        gave += 1
        return 1

    monkeypatch.setattr("servd.wire.allocator._function", lambda _: give_back)
    freed = FreedMemory(lambda: resident)
    for resident in (100 * MIB, 306 * MIB, 306 * MIB, 307 * MIB, 2000 * MIB):
        assert not freed.look(), resident
    assert freed.look()
    # it is in use: again after 1, 3, 7 s and so on, at last once a minute
    assert [second for second in range(1, 200) if freed.look()] == [2, 6, 14, 30, 62, 123, 184]
    resident = 60 * MIB
    assert not freed.look()
    resident = 1000 * MIB
    assert [freed.look(), freed.look()] == [False, True]
