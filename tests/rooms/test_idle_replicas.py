"""A replica that has nothing to do sleeps: its warden, its journal and its caller wake up when something begins."""

import asyncio
import contextlib
import dataclasses
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from servd.calls.request_context import RequestContext
from servd.ground import settings
from servd.observability import figures
from servd.observability.figures import FiguresReport
from servd.observability.journal import Journal
from servd.replica import warden as module
from servd.replica.warden import Warden
from servd.wire.messages import CallerReport, MetricFamily, ReplicaGoal, ReplicaReport, Routing
from tests.fakes import a_caller, wait_until
from tests.rooms.replica_room import Line, Room


class Ward:
    """What a replica's main thread has; counts are set by the test."""

    is_wanted = False
    can_end_early = False

    def __init__(self) -> None:
        self.ongoing = 0
        self.ended = 0
        self.line: dict[str, int] = {}
        self.goals: list[ReplicaGoal] = []
        self.is_gone = False

    def queued(self) -> dict[str, int]:
        return self.line

    def metrics(self) -> list[MetricFamily]:
        return []

    def requests(self) -> tuple[int | None, int, tuple[int, ...], int]:
        return self.ended, 0, (self.ended,), 0

    def set_goal(self, goal: ReplicaGoal) -> None:
        self.goals.append(goal)

    def apply_routing(self, routing: Routing) -> None:
        pass

    def occupied(self) -> None:
        return None

    def hold(self, is_held: bool) -> None:
        pass

    def address_is_gone(self) -> None:
        self.is_gone = True

    def lifetime_ended(self) -> None:
        pass


class Idle:
    """A warden that runs, with the test in the controller's place, and looks only when it is roused."""

    def __init__(self, warden: Warden, ward: Ward, line: Line) -> None:
        self.warden, self.ward, self.line = warden, ward, line

    async def rests(self) -> None:
        await wait_until(lambda: self.warden._is_resting)


@pytest.fixture
async def idle(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Idle]:
    monkeypatch.setattr(module, "IDLE_PERIOD_S", 3600.0)
    monkeypatch.setattr(figures, "SAY_EVERY_S", 0.02)
    with tempfile.TemporaryDirectory(prefix="servd-") as home:
        room = Room(Path(home))
        room.socket_dir.chmod(0o700)
        server = await asyncio.start_unix_server(room.serve_line, settings.control_socket(str(room.socket_dir)))
        start = room.start_of("D", report_period_s=0.02)
        ward = Ward()
        warden = Warden(start, asyncio.get_running_loop(), ward, room.lifetime_read)
        warden._thread = threading.Thread(target=serve, args=(warden,))
        warden.start()
        warden.report(phase="running", applied="v1")
        await room.report(start.replica_id, lambda report: report.phase == "running")
        yield Idle(warden, ward, room.replicas[start.replica_id])
        warden._in_loop(end_tasks)
        await asyncio.to_thread(warden._thread.join)
        # only now: it would take the end of this pipe for the daemon's, and end the process
        room.hellos.clear()  # it is this very process that said Hello
        room.close()
        server.close()


def serve(warden: Warden) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        warden._serve()


def end_tasks() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


async def test_a_request_rouses_the_warden_and_its_end_is_told(idle: Idle) -> None:
    await idle.rests()
    idle.ward.ongoing = 1
    idle.warden.rouse()
    await idle.line.next(ReplicaReport, lambda report: report.ongoing == 1)
    await wait_until(lambda: not idle.warden._is_resting)
    idle.ward.ongoing = 0
    await idle.line.next(ReplicaReport, lambda report: report.ongoing == 0)
    await idle.rests()


async def test_requests_that_ended_are_told_and_then_it_rests(idle: Idle) -> None:
    await idle.rests()
    idle.ward.ended = 3
    idle.warden.rouse()
    told = await idle.line.next(FiguresReport, lambda report: report.requests == 3)
    assert told.latencies == (3,)
    assert told.memory_bytes > 0
    assert told.descriptors > 0
    assert told.threads >= 2
    await wait_until(lambda: idle.warden._is_resting and not idle.warden._figures._has_looks)


async def test_what_begins_and_ends_while_it_looks_once_more_is_told_too(
    idle: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await idle.rests()
    await wait_until(lambda: not idle.warden._figures._has_looks)
    say = idle.warden._figures.say

    def say_and_end(send: Any, now: float, *, at_once: bool = False) -> None:
        say(send, now, at_once=at_once)
        if not idle.warden._figures._has_looks and not idle.ward.ended:
            # the last look is over, and it does not rest yet
            idle.ward.ended = 3
            idle.warden.rouse()

    monkeypatch.setattr(idle.warden._figures, "say", say_and_end)
    idle.warden.rouse()
    await idle.line.next(FiguresReport, lambda report: report.requests == 3)


@pytest.mark.parametrize("counts", ["ongoing", "line"])
async def test_what_ends_just_when_it_is_told_is_told_to_have_ended(
    idle: Idle, counts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await idle.rests()
    idle.warden.routing_applied(1)
    await idle.line.next(CallerReport)
    send = idle.warden._link.send

    def send_and_end(message: Any) -> bool:
        is_sent = send(message)
        # figures come when they want
        if not isinstance(message, FiguresReport):
            idle.ward.ongoing, idle.ward.line = 0, {}
        return is_sent

    monkeypatch.setattr(idle.warden._link, "send", send_and_end)
    idle.ward.ongoing, idle.ward.line = (1, {}) if counts == "ongoing" else (0, {"app_D": 1})
    idle.warden.rouse()
    for is_over in (False, True):
        if counts == "ongoing":
            await idle.line.next(ReplicaReport, lambda report, ends=is_over: report.ongoing == (0 if ends else 1))
        else:
            await idle.line.next(CallerReport, lambda report, ends=is_over: bool(report.queued) is not ends)
    await idle.rests()


@pytest.mark.parametrize("busy", [{"ongoing": 1}, {"line": {"app_D": 1}}], ids=str)
async def test_it_does_not_rest_while_something_is_under_way(idle: Idle, busy: dict[str, Any]) -> None:
    await idle.rests()
    for name, value in busy.items():
        setattr(idle.ward, name, value)
    assert not idle.warden._is_still()
    idle.warden.rouse()
    await wait_until(lambda: not idle.warden._is_resting)
    idle.ward.ongoing, idle.ward.line = 0, {}
    await idle.rests()


async def test_a_goal_makes_it_look_for_its_socket(idle: Idle) -> None:
    await idle.rests()
    # there is none at its address, which it has found already
    idle.ward.is_gone = False
    idle.line.send(dataclasses.replace(idle.warden._start.goal, max_concurrent_queries=7))
    await wait_until(lambda: idle.ward.is_gone)
    assert idle.ward.goals[-1].max_concurrent_queries == 7


async def test_a_health_check_is_the_moment_for_a_look_and_a_sign_of_life(
    idle: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await idle.rests()
    monkeypatch.setattr(module, "SIGN_OF_LIFE_S", 0.0)
    idle.warden._in_loop(idle.warden._on_verdict, 0, "")
    await idle.line.next(ReplicaReport, lambda report: not report.health_failures)
    await idle.rests()


async def test_a_main_loop_that_does_not_answer_keeps_the_warden_awake(idle: Idle) -> None:
    await idle.rests()
    watch = idle.warden._watch
    ask, watch._ask = watch._ask, lambda _: None
    idle.warden.rouse()
    await wait_until(lambda: watch.is_waiting)
    # the answer comes at last, and so do those to later looks
    assert not idle.warden._is_resting
    watch._ask = ask
    watch._turned()
    await idle.rests()


class Timers:
    """A loop that only notes when it shall call whom; the test calls."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.due.append((delay_s, callback))

    def run(self) -> None:
        due, self.due = self.due, []
        for _, callback in due:
            callback()


def test_a_journal_rests_while_nothing_can_be_noted_and_nothing_waits() -> None:
    timers: Any = Timers()
    ongoing = [1]
    journal = Journal(timers, is_idle=lambda: not ongoing[0])
    for _ in range(3):
        timers.run()
        assert not journal.is_resting
    journal.note((("/", "app", "app_D", ""), "GET", 200), journal.now(), b"")
    ongoing[0] = 0
    timers.run()
    assert journal.noted == []
    timers.run()
    assert journal.is_resting
    assert timers.due == []
    journal.resume()
    journal.resume()
    assert [delay for delay, _ in timers.due] == []
    ongoing[0] = 1
    journal.resume()
    # somebody who tries one request looks for its line
    assert [delay for delay, _ in timers.due] == [0.05]
    for count, delay_s in ((16, 0.05), (17, 0.25), (500, 0.128), (0, 0.05)):
        for _ in range(count):
            journal.note((("/", "app", "app_D", ""), "GET", 200), journal.now(), b"")
        timers.run()
        assert [delay for delay, _ in timers.due] == [pytest.approx(delay_s)]


async def test_a_caller_looks_after_nothing_while_it_has_nothing_to_look_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.calls.caller._TURN_S", 0.01)
    caller = a_caller()

    def has_turns_to_come() -> bool:
        return caller._timer is not None

    assert not has_turns_to_come()
    for _ in range(2):
        call = caller.submit_call("app_D", "__call__", [], RequestContext())
        assert has_turns_to_come()
        call.cancel()
        await wait_until(lambda: not has_turns_to_come())
    caller.close()
