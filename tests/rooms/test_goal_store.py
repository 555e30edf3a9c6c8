"""The goal store: what is accepted stays, what is damaged is refused."""

import contextlib
import errno
import os
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from servd.controller import fact_store, goal_file, history
from servd.controller.fact_store import FactStore
from servd.controller.goal_store import GoalStore
from servd.controller.plan import change
from servd.controller.plan.goal import ApplicationGoal, Goal, HttpGoal
from servd.daemon.state_lock import lock_state_dir, running_pid
from servd.documents.control_plane import ApplicationDocument
from servd.documents.sent import HttpWish
from servd.exceptions import AlreadyRunningError, GoalNotSavedError, InvariantError, StateError, UnknownNameError
from servd.ground.states import DeployMode, RevisionOutcome
from servd.wire.messages import ProxyGoal

RAN, FAILED, UNDECIDED = RevisionOutcome.RAN, RevisionOutcome.FAILED, RevisionOutcome.UNDECIDED


def a_goal(revision: int, filling: str = "x") -> Goal:
    document = ApplicationDocument(
        "fruit", "m:app", {"list": [1, "two"]}, deployments=({"name": "D", "user_config": {"k": [filling]}},),
        stored={"import_path": "m:app"}, driver_path=("/a",),
    )  # fmt: skip
    app = ApplicationGoal(document, deploy_id=revision, deployed_at=1.5, snapshots={"dir": "/s"}, scale={"D": 2})
    return Goal(revision, True, DeployMode.MULTI_APP, HttpGoal("127.0.0.1", 8000), (app,))


def filled(directory: Path, revisions: int = 30) -> Path:
    """A store that was in use and closed; gives its file."""
    store = GoalStore.open(str(directory))
    for revision in range(1, revisions + 1):
        store.save(a_goal(revision, "y" * 500), "test", float(revision))
    store.close()
    return directory / "goal.db"


def latest_in(directory: Path) -> Goal:
    """The goal in force of a store that nobody has open."""
    with contextlib.closing(GoalStore.open(str(directory))) as store:
        return store.latest()


def test_first_start_is_an_empty_goal(tmp_path: Path) -> None:
    store = GoalStore.open(str(tmp_path))
    assert store.latest() == Goal()
    store.close()


def test_the_goal_comes_back_with_its_types(tmp_path: Path) -> None:
    store = GoalStore.open(str(tmp_path))
    store.save(a_goal(1), "PUT", 12.0)
    store.close()
    again = GoalStore.open(str(tmp_path))
    assert again.latest() == a_goal(1)
    assert again.latest().mode is DeployMode.MULTI_APP
    assert [(r.revision, r.at, r.origin) for r in again.revisions()] == [(1, 12.0, "PUT")]
    again.close()


def test_every_revision_can_be_read_again(tmp_path: Path) -> None:
    store = GoalStore.open(str(tmp_path))
    asked = HttpWish(port=8000)
    store.save(replace(a_goal(1, "first"), asked=asked), "PUT", 1.0)
    store.save(a_goal(2, "second"), "PUT", 2.0)
    assert store.goal_of(1) == replace(a_goal(1, "first"), asked=asked)
    assert store.goal_of(2) == store.latest()
    assert store.goal_of(3) is None
    store.close()


def test_counts_of_scale_stand_beside_the_latest_revision(tmp_path: Path) -> None:
    store = GoalStore.open(str(tmp_path))
    store.save(a_goal(1), "PUT", 1.0)
    scaled = change.scale(a_goal(1), "fruit", "D", 9)
    store.save_scale(scaled)
    store.close()
    store = GoalStore.open(str(tmp_path))
    assert store.latest() == scaled
    assert [row.revision for row in store.revisions()] == [1]
    assert store.goal_of(1) == a_goal(1)
    store.save(a_goal(2), "PUT", 2.0)
    store.close()
    store = GoalStore.open(str(tmp_path))
    assert store.latest() == a_goal(2)
    store.save_scale(change.scale(a_goal(2), "fruit", "D", 9))
    store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "goal.db")) as connection, connection:
        connection.execute("UPDATE pins SET scale = replace(scale, '9', '8') WHERE revision = 2")
    with pytest.raises(StateError, match="replica counts"):
        GoalStore.open(str(tmp_path))


def test_a_skipped_revision_is_a_bug(tmp_path: Path) -> None:
    store = GoalStore.open(str(tmp_path))
    with pytest.raises(InvariantError):
        store.save(a_goal(2), "", 0.0)
    store.close()


def test_a_full_store_refuses_and_keeps_the_goal(tmp_path: Path) -> None:
    store = GoalStore.open(str(tmp_path), max_pages=4)
    store.save(a_goal(1), "", 0.0)
    with pytest.raises(GoalNotSavedError, match=r"goal\.db.*full.*revision 1") as refused:
        store.save(a_goal(2, "z" * 50_000), "", 0.0)
    assert refused.value.status_code == 507
    assert store.latest() == a_goal(1)
    store.close()
    again = GoalStore.open(str(tmp_path))
    assert again.latest() == a_goal(1)
    again.save(a_goal(2), "", 0.0)
    again.close()


def break_header(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4096:4196] = b"\xff" * 100
    file.write_bytes(data)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def replace_by_text(file: Path) -> None:
    file.write_text("this is a text file\n" * 500)


def change_inside_a_row(file: Path) -> None:
    data = file.read_bytes()
    at = data.index(b"y" * 400)
    file.write_bytes(data[:at] + b"q" * 64 + data[at + 64 :])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def remove(file: Path) -> None:
    file.unlink()


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def lose_a_row(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM revisions WHERE revision = 7")
    connection.close()


def come_from_the_future(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        break_header, halve, replace_by_text, change_inside_a_row, empty, remove, become_a_folder,
        lose_a_row, come_from_the_future,
    ],
)  # fmt: skip
def test_damage_is_refused_with_the_file_and_a_way_out(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(filled(tmp_path))
    with pytest.raises(StateError, match=r"goal\.db cannot be used: .*goal\.\* away"):
        GoalStore.open(str(tmp_path))


@pytest.mark.parametrize("successor", [None, b"", b"other"])
def test_a_store_that_was_deleted_or_replaced_refuses_and_takes_on_once_it_is_back(
    tmp_path: Path, successor: bytes | None
) -> None:
    store = GoalStore.open(str(tmp_path))
    store.save(a_goal(1), "PUT", 1.0)
    path = tmp_path / "goal.db"
    path.rename(tmp_path / "kept")
    if successor is not None:
        path.write_bytes(successor)
    with pytest.raises(GoalNotSavedError, match="deleted or replaced"):
        store.save(a_goal(2), "PUT", 2.0)
    with pytest.raises(GoalNotSavedError, match="deleted or replaced"):
        store.save_scale(a_goal(1))
    (tmp_path / "kept").rename(path)
    store.save(a_goal(2), "PUT", 2.0)
    store.close()
    assert latest_in(tmp_path) == a_goal(2)


def test_a_lost_write_ahead_log_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    store = GoalStore.open(str(tmp_path))
    store.save(a_goal(1), "", 0.0)
    copy = tmp_path / "copy"
    copy.mkdir()
    # as after a crash of the machine, without the log
    for name in ("goal.db", "goal.created"):
        shutil.copy(tmp_path / name, copy / name)
    store.close()
    again = GoalStore.open(str(copy))
    assert again.latest() == a_goal(1)
    again.close()


def test_moving_a_damaged_store_away_starts_anew(tmp_path: Path) -> None:
    empty(filled(tmp_path, 1))
    for file in tmp_path.glob("goal.*"):
        file.unlink()
    store = GoalStore.open(str(tmp_path))
    assert store.latest() == Goal()
    store.close()


def test_facts_come_back_in_order_and_forgotten_ones_do_not(tmp_path: Path) -> None:
    store = FactStore(str(tmp_path))
    store.save({("p", "2"): ProxyGoal("2"), ("p", "1"): ProxyGoal("1"), ("p", "3"): ProxyGoal("3")})
    store.save({("p", "2"): ProxyGoal("2", drain=True), ("p", "3"): None})
    store.close()
    again = FactStore(str(tmp_path))
    assert again.load() == [ProxyGoal("2", drain=True), ProxyGoal("1")]
    again.close()


def test_only_the_owner_may_read_what_is_stored(tmp_path: Path) -> None:
    old_mask = os.umask(0)
    try:
        goal, facts = GoalStore.open(str(tmp_path)), FactStore(str(tmp_path))
        goal.save(a_goal(1), "test", 1.0)
        facts.save({("proxy", "p"): ProxyGoal("p")})
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        goal.close()
        facts.close()
    finally:
        os.umask(old_mask)
    assert {"goal.created", "goal.db", "facts.db", "facts.db-wal"} <= modes.keys()
    assert set(modes.values()) == {0o600}, modes


def test_outcomes_stand_beside_the_revisions(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    store = GoalStore.open(str(tmp_path))
    # a store of a version that kept none
    assert [row.outcome.value for row in store.revisions()] == ["undecided"] * 3
    store.save_outcome(1, RevisionOutcome.RAN)
    store.save_outcome(2, RevisionOutcome.FAILED)
    store.close()
    again = GoalStore.open(str(tmp_path))
    assert [row.outcome.value for row in again.revisions()] == ["ran", "failed", "undecided"]
    (tmp_path / "goal.db").unlink()
    with pytest.raises(GoalNotSavedError):
        again.save_outcome(3, RevisionOutcome.RAN)
    again.close()


def a_history(directory: Path, *rows: tuple[str, RevisionOutcome]) -> GoalStore:
    """A store with these revisions: (filling, outcome)."""
    store = GoalStore.open(str(directory))
    for number, (filling, outcome) in enumerate(rows, 1):
        goal = a_goal(number, filling) if filling else Goal(number)
        applications = tuple(replace(app, snapshots={}) for app in goal.applications)
        store.save(replace(goal, applications=applications), "test", float(number))
        store.save_outcome(number, outcome)
    return store


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((), None),
        ((("a", RAN),), None),
        ((("a", RAN), ("b", RAN)), 1),
        ((("a", RAN), ("b", FAILED)), 1),
        ((("a", RAN), ("b", FAILED), ("c", FAILED), ("d", UNDECIDED)), 1),
        ((("a", FAILED), ("b", FAILED)), None),
        ((("a", UNDECIDED), ("b", UNDECIDED)), None),
        # gone back to the first already: the next one back is the second, not the failure between
        ((("a", RAN), ("b", RAN), ("c", FAILED), ("b", RAN)), 1),
        ((("a", RAN), ("b", FAILED), ("a", RAN)), None),
        # emptied in between: there is nothing to serve in that
        ((("a", RAN), ("", UNDECIDED), ("b", FAILED)), 1),
    ],
)
def test_the_last_revision_that_ran(
    tmp_path: Path, rows: tuple[tuple[str, RevisionOutcome], ...], expected: int | None
) -> None:
    store = a_history(tmp_path, *rows)
    assert history.last_that_ran(store, str(tmp_path / "code")) == expected
    store.close()


def test_a_revision_whose_code_is_gone_is_not_gone_back_to(tmp_path: Path) -> None:
    store = GoalStore.open(str(tmp_path))
    for number in (1, 2, 3):
        code = tmp_path / f"code{number}"
        code.mkdir()
        [app] = a_goal(number).applications
        store.save(replace(a_goal(number), applications=(replace(app, snapshots={"dir": str(code)}),)), "", 0.0)
        store.save_outcome(number, RAN)
    assert history.last_that_ran(store, str(tmp_path)) == 2
    (tmp_path / "code2").rmdir()
    assert history.last_that_ran(store, str(tmp_path)) == 1
    store.close()


def test_facts_outlive_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "sockets"
    store = FactStore(str(home))
    assert store.load() == []
    store.save({("p", "1"): ProxyGoal("1"), ("p", "2"): ProxyGoal("2")})
    home.mkdir()
    store.save({("p", "2"): None})
    home.rename(tmp_path / "away")
    home.mkdir()
    # as the controller does every second
    store.save({})
    store.close()
    again = FactStore(str(home))
    assert again.load() == [ProxyGoal("1")]
    again.close()


def test_a_disk_that_is_read_only_no_longer_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 1)

    def read_only(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)

    with monkeypatch.context() as disk:
        disk.setattr(goal_file, "connect", read_only)
        store = GoalStore.open(str(tmp_path))
        with pytest.raises(GoalNotSavedError, match="readonly"):
            store.save(a_goal(2), "PUT", 2.0)
    store.save(a_goal(2), "PUT", 2.0)
    store.close()
    assert latest_in(tmp_path) == a_goal(2)


def test_facts_are_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FactStore(str(tmp_path))
    store.save({("p", "1"): ProxyGoal("1")})

    def refused(path: str) -> sqlite3.Connection:
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(fact_store, "_open", refused)
    again = FactStore(str(tmp_path))
    assert again.load() == [ProxyGoal("1")]
    again.close()
    store.close()


def lose_all(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def an_older_one(path: Path) -> None:
    lose_all(path)
    filled(path.parent, 2)


LOSSES = [lose_all, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_text("none"), an_older_one]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_controller_that_finds_no_store_goes_on_with_the_goal_that_its_daemon_knows(
    tmp_path: Path, loss: Callable[[Path], None]
) -> None:
    home, away = tmp_path / "state", tmp_path / "away"
    home.mkdir()
    path = filled(home, 3)
    known = a_goal(3, "y" * 500)
    shutil.copytree(home, away)
    loss(path)
    store = GoalStore.open(str(home), known=known)
    assert store.latest() == known
    assert [row.revision for row in store.revisions()] == [3]
    assert history.goal_of(store, 3) == known
    with pytest.raises(UnknownNameError, match="only 3 is known"):
        history.goal_of(store, 1)
    for save in (lambda: store.save(a_goal(4), "PUT", 4.0), lambda: store.save_outcome(3, RAN)):
        with pytest.raises(GoalNotSavedError, match=r"goal\.db cannot be used: .*\(revision 3\) goes on.*servd config"):
            save()
    store.look_again()
    assert store.trouble()
    # somebody puts it back
    shutil.rmtree(home)
    away.rename(home)
    store.look_again()
    assert store.trouble() == ""
    store.save(a_goal(4), "PUT", 4.0)
    assert [row.revision for row in store.revisions()] == [1, 2, 3, 4]
    store.close()
    assert latest_in(home) == a_goal(4)


def test_another_goal_in_its_place_is_not_obeyed(tmp_path: Path) -> None:
    path = filled(tmp_path, 3)
    lose_all(path)
    store = GoalStore.open(str(tmp_path), known=a_goal(3))
    stranger = GoalStore.open(str(tmp_path))
    for revision in range(1, 6):
        stranger.save(a_goal(revision, "of somebody else"), "", 0.0)
    stranger.close()
    with pytest.raises(GoalNotSavedError, match=r"it holds another goal \(revision 5\)"):
        store.save(a_goal(4), "PUT", 4.0)
    assert store.latest() == a_goal(3)
    store.close()


@pytest.mark.parametrize("known", [None, Goal(), a_goal(2), a_goal(3, "z")])
def test_what_is_on_disk_wins_over_what_is_not_newer(tmp_path: Path, known: Goal | None) -> None:
    """A controller may have been killed between the two: on disk first, then in the daemon's memory."""
    filled(tmp_path, 3)
    store = GoalStore.open(str(tmp_path), known=known)
    assert store.latest() == a_goal(3, "y" * 500)
    assert store.trouble() == ""
    store.close()


def test_a_daemon_without_a_goal_may_make_a_store(tmp_path: Path) -> None:
    store = GoalStore.open(str(tmp_path), known=Goal())
    assert store.latest() == Goal()
    store.save(a_goal(1), "PUT", 1.0)
    store.close()


def test_a_daemon_without_a_goal_makes_a_store_as_soon_as_it_can(tmp_path: Path) -> None:
    home = tmp_path / "state"
    store = GoalStore.open(str(home), known=Goal())
    assert (store.latest(), store.revisions()) == (Goal(), [])
    with pytest.raises(GoalNotSavedError, match="cannot create the goal store"):
        store.save(a_goal(1), "PUT", 1.0)
    home.mkdir()
    store.save(a_goal(1), "PUT", 1.0)
    store.close()
    assert latest_in(home) == a_goal(1)


def test_what_a_killed_controller_had_saved_and_not_told_is_in_the_audit_trail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, 3)
    with contextlib.closing(GoalStore.open(str(tmp_path))) as store, caplog.at_level("INFO"):
        history.tell_since(store, 1)
        assert caplog.messages == [f"audit revision={n} previous={n - 1} origin=test" for n in (2, 3)]
        history.tell_since(store, 3)
        assert len(caplog.messages) == 2


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file of this process grows, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_daemon_that_starts_without_room_serves_what_was_accepted(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    with no_room():
        lock, _ = lock_state_dir(str(tmp_path))
        store = GoalStore.open(str(tmp_path))
        accepted = store.latest()
        for _ in range(2):
            with pytest.raises(GoalNotSavedError, match="goes on"):
                store.save(a_goal(2), "PUT", 2.0)
            assert [row.revision for row in store.revisions()] == [1]
    assert accepted == a_goal(1, "y" * 500)
    store.save(a_goal(2), "PUT", 2.0)
    store.close()
    assert latest_in(tmp_path) == a_goal(2)
    os.close(lock)


def test_a_pid_stands_over_a_longer_one_before(tmp_path: Path) -> None:
    (tmp_path / "daemon.lock").write_text("999999999")
    lock, was_unclean = lock_state_dir(str(tmp_path))
    assert was_unclean
    assert running_pid(str(tmp_path)) == os.getpid()
    with pytest.raises(AlreadyRunningError, match=str(os.getpid())):
        lock_state_dir(str(tmp_path))
    os.close(lock)


def test_nobody_is_told_to_move_a_store_away_that_only_lacks_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 1)
    monkeypatch.setattr(goal_file, "trouble_of", lambda what, place: f"the {what} {place} is full")
    monkeypatch.setattr(goal_file, "_connected", lambda _: sqlite3.connect(tmp_path))
    with pytest.raises(StateError, match=r"cannot be opened: .* is full. Change that and start again") as refusal:
        GoalStore.open(str(tmp_path))
    assert "away" not in str(refusal.value)


def test_a_disk_that_gives_errors_is_a_store_that_is_lost_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 1)

    def exists(path: Path) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    known = a_goal(1, "y" * 500)
    with monkeypatch.context() as disk:
        disk.setattr(Path, "exists", exists)
        store = GoalStore.open(str(tmp_path), known=known)
        assert (store.latest(), store.is_stand_in) == (known, True)
        assert "Input/output error" in store.trouble()
        store._looked_at = None
        store.look_again()
        assert store.is_stand_in
        with pytest.raises(StateError, match="Input/output error"):
            GoalStore.open(str(tmp_path))
    store._looked_at = None
    store.look_again()
    assert not store.is_stand_in
    store.close()
