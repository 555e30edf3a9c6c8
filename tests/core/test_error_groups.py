"""How errors are put together: in a replica, in the controller, and over a restart of it."""

import asyncio
import threading
from pathlib import Path

import pytest

from servd.controller.fact_store import renewal
from servd.observability import error_groups
from servd.observability.error_desk import WRITE_EVERY_S, ErrorDesk
from servd.observability.error_groups import (
    FAILURES_WAITING,
    GROUPS_KEPT,
    GROUPS_OF_REPLICA,
    IDS_KEPT,
    SAY_EVERY_S,
    ErrorBook,
    ErrorGroup,
    ErrorGroups,
    ErrorsReport,
)
from servd.observability.failure import Failure


def failure(number: int = 0, at: float = 0.0, *requests: str) -> Failure:
    return Failure(
        f"id{number}", "ValueError", f"a.py:{number} in f", "ValueError: a", f"trace {at}", "m", "/", at, requests
    )


class Replica:
    """Groups that report to a book, as often as wanted."""

    def __init__(self, book: ErrorBook, replica_id: str = "r1") -> None:
        self.groups, self.book, self.now = ErrorGroups(replica_id), book, 0.0
        self.reports: list[ErrorsReport] = []

    def report(self, *, arrives: bool = True) -> None:
        def send(report: ErrorsReport) -> bool:
            if arrives:
                self.reports.append(report)
                self.book.heard("app", "D", report)
            return arrives

        self.now += SAY_EVERY_S
        self.groups.say(send, self.now)


def counts(book: ErrorBook) -> dict[str, int]:
    return {kept.group.id: kept.group.count for kept in book.all()}


def test_what_a_group_tells() -> None:
    book = ErrorBook()
    first, second = Replica(book), Replica(book, "r2")
    for at in range(IDS_KEPT):
        first.groups.add(failure(1, at, f"a{at}"))
    second.groups.add(failure(1, 3.5, "b"))
    second.groups.add(failure(2, 4.5))
    first.report()
    second.report()
    other, group = (kept.group for kept in sorted(book.all(), key=lambda kept: kept.group.count))
    assert (other.id, other.count, other.requests) == ("id2", 1, ())
    assert (group.count, group.first_at, group.last_at, group.traceback) == (IDS_KEPT + 1, 0.0, 9.0, "trace 9")
    assert [request for _, request in group.requests] == ["a1", "a2", "a3", "b", "a4", "a5", "a6", "a7", "a8", "a9"]
    assert [kept.group.id for kept in book.all()] == ["id1", "id2"]
    assert book.get("id1") is not None
    assert book.get("id3") is None


def test_one_that_happened_before_the_first_one_is_counted_once() -> None:
    # two threads, or a clock that was set back
    book = ErrorBook()
    replica = Replica(book)
    replica.groups.add(failure(1, 5.0))
    replica.groups.add(failure(1, 6.0))
    replica.report()
    replica.groups.add(failure(1, 4.0))
    replica.report()
    assert counts(book) == {"id1": 3}


def test_reports_that_are_lost_or_come_twice_cost_nothing() -> None:
    book = ErrorBook()
    replica = Replica(book)
    replica.groups.add(failure(1))
    replica.report(arrives=False)
    assert not replica.groups.is_said
    replica.report()
    assert replica.groups.is_said
    replica.report()
    assert len(replica.reports) == 1
    replica.groups.forget_said()
    replica.report()
    book.heard("app", "D", replica.reports[0])
    assert (len(replica.reports), counts(book)) == (2, {"id1": 1})
    replica.groups.add(failure(1))
    replica.groups.add(failure(2))
    replica.report()
    assert counts(book) == {"id1": 2, "id2": 1}


def test_reports_are_not_too_frequent_but_for_the_last() -> None:
    replica = Replica(ErrorBook())
    replica.groups.add(failure(1))
    replica.report()
    replica.groups.add(failure(1))
    heard: list[ErrorsReport] = []
    replica.groups.say(lambda report: not heard.append(report), replica.now + SAY_EVERY_S / 2)
    assert not heard
    replica.groups.say(lambda report: not heard.append(report), replica.now, at_once=True)
    assert [group.count for group in heard[0].groups] == [2]


def test_an_error_in_the_midst_of_another_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector tells of a task that nobody asked, in the thread that is just counting or reporting."""
    replica = Replica(ErrorBook())
    collected = [failure(2), failure(1)]
    merged = error_groups._merged

    def collecting(old: ErrorGroup, new: ErrorGroup, count: int) -> ErrorGroup:
        if collected:
            replica.groups.add(collected.pop())
        return merged(old, new, count)

    def fail_and_report() -> None:
        for _ in range(3):
            replica.groups.add(failure(1))
        replica.report()
        replica.report()

    monkeypatch.setattr(error_groups, "_merged", collecting)
    thread = threading.Thread(target=fail_and_report, daemon=True)
    thread.start()
    thread.join(5.0)
    assert not thread.is_alive()
    assert (counts(replica.book), replica.groups.is_said) == ({"id1": 4, "id2": 1}, True)


def test_what_came_since_the_last_look_is_unsaid_and_bounded() -> None:
    replica = Replica(ErrorBook())
    for number in range(FAILURES_WAITING + 1):
        replica.groups.add(failure(number % 2))
    assert not replica.groups.is_said
    replica.report()
    assert (sum(counts(replica.book).values()), replica.groups.is_said) == (FAILURES_WAITING, True)


def test_both_are_bounded_and_keep_what_happened_last() -> None:
    book = ErrorBook()
    for start in range(0, GROUPS_KEPT + GROUPS_OF_REPLICA, GROUPS_OF_REPLICA):
        replica = Replica(book, f"r{start}")
        for number in range(start - 5, start + GROUPS_OF_REPLICA):
            replica.groups.add(failure(number, number))
        replica.report()
        assert len(replica.reports[0].groups) == GROUPS_OF_REPLICA
    assert len(book.all()) == GROUPS_KEPT
    assert book.all()[0].group.last_at == start + GROUPS_OF_REPLICA - 1


def test_a_group_that_a_replica_had_dropped_counts_on() -> None:
    book = ErrorBook()
    replica = Replica(book)
    for at in range(3):
        replica.groups.add(failure(1, at))
    replica.report()
    for number in range(2, GROUPS_OF_REPLICA + 2):
        replica.groups.add(failure(number, 5.0))
    for at in range(6, 10):
        replica.groups.add(failure(1, at))
    replica.report()
    assert counts(book)["id1"] == 7


@pytest.mark.parametrize("lives", [True, False])
def test_the_next_controller_counts_on(tmp_path: Path, lives: bool) -> None:
    path = str(tmp_path / "errors.state")
    desk = ErrorDesk(path, renewal)
    replica = Replica(desk.book)
    replica.groups.add(failure(1, 1.0, "a"))
    replica.report()
    asyncio.run(desk.tend({"r1"}, 0.0))
    after = ErrorDesk(path, renewal)
    assert after.book.all() == desk.book.all()
    asyncio.run(after.tend({"r1"} if lives else (), 0.0))
    replica = replica if lives else Replica(after.book)
    replica.book = after.book
    replica.groups.forget_said()
    replica.groups.add(failure(1, 2.0, "b"))
    replica.report()
    after.close()
    (kept,) = ErrorDesk(path, renewal).book.all()
    assert (kept.group.count, kept.group.requests) == (2, ((1.0, "a"), (2.0, "b")))
    assert kept.counted.keys() == {"r1"}
    assert Path(path).stat().st_mode & 0o777 == 0o600


def test_a_new_error_is_written_at_once_and_counts_now_and_then(tmp_path: Path) -> None:
    path = str(tmp_path / "errors.state")
    desk = ErrorDesk(path, renewal)
    replica = Replica(desk.book)

    def written(now: float, number: int) -> dict[str, int]:
        replica.groups.add(failure(number))
        replica.report()
        asyncio.run(desk.tend({"r1"}, now))
        return counts(ErrorDesk(path, renewal).book)

    assert written(0.0, 1) == {"id1": 1}
    assert written(WRITE_EVERY_S - 0.1, 1) == {"id1": 1}
    assert written(WRITE_EVERY_S, 1) == {"id1": 3}
    assert written(WRITE_EVERY_S + 1, 1) == {"id1": 3}
    assert written(WRITE_EVERY_S + 2, 2) == {"id1": 4, "id2": 1}
    assert written(WRITE_EVERY_S + 3, 2) == {"id1": 4, "id2": 1}
    desk.close()
    assert counts(ErrorDesk(path, renewal).book) == {"id1": 4, "id2": 2}


def test_a_disk_that_takes_nothing_and_a_file_that_is_damaged_cost_only_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = ErrorDesk(str(tmp_path / "gone" / "errors.state"), renewal)
    replica = Replica(desk.book)
    replica.groups.add(failure(1))
    replica.report()
    for now in (0.0, WRITE_EVERY_S):
        asyncio.run(desk.tend({"r1"}, now))
    assert [record.message.split()[0] for record in caplog.records] == ["errors_not_kept"]
    (tmp_path / "gone").mkdir()
    asyncio.run(desk.tend({"r1"}, 2 * WRITE_EVERY_S))
    assert len(ErrorDesk(str(tmp_path / "gone" / "errors.state"), renewal).book.all()) == 1
    damaged = tmp_path / "errors.state"
    damaged.write_bytes(b"protocol 1\n\xc1")
    assert ErrorDesk(str(damaged), renewal).book.all() == ()
