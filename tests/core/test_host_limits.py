"""Limits of the host: which errors come from them, what is told, and when it is tried again."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from servd.controller import snapshots
from servd.controller.plan import events
from servd.controller.plan.restarts import HOST_LIMIT_RETRY_S
from servd.controller.shown.status import instance_view
from servd.daemon import boot, start_check
from servd.daemon.start_check import LEAST_DESCRIPTORS, check_host, check_python
from servd.daemon.unix_sockets import bind_unix
from servd.exceptions import HostLimitError, ServdError, StateError, TransportError
from servd.ground import host_limits
from servd.ground.host_limits import (
    KNOWN_S,
    Deaths,
    count_descriptors_left,
    descriptor_limit,
    descriptors_left,
    host_limit_in,
    memory_bound,
    oom_kills,
    processes_left,
    told,
)
from servd.ground.pidfd import open_process, start_ticks
from servd.rest.problems import problem_of
from servd.wire.credentials import listener_of
from servd.wire.messages import FORK_SERVER, REPLICA, ProxyReport
from tests.core.build import (
    IDENTITY,
    World,
    a_goal,
    an_app,
    deployed,
    message_of,
    redeploy,
    some_settings,
    status_of,
    verbs,
)
from tests.descriptors import few_descriptors


def caused_by(number: int) -> TransportError:
    error = TransportError("cannot open a socket")
    error.__cause__ = OSError(number, os.strerror(number))
    return error


@pytest.mark.parametrize(
    ("error", "at_fork", "expected"),
    [
        (OSError(errno.EMFILE, "x"), False, "files and sockets open. Raise the limit (`ulimit -n`"),
        (OSError(errno.ENFILE, "x"), False, "fs.file-max"),
        (OSError(errno.ENOMEM, "x"), True, "no memory left"),
        (BlockingIOError(errno.EAGAIN, "x"), True, "no further process or thread"),
        (BlockingIOError(errno.EAGAIN, "x"), False, ""),
        (RuntimeError("can't start new thread"), False, "no further process or thread"),
        (RuntimeError("something else"), False, ""),
        (caused_by(errno.EMFILE), False, "`ulimit -n`"),
        (caused_by(errno.ENOENT), False, ""),
        (None, True, ""),
    ],
)
def test_an_error_is_known_by_the_limit_that_it_comes_from(
    error: BaseException | None, at_fork: bool, expected: str
) -> None:
    found = host_limit_in(error, at_fork=at_fork)
    assert expected in found
    assert bool(found) == bool(expected)


def test_what_is_told_names_the_error_and_the_limit() -> None:
    text = told(OSError(errno.EMFILE, "Too many open files"))
    assert text.startswith("[Errno 24] Too many open files: ")
    assert f" {descriptor_limit()} files " in text
    assert told(ValueError("x")) == "x"


def test_descriptors_that_are_left_are_counted() -> None:
    with few_descriptors(5):
        assert descriptors_left() == 5
    with few_descriptors(0):
        assert descriptors_left() == 0
    assert descriptors_left() > 5


@pytest.mark.parametrize("kernel_counts", [True, False])
def test_descriptors_are_counted_exactly_whatever_their_numbers(
    kernel_counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with few_descriptors(8):
        one, *others = [os.dup(0) for _ in range(4)]
        os.close(one)
        with monkeypatch.context() as patch:
            if not kernel_counts:
                patch.setattr(os, "stat", lambda _: SimpleNamespace(st_size=0))
            assert count_descriptors_left() == 5
        assert descriptors_left() > 5
        for fd in others:
            os.close(fd)


def test_processes_that_are_left_are_counted_where_something_bounds_them() -> None:
    left = processes_left()
    assert left is None or left >= 0


def test_without_a_descriptor_one_that_lives_is_not_taken_for_gone() -> None:
    own, gone = os.getpid(), 2**22 + 1
    ticks = start_ticks(own)
    for left in (0, 1):
        with few_descriptors(left), pytest.raises(OSError, match="Too many open files"):
            open_process(own, ticks)
    with few_descriptors(0):
        with pytest.raises(OSError, match="Too many open files"):
            start_ticks(own)
        assert open_process(gone, 1) is None


def test_without_a_descriptor_a_socket_is_not_bound_and_nobody_is_taken_for_absent(tmp_path: Path) -> None:
    with few_descriptors(0):
        with pytest.raises(StateError, match="ulimit -n"):
            bind_unix(f"{tmp_path}/s")
        assert listener_of(f"{tmp_path}/s") == 0


def test_a_document_that_no_descriptor_is_left_for_is_answered_507_with_the_limit(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "app.py").write_text("x = 1")
    code_dir = tmp_path / "state" / "code"
    code_dir.mkdir(parents=True, mode=0o700)
    for left in range(4):
        # with a few more of them it gets further, to another file
        with few_descriptors(left):
            try:
                snapshots.snapshot(str(source), (), str(code_dir), "application", "")
                answer = None
            except Exception as error:
                answer = problem_of(error)
        if answer is not None:
            assert answer.status_code == 507, answer.body
            assert b"ulimit -n" in answer.body, left
    assert problem_of(RuntimeError("can't start new thread")).status_code == 507
    assert problem_of(RuntimeError("a bug")).status_code == 500


def test_a_start_that_cannot_fit_says_so_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    check_host(proxies=1)
    monkeypatch.setattr(start_check, "descriptors_allowed", lambda: LEAST_DESCRIPTORS - 1)
    with pytest.raises(
        HostLimitError, match=f"may have {LEAST_DESCRIPTORS - 1} files and sockets open here.*{LEAST_DESCRIPTORS}"
    ):
        check_host(proxies=1)
    monkeypatch.setattr(start_check, "descriptors_allowed", lambda: LEAST_DESCRIPTORS)
    monkeypatch.setattr(start_check, "processes_left", lambda: 15)
    with pytest.raises(HostLimitError, match=r"15 more processes and threads .* 2 proxies needs 20"):
        check_host(proxies=2)


def test_a_python_without_its_lock_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    check_python()
    monkeypatch.setattr("sysconfig.get_config_var", {"Py_GIL_DISABLED": 1}.get)
    with pytest.raises(ServdError, match=r"free-threaded build .* the usual build"):
        check_python()
    # first of all: nothing is made for a daemon that cannot be
    with pytest.raises(ServdError, match="free-threaded"):
        boot._started(some_settings(state_dir="/proc/nowhere"), None)


def test_a_replica_that_the_host_has_no_room_for_is_tried_again_soon_however_often_it_failed() -> None:
    world = deployed(World(a_goal(an_app()), proxies=0), num_replicas=1)
    [replica] = world.replicas()
    plan = world.turn(events.Exited(REPLICA, replica.replica_id, -9))
    for _ in range(20):
        assert verbs(plan) == ["StartReplica"]
        [started] = world.replicas()
        text = "cannot fork: no further process"
        assert verbs(world.turn(events.StartFailed(REPLICA, started.replica_id, text, is_host_limit=True))) == []
        assert world.wake_at - world.now == HOST_LIMIT_RETRY_S
        world.now = world.wake_at
        plan = world.turn()
    assert "The host gives no more. Last error:\ncannot fork: no further process" in message_of(world)
    assert "wrong code" not in message_of(world)
    world.turn(*(world.running(replica.start.goal) for replica in world.replicas()))
    assert message_of(world) == ""


def test_a_replica_that_died_at_its_start_of_a_limit_names_it() -> None:
    world = deployed(World(a_goal(an_app()), proxies=0), num_replicas=1)
    redeploy(world, "c2").turn()
    plan = world.turn(*(e for a in world.log if verbs([a]) == ["StartForkServer"] for e in world.effects(a)))
    [start] = [action for action in plan.actions if verbs([action]) == ["StartReplica"]]
    world.turn(events.Exited(REPLICA, start.start.replica_id, -6, host_limit="no further thread"))  # type: ignore[union-attr]
    assert "exited with signal 6 before it was ready: no further thread" in message_of(world)
    assert world.wake_at - world.now == HOST_LIMIT_RETRY_S


def test_a_build_that_the_host_has_no_room_for_ends_with_the_reason() -> None:
    world = World(a_goal(an_app()), open_http=False)
    plan = world.turn()
    for _ in range(3):
        [start] = [action for action in plan.actions if verbs([action]) == ["StartForkServer"]]
        error = "could not be started: no further process"
        plan = world.turn(events.StartFailed(FORK_SERVER, start.fact.fork_server_id, error, is_host_limit=True))  # type: ignore[union-attr]
    assert status_of(world) == "DEPLOY_FAILED"
    assert "its build process could not be started: no further process" in world.observed.applications["app"].message


def test_the_status_says_which_proxies_let_clients_wait_and_why() -> None:
    world = World(a_goal(), proxies=2)
    world.run()

    def notice() -> str:
        return instance_view(
            world.goal, world.observed, world.settings, IDENTITY, version=1, now=0.0, notice="the disk is full"
        ).notice

    assert notice() == "the disk is full"
    for proxy in list(world.observed.proxies):
        world.turn(ProxyReport(proxy, listening=True, trouble="no descriptor"))
    assert notice() == "the disk is full\nproxies 0, 1: no descriptor"
    first = next(iter(world.observed.proxies))
    world.turn(ProxyReport(first, listening=True))
    assert notice() == "the disk is full\nproxy 1: no descriptor"


class Kernel:
    """Kills for want of memory, and tells the time."""

    def __init__(self) -> None:
        self.count, self.second = 7, 100.0

    def now(self) -> float:
        return self.second

    def wall_time(self) -> float:
        return self.second

    def kills(self) -> int:
        return self.count


def test_who_was_killed_for_want_of_memory_is_told_from_who_was_killed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    monkeypatch.setattr(host_limits, "memory_bound", lambda: 300 * 2**20)
    found = Deaths(kernel, kernel.kills)
    assert found.cause_of(-9) == "", "what was killed before is nobody's of ours"
    kernel.count += 2
    assert found.cause_of(-11) == found.cause_of(1) == found.cause_of(None) == ""
    text = "the kernel killed it, for the control group (300 MiB) or the host had no memory left"
    assert [found.cause_of(-9) for _ in range(3)] == [text, text, ""]
    kernel.count += 1
    found.look()
    kernel.second += KNOWN_S + 1
    assert found.cause_of(-9) == "", "a process that is none of ours"
    monkeypatch.setattr(host_limits, "memory_bound", lambda: None)
    kernel.count += 1
    found.look()
    kernel.second += KNOWN_S - 1
    assert found.cause_of(-9) == "the kernel killed it, for the host had no memory left"


def test_why_a_replica_was_killed_is_in_what_is_told_of_its_death() -> None:
    world = deployed()
    [replica] = world.replicas()
    world.now += 3600.0
    world.turn(events.Exited(REPLICA, replica.replica_id, -9, cause="the kernel killed it"))
    assert f"replica {replica.replica_id} exited with signal 9 (the kernel killed it). It stays" in message_of(world)
    [fact] = world.observed.deployments.values()
    assert fact.dead[-1].reason == "exited with signal 9 (the kernel killed it)"


@pytest.mark.parametrize(
    ("files", "kills", "bound"),
    [
        ({"inner/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n", "inner/memory.max": "max\n"}, 2, None),
        ({"inner/memory.max": "1000\n", "memory.max": "900\n", "memory.events": "oom_kill 5\n"}, 5, 900),
        (
            {
                "inner/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
                "inner/memory.limit_in_bytes": "9223372036854771712\n",
            },
            4,
            None,
        ),
    ],
)
def test_control_groups_of_both_kinds_tell_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], kills: int, bound: int | None
) -> None:
    (tmp_path / "inner").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(host_limits, "_groups_of", lambda _: [str(tmp_path / "inner"), str(tmp_path)])
    assert (oom_kills(), memory_bound()) == (kills, bound)


def test_without_control_groups_the_host_tells_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_limits, "_groups_of", lambda _: [])
    assert oom_kills() >= 0
    assert memory_bound() is None
