"""Whoever sets the wall clock changes what is shown, nothing else."""

import asyncio
import os
from pathlib import Path

import pytest

from servd.controller.metric_sums import KEEP_S
from servd.controller.metrics_desk import MetricsDesk
from servd.controller.shown.status import epoch_of, instance_view
from servd.wire.messages import Hello, MetricFamily, MetricsReport
from tests.core.build import IDENTITY, deployed

STEPS_S = [3600.0, -3600.0, 86400.0, -86400.0, 3.2e7, -3.2e7]
START = 1.7e9


class SetClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.monotonic = 100.0
        self.wall = START

    def now(self) -> float:
        return self.monotonic

    def wall_time(self) -> float:
        return self.wall


def test_ages_of_replicas_stay_true_when_the_clock_is_set() -> None:
    world = deployed(num_replicas=1)
    [fact] = world.replicas()
    now = fact.created_at + 40.0

    def age(wall_time: float) -> float:
        world.observed.epoch = epoch_of(world.observed.epoch, wall_time, now)
        view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=now)
        return wall_time - view.applications[0].deployments[0].replicas[0].start_time_s

    for step_s in (0.0, *STEPS_S):
        assert age(START + step_s) == pytest.approx(40.0, abs=0.01)


def test_a_small_correction_of_the_clock_moves_no_stamp_that_was_told() -> None:
    assert epoch_of(START, START + 100.3, 100.0) == START


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "metrics.state")


def desk_at(path: str, clock: SetClock, hellos: list[Hello]) -> MetricsDesk:
    return MetricsDesk(path, clock, lambda: hellos, lambda *_: False, tuple)


def text_of(desk: MetricsDesk) -> str:
    async def ask() -> str:
        return await desk.text()

    return asyncio.run(ask())


@pytest.mark.parametrize("step_s", STEPS_S)
def test_what_the_dead_counted_is_kept_for_its_time_by_the_monotonic_clock(path: str, step_s: float) -> None:
    clock = SetClock()
    # no process with this pid began at that moment: it is dead
    hellos = [Hello("replica", "a#1", os.getpid(), start_ticks=1)]
    desk = desk_at(path, clock, hellos)
    samples = (((("replica", "a#1"),), 7),)
    desk.heard("replica", "a#1", MetricsReport(0, (MetricFamily("seen_total", "counter", "", samples),)))
    hellos.clear()
    assert "a#1" in text_of(desk)
    clock.wall += step_s
    clock.monotonic += KEEP_S - 1
    assert "a#1" in text_of(desk_at(path, clock, [])), "the next controller knows too"
    clock.monotonic += 2
    assert "a#1" not in text_of(desk_at(path, clock, []))


def test_what_was_noticed_before_the_machine_began_anew_is_forgotten(path: str) -> None:
    clock = SetClock()
    hellos = [Hello("replica", "a#1", os.getpid(), start_ticks=1)]
    desk = desk_at(path, clock, hellos)
    samples = (((("replica", "a#1"),), 7),)
    desk.heard("replica", "a#1", MetricsReport(0, (MetricFamily("seen_total", "counter", "", samples),)))
    assert "a#1" in text_of(desk)
    clock.monotonic = 5.0
    assert "a#1" not in text_of(desk_at(path, clock, []))
