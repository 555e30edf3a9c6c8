"""The circle at work: what is planned is carried out, also what becomes known before there is somebody to do it."""

import asyncio
import math
import multiprocessing
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from servd.controller import circle, control_loop, history
from servd.controller.control_loop import ControlLoop
from servd.controller.fact_store import FactStore
from servd.controller.goal_store import GoalStore
from servd.controller.plan import actions, events
from servd.controller.plan.goal import Goal
from servd.controller.plan.observed import Observed
from servd.controller.supervisor import Key, Supervisor
from servd.documents.control_plane import DeployMode, GoalDocument
from servd.documents.sent import HttpWish
from servd.ground.clock import SystemClock, block_for
from servd.ground.pidfd import start_ticks
from servd.wire.messages import ProxyReport
from servd.wire.policy_messages import PolicyAsk
from tests.core.build import IDENTITY, a_goal, an_app, some_settings
from tests.descriptors import few_descriptors
from tests.fakes import wait_until
from tests.rooms.test_supervisor import a_stranger


class RecordingExecutor:
    """Keeps what it is told to do."""

    def __init__(self) -> None:
        self.done: list[actions.Action] = []
        self.was_told = asyncio.Event()

    def adopt(self) -> None:
        """There is nothing from before."""

    def set_logging(self, config: dict[str, Any]) -> None:
        """No process, no logs."""

    def execute(self, action: actions.Action) -> None:
        """Carry out an action."""
        self.done.append(action)
        self.was_told.set()

    def after_turn(self) -> None:
        """There is nothing to remove."""


@pytest.fixture(autouse=True)
def stores() -> Iterator[None]:
    """From Python 3.13 on who leaves them to the collector is told of it."""
    yield
    while OPENED:
        OPENED.pop().close()


OPENED: list[GoalStore | FactStore] = []


def a_control_loop(
    directory: Path, failures: list[str], goal: Goal | None = None, observed: Observed | None = None
) -> ControlLoop:
    settings = some_settings(state_dir=str(directory), socket_dir=str(directory))
    goals, facts = GoalStore.open(str(directory)), FactStore(str(directory))
    OPENED.extend((goals, facts))
    return ControlLoop(
        asyncio.get_running_loop(),
        settings,
        SystemClock(),
        random.Random(1),
        IDENTITY,
        goal or a_goal(an_app()),
        observed or Observed(),
        goals,
        facts,
        lambda: failures.append("turn failed"),
    )


async def test_the_instance_can_be_looked_at_while_no_descriptor_is_left(tmp_path: Path) -> None:
    control = a_control_loop(tmp_path, [])
    with few_descriptors(0):
        control.measure()
        assert control.view().health.memory_bytes > 0


async def test_files_that_a_document_names_hold_up_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = a_control_loop(tmp_path, [], Goal())
    loop = asyncio.get_running_loop()
    turned = threading.Event()

    def check(*_: Any) -> None:
        # as on a disk that answers late: only another thread's loop can end this wait
        loop.call_soon_threadsafe(turned.set)
        assert turned.wait(2.0), "the loop stood still"
        turned.clear()

    monkeypatch.setattr(control_loop, "check_tls", check)
    monkeypatch.setattr(history, "check_code", lambda *_: None)
    wish = HttpWish(ssl_certfile="/c", ssl_keyfile="/k")
    assert await control.start_instance(wish) == 1
    document = GoalDocument(DeployMode.MULTI_APP, wish, ())
    await control.plan(document)
    await control.put(document)
    await control.plan_rollback(1)


@pytest.mark.parametrize("change", ["put", "put one", "delete one"])
async def test_an_accepted_change_is_seen_by_who_looks_next(tmp_path: Path, change: str) -> None:
    app = an_app()
    observed = Observed()
    control = a_control_loop(tmp_path, [], Goal(), observed)
    document = replace(app.document, runtime_env={})
    assert await control.put(GoalDocument(DeployMode.MULTI_APP, HttpWish(), (document,))) == 1
    control.start(cast(Any, RecordingExecutor()), cast(Any, None), cast(Any, None))
    await asyncio.wait_for(control.has_planned.wait(), 10.0)
    [fact] = observed.applications.values()
    observed.put(replace(fact, settled="RUNNING"))
    if change == "put":
        await control.put(GoalDocument(DeployMode.MULTI_APP, HttpWish(), (document,)))
    elif change == "put one":
        await control.put_application(document)
    else:
        await control.delete_application(document.name)
    seen = [one.status for one in control.view().applications]
    assert seen == ["DELETING" if change == "delete one" else "DEPLOYING"]


async def test_long_turns_leave_half_of_the_time_to_who_brings_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []

    def slow(_: Goal, observed: Observed, *others: Any) -> actions.Plan:
        block_for(0.02)
        heard.append(observed.waiting("app_D"))
        return actions.Plan((), math.inf)

    monkeypatch.setattr(circle, "turn", slow)
    control = a_control_loop(tmp_path, [])
    control.start(cast(Any, RecordingExecutor()), cast(Any, None), cast(Any, None))
    clock, told = SystemClock(), 0
    began = clock.now()
    while clock.now() < began + 0.4:
        told += 1
        control.emit(events.QueueReported("proxy:p", "app_D", told))
        await asyncio.sleep(0)
    assert len(heard) <= 0.4 / (2 * 0.02) + 2
    await wait_until(lambda: heard[-1] == told)


async def test_news_before_the_start_cost_no_action(tmp_path: Path) -> None:
    failures: list[str] = []
    control = a_control_loop(tmp_path, failures)
    executor = RecordingExecutor()
    # a process that an earlier controller left greets while this one still opens its listeners
    control.emit(events.QueueReported("proxy:p", "app_D", 1))
    for _ in range(3):
        await asyncio.sleep(0)
    control.start(cast(Any, executor), cast(Any, None), cast(Any, None))
    await asyncio.wait_for(executor.was_told.wait(), 10.0)
    kinds = {type(action) for action in executor.done}
    assert {actions.Publish, actions.StartForkServer, actions.StartProxy} <= kinds
    assert failures == []


async def test_signs_of_life_plan_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[str] = []
    turns: list[actions.Plan] = []

    def counted(*args: Any) -> actions.Plan:
        turns.append(turn(*args))
        return turns[-1]

    turn = circle.turn
    monkeypatch.setattr(circle, "turn", counted)
    # on a busy host the first turn is a long one, and the next would rest
    monkeypatch.setattr(circle, "_LONG_TURN_S", math.inf)
    control = a_control_loop(tmp_path, failures)
    executor = RecordingExecutor()
    control.start(cast(Any, executor), cast(Any, None), cast(Any, None))
    await asyncio.wait_for(executor.was_told.wait(), 10.0)
    proxy = next(action.fact.proxy_id for action in executor.done if isinstance(action, actions.StartProxy))

    async def hear(connections: int) -> int:
        before = len(turns)
        control.emit(ProxyReport(proxy, listening=True, connections=connections))
        for _ in range(3):
            await asyncio.sleep(0)
        return len(turns) - before

    assert [await hear(count) for count in (0, 0, 0, 1, 1)] == [1, 0, 0, 1, 0]
    assert failures == []


async def test_who_looks_on_is_not_woken_for_each_question_to_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = actions.AskPolicy("f", PolicyAsk("1", "m:policy", "{}", "[]"), (("app", "D"),))
    plans = [actions.Plan((ask,), 0.0)] * 4 + [actions.Plan((), 0.0), actions.Plan((), math.inf)]
    seen: list[int] = []

    def planned(*_: Any) -> actions.Plan:
        seen.append(control._version)
        return plans[len(seen) - 1]

    monkeypatch.setattr(circle, "turn", planned)
    control = a_control_loop(tmp_path, [])
    control.start(cast(Any, RecordingExecutor()), cast(Any, None), cast(Any, None))
    await wait_until(lambda: len(seen) == len(plans))
    # of the other wake-ups, whose reason nobody knows, all are told
    assert [version - seen[0] for version in seen] == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("is_in_facts", [False, True])
async def test_a_stop_ends_with_the_last_process_though_no_fact_speaks_of_it(tmp_path: Path, is_in_facts: bool) -> None:
    """An order that was taken back while it was carried out leaves a process that the facts have forgotten."""
    failures: list[str] = []
    control = a_control_loop(tmp_path, failures, Goal())
    reader, writer = multiprocessing.Pipe(duplex=False)

    def gone(key: Key, _pid: int, exit_code: int | None) -> None:
        if is_in_facts:
            control.emit(events.Exited(*key, exit_code))

    supervisor = Supervisor(asyncio.get_running_loop(), reader, gone)
    control.start(cast(Any, RecordingExecutor()), supervisor, cast(Any, None))
    process = a_stranger("sleep", "60")
    supervisor.adopt(("replica", "r"), process.pid, start_ticks(process.pid))
    stopping = asyncio.create_task(control.stop(60.0))
    for _ in range(5):
        # it has planned, and waits
        await asyncio.sleep(0)
    process.kill()
    supervisor.note_status(process.pid, process.wait())
    await asyncio.wait_for(stopping, 10.0)
    assert supervisor.living() == []
    assert failures == []
    writer.close()
    reader.close()
