"""Locks and numbers of multiprocessing that are there before a fork: each child has its own, and what it starts shares them."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import pytest

from servd.replica.native import shared_locks
from servd.replica.native.shared_locks import note_shared_locks, renew_shared_locks

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

WAIT_S = 0.05
FORK: Any = get_context("fork")


@pytest.fixture(autouse=True)
def _own_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_locks", "_arenas", "_holders"):
        monkeypatch.setattr(shared_locks, name, [])
    # other tests may have left some
    monkeypatch.setattr(shared_locks, "children", list)


def in_child(work: Callable[[], Any]) -> int:
    """`work` in a forked child, which has made anew what it inherits; how it ended."""
    pid = os.fork()
    if not pid:
        try:
            renew_shared_locks()
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def take_and_die(lock: Any) -> None:
    assert lock.acquire(timeout=WAIT_S)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_one_that_is_killed_with_a_lock_holds_up_nobody_else(kind: str, method: str) -> None:
    lock = getattr(get_context(method), kind)()
    note_shared_locks()
    for _ in range(2):
        assert in_child(lambda: take_and_die(lock)) == signal.SIGKILL
    assert lock.acquire(timeout=WAIT_S)
    lock.release()


def test_each_has_the_values_of_before_and_those_that_it_starts_share_them() -> None:
    event, entries = FORK.Event(), FORK.Semaphore(3)
    number, array, plain = FORK.Value("i", 7), FORK.Array("i", [1, 2]), FORK.RawValue("d", 0.5)
    event.set()
    entries.acquire()
    note_shared_locks()

    def change() -> None:
        with number.get_lock(), array.get_lock():
            number.value += 1
            array[1] = plain.value = 9
        event.clear()

    def work() -> None:
        assert (event.is_set(), entries.get_value(), number.value, list(array), plain.value) == (
            True,
            2,
            7,
            [1, 2],
            0.5,
        )
        other = FORK.Process(target=change)
        other.start()
        other.join()
        assert (event.is_set(), number.value, list(array), plain.value) == (False, 8, [1, 9], 9.0)
        # as a process that is spawned finds it
        copy = os.pread(number._obj._wrapper._state[0][0].fd, 4, number._obj._wrapper._state[0][1])
        assert copy == (8).to_bytes(4, "little")

    for _ in range(2):
        assert in_child(work) == 0
    assert (event.is_set(), number.value, list(array), plain.value) == (True, 7, [1, 2], 0.5)


def test_what_a_process_may_share_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    lock, number = FORK.Lock(), FORK.Value("i", 0)
    monkeypatch.setattr(shared_locks, "children", lambda: ["17"])
    note_shared_locks()

    def work() -> None:
        assert lock.acquire(timeout=WAIT_S)
        number.value = 1

    assert in_child(work) == 0
    assert not lock.acquire(timeout=WAIT_S)
    assert number.value == 1


def test_the_tracker_of_such_names_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = get_context("spawn").Lock()
    tracker: Any = multiprocessing.resource_tracker
    monkeypatch.setattr(shared_locks, "children", lambda: [str(tracker._resource_tracker._pid)])
    note_shared_locks()
    assert in_child(lambda: take_and_die(lock)) == signal.SIGKILL
    assert lock.acquire(timeout=WAIT_S)


def test_large_arrays_are_data_and_stay_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = FORK.RawArray("i", 1), FORK.RawArray("i", 3_000_000)
    monkeypatch.setattr(shared_locks, "_MOST_BYTES", 8_000_000)
    note_shared_locks()

    def work() -> None:
        small[0] = large[0] = 1

    assert in_child(work) == 0
    assert (small[0], large[0]) == (0, 1)
