"""What a controller leaves to the next one, however it ends."""

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from servd.controller.fact_store import FactStore
from servd.controller.plan.goal import Goal
from servd.daemon import keepsake
from servd.daemon.keepsake import Keepsake
from servd.wire.messages import ProxyGoal

A, B, C = ("p", "a"), ("p", "b"), ("p", "c")


def same_memory(one: Keepsake) -> Keepsake:
    """As the next process has it."""
    return Keepsake(one._fds)


def left(one: Keepsake) -> dict[tuple[str, str], bytes]:
    return same_memory(one).load()


def test_values_come_back_in_order_and_forgotten_ones_do_not() -> None:
    kept = Keepsake()
    assert kept.load() == {}
    kept.save({A: b"1", B: b"2", C: b"3"})
    kept.save({A: b"4", B: None})
    again = same_memory(kept)
    assert list(again.load().items()) == [(A, b"4"), (C, b"3")]
    again.save({B: b"5"})
    assert list(left(kept).items()) == [(A, b"4"), (C, b"3"), (B, b"5")]
    kept.close()


def test_it_grows_with_what_it_holds_and_not_with_what_was_written() -> None:
    kept = Keepsake()
    for number in range(200):
        kept.save({A: bytes([number]) * 50_000, B: b"%d" % number})
    assert left(kept) == {A: bytes([199]) * 50_000, B: b"199"}
    assert sum(os.fstat(fd).st_size for fd in kept._fds) < 2 * 2**20
    kept.close()


def test_what_was_not_written_to_the_end_does_not_count() -> None:
    """A controller is killed at any byte of what it writes: all changes of one call hold, or none."""
    whole = keepsake._record({A: b"new", B: b"new", C: None})
    for size in range(len(whole) + 1):
        kept = Keepsake()
        kept.save({A: b"old", B: b"old", C: b"old"})
        os.pwrite(kept._fds[kept._current], whole[:size], kept._end)
        again = same_memory(kept)
        is_new = size == len(whole)
        assert again.load() == ({A: b"new", B: b"new"} if is_new else {A: b"old", B: b"old", C: b"old"})
        again.save({A: b"after"})
        assert left(kept)[A] == b"after"
        kept.close()


def test_a_kill_while_all_is_written_anew_leaves_the_old() -> None:
    kept = Keepsake()
    kept.save({A: b"1"})
    other = kept._fds[1 - kept._current]
    whole = (9).to_bytes(8, "big") + keepsake._record({A: b"2"})
    for size in range(len(whole)):
        os.ftruncate(other, 0)
        os.pwrite(other, whole[:size], 0)
        assert left(kept) == {A: b"1"}
    os.pwrite(other, whole, 0)
    assert left(kept) == {A: b"2"}
    kept.close()


def test_without_memory_nothing_old_is_left_and_all_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Keepsake()
    kept.save({A: b"1", B: b"1"})

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no memory")

    with monkeypatch.context() as host:
        host.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="no memory"):
            kept.save({A: b"2"})
        assert left(kept) == {}
    kept.save({C: b"3"})
    assert left(kept) == {A: b"2", B: b"1", C: b"3"}
    kept.close()


def _write_and_die(kept: Keepsake) -> None:
    kept.load()
    kept.save({B: b"2"})
    os._exit(9)


@pytest.mark.slow
def test_a_process_leaves_it_to_the_next() -> None:
    kept = Keepsake()
    kept.save({A: b"1"})
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(kept,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert left(kept) == {A: b"1", B: b"2"}
    kept.close()


@pytest.mark.parametrize("damage", ["none", "removed", "emptied", "other rows", "text"])
def test_facts_do_not_depend_on_their_file(tmp_path: Path, damage: str) -> None:
    kept, path = Keepsake(), tmp_path / "facts.db"
    store = FactStore(str(tmp_path), kept)
    assert (store.load(), store.goal()) == ([], None)
    store.save({A: ProxyGoal("a"), B: ProxyGoal("b")})
    store.save_goal(Goal(3, running=True))
    store.save({A: None})
    store.close()
    if damage == "removed":
        path.unlink()
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("these are no facts" * 1000)
    elif damage == "other rows":
        stranger = FactStore(str(tmp_path))
        stranger.save({C: ProxyGoal("c"), B: ProxyGoal("b", drain=True)})
        stranger.close()
    again = FactStore(str(tmp_path), same_memory(kept))
    assert (again.load(), again.goal()) == ([ProxyGoal("b")], Goal(3, running=True))
    again.save({})
    again.close()
    without = FactStore(str(tmp_path))
    assert without.load() == [ProxyGoal("b")], "the file says the same again"
    without.close()
    kept.close()


def test_facts_of_a_daemon_that_kept_none_are_read_from_their_file_and_kept(tmp_path: Path) -> None:
    old = FactStore(str(tmp_path))
    old.save({A: ProxyGoal("a")})
    old.close()
    kept = Keepsake()
    store = FactStore(str(tmp_path), kept)
    assert store.load() == [ProxyGoal("a")]
    store.close()
    (tmp_path / "facts.db").unlink()
    again = FactStore(str(tmp_path), same_memory(kept))
    assert again.load() == [ProxyGoal("a")]
    again.close()
    kept.close()
