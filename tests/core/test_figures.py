"""Figures of replicas: how latencies are counted, what a replica tells of itself, and what the controller makes of it."""

import asyncio
import random
from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from servd.controller.plan import events
from servd.controller.shown.figures import FiguresDesk
from servd.documents.figure_views import HISTORY_S, DeploymentFigures, Sample
from servd.ground.process import Usage
from servd.observability import figures
from servd.observability.access_log import SHORT_TENTHS
from servd.observability.figures import (
    IDLE_LOOK_S,
    MARK_EVERY_S,
    SAY_EVERY_S,
    STEP_S,
    WINDOW_S,
    FiguresReport,
    OwnFigures,
    Told,
    counted,
    is_news,
    together,
)
from servd.observability.journal import Journal
from servd.observability.latency_buckets import (
    MAX_BUCKETS,
    MAX_TENTHS,
    added,
    bucket_of,
    bucketed,
    first_of,
    quantiles_ms,
    taken,
)
from servd.wire.messages import REPLICA
from tests.core.build import World, a_goal, deployed, redeploy, report


@pytest.mark.parametrize("tenths", [0, 1, 15, 16, 17, 31, 32, 33, 1999, 2000, 2047, 2048, 123_456, MAX_TENTHS])
def test_a_bucket_is_narrow_and_ends_where_the_next_begins(tenths: int) -> None:
    bucket = bucket_of(tenths)
    first, end = first_of(bucket), first_of(bucket + 1)
    assert first <= tenths < end
    assert end - first <= max(first / 8, 1)
    assert (bucket_of(first), bucket_of(end - 1)) == (bucket, bucket)
    assert bucket < MAX_BUCKETS


def test_whatever_takes_for_ever_counts_as_the_longest() -> None:
    assert bucket_of(10**12) == bucket_of(MAX_TENTHS) == MAX_BUCKETS - 1


def test_percentiles_are_those_of_the_latencies_to_an_eighth() -> None:
    rng = random.Random(4)
    latencies = sorted(int(rng.lognormvariate(4, 1.5)) for _ in range(5000))
    counts = [0] * MAX_BUCKETS
    for tenths in latencies:
        counts[bucket_of(tenths)] += 1
    for share, found in zip((0.5, 0.95, 0.99), quantiles_ms(counts, (0.5, 0.95, 0.99)), strict=True):
        assert found == pytest.approx(latencies[int(share * 5000)] / 10, rel=0.13)
    assert quantiles_ms([0, 4], (0.5, 1.0)) == (0.15, 0.2)
    assert quantiles_ms([0, 0], (0.5, 0.9)) == (None, None)


def test_counts_are_added_and_taken_apart() -> None:
    assert added([[1, 2], [], [0, 1, 5, 0]]) == [1, 3, 5]
    assert taken([1, 3, 5], [1, 1]) == [0, 2, 5]


async def test_what_a_journal_counted() -> None:
    journal = Journal(asyncio.get_running_loop(), None, counts=True)
    for status, tenths in (("OK", 3), ("OK", 1999), ("OK", 2000), ("ERROR", 90_000)):
        journal.noted.extend((("/", "", "", ""), "m", status, 0.0, tenths / 10_000 + 1e-9, b"", b"", 0, "", ""))
    requests, errors, latencies = counted(journal.series())
    assert (requests, errors) == (4, 1)
    assert {bucket: count for bucket, count in enumerate(latencies) if count} == {
        3: 1, bucket_of(1999): 2, bucket_of(90_000): 1,
    }  # fmt: skip
    assert sum(bucketed([1] * SHORT_TENTHS)) == SHORT_TENTHS


A_REPORT = FiguresReport("r", 10, 1, (10,), 0, 5.0, 0.5, 100_000_000, 30, 4)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, False),
        ({"cpu_s": 9.0}, False),
        ({"cpu_share": 0.505}, False),
        ({"cpu_share": 0.0}, True),
        ({"memory_bytes": 100_100_000}, False),
        ({"memory_bytes": 102_000_000}, True),
        ({"memory_bytes": 98_000_000}, True),
        ({"requests": 11}, True),
        ({"waiting": 1}, True),
        ({"descriptors": 31}, True),
        ({"threads": 5}, True),
    ],
    ids=str,
)
def test_what_is_worth_a_report(change: dict[str, Any], expected: bool) -> None:
    assert is_news(A_REPORT, replace(A_REPORT, **change)) is expected


class Process:
    """A replica's own figures, of which the test knows the truth."""

    def __init__(self) -> None:
        self.requests: int | None = 0
        self.usage = Usage(1.0, 50_000_000, 20, 3)
        self.looks = 0
        self.told: list[FiguresReport] = []
        self.own = OwnFigures("r", self._look, self._use)
        self.now = 100.0

    def _look(self) -> tuple[int | None, int, tuple[int, ...], int]:
        self.looks += 1
        return self.requests, 0, (self.requests or 0,), 0

    def _use(self) -> Usage:
        return self.usage

    def say(self, after_s: float, *, arrives: bool = True) -> bool:
        """Whether a report came."""
        before = len(self.told)
        self.now += after_s

        def send(report: FiguresReport) -> bool:
            if arrives:
                self.told.append(report)
            return arrives

        self.own.say(send, self.now)
        return len(self.told) > before


def test_a_replica_tells_at_once_and_then_what_changed_and_not_too_often() -> None:
    process = Process()
    assert process.say(0.0)
    assert not process.say(SAY_EVERY_S)
    process.requests = 1
    process.own.stir()
    assert not process.say(0.1)
    assert process.own.rest_s(process.now, 12.0) == pytest.approx(SAY_EVERY_S - 0.1)
    assert process.say(SAY_EVERY_S)
    process.own.forget_said()
    assert process.say(0.0)
    process.own.forget_said()
    assert not process.say(0.0, arrives=False)
    assert process.say(SAY_EVERY_S)


def test_who_has_nothing_to_do_counts_no_requests() -> None:
    process = Process()
    for _ in range(figures._LOOKS):
        process.say(SAY_EVERY_S)
    assert process.looks == figures._LOOKS
    for _ in range(10):
        assert not process.say(10.0)
    assert process.looks == figures._LOOKS
    assert process.own.rest_s(process.now, 12.0) == 12.0


def test_what_is_said_to_be_under_way_while_it_looks_is_found_by_the_look_after() -> None:
    process = Process()
    for _ in range(figures._LOOKS):
        process.say(SAY_EVERY_S)
    process.requests = 1
    process.own.stir()
    for _ in range(figures._LOOKS - 1):
        process.say(SAY_EVERY_S)
    look = process._look

    def look_and_begin() -> tuple[int | None, int, tuple[int, ...], int]:
        found = look()
        process.requests = 2
        process.own.stir()
        return found

    process.own._look = look_and_begin
    process.say(SAY_EVERY_S)
    process.own._look = look
    assert process.say(SAY_EVERY_S)
    assert process.told[-1].requests == 2


def test_cpu_is_what_was_used_since_the_last_look() -> None:
    process = Process()
    process.say(0.0)
    process.usage = Usage(2.0, 50_000_000, 20, 3)
    assert process.say(4.0)
    assert (process.told[-1].cpu_share, process.told[-1].cpu_s) == (0.25, 2.0)
    # nothing is under way any more
    assert not process.say(4.0)
    assert process.say(IDLE_LOOK_S)
    assert process.told[-1].cpu_share == 0.0


def test_where_nobody_can_look_the_last_figures_stand() -> None:
    process = Process()
    process.say(0.0)

    def refuse() -> Usage:
        raise OSError(24, "Too many open files")

    process.own._use = refuse
    process.requests = 1
    process.own.stir()
    assert process.say(SAY_EVERY_S)
    assert (process.told[-1].memory_bytes, process.told[-1].cpu_share) == (50_000_000, 0.0)


def told_after(*reports: tuple[float, int]) -> Told:
    """A replica that reported (when, requests so far), each with one error."""
    (at, requests), *others = reports
    told = Told("app", "D", FiguresReport("r", requests, 0, (requests,)), at)
    for at, requests in others:
        told.hear(FiguresReport("r", requests, 1, (requests,)), at)
    return told


def steady(until: float, per_s: int, since: float = 0.0) -> list[tuple[float, int]]:
    return [
        (since + SAY_EVERY_S * n, int(SAY_EVERY_S * n * per_s)) for n in range(int((until - since) / SAY_EVERY_S) + 1)
    ]


@pytest.mark.parametrize(
    ("reports", "now", "requests", "per_s"),
    [
        # what was counted before it was known here is of nobody knows when
        ([(0.0, 5000)], 1.0, 0, 0.0),
        # a young one: since it began
        ([(0.0, 0), (10.0, 100)], 10.0, 100, 10.0),
        # the same load all the time
        (steady(200.0, 50), 200.0, None, 50.0),
        (steady(200.0, 50), 201.9, None, 50.0),
        # one request after an hour of nothing: of the last minute
        ([(0.0, 0), (3600.0, 1)], 3601.0, 1, 1 / 60),
        # nothing for a minute
        (steady(200.0, 50), 261.0, 0, 0.0),
        # two bursts, of which the first was longer ago
        ([(0.0, 0), (2.0, 10), (42.0, 12)], 60.0, 12, 12 / 60),
        ([(0.0, 0), (2.0, 10), (42.0, 12)], 63.0, 2, 2 / 61),
    ],
)
def test_requests_of_the_last_minute(
    reports: list[tuple[float, int]], now: float, requests: int | None, per_s: float
) -> None:
    told = told_after(*reports)
    found = told.lately(now)
    assert found.per_s == pytest.approx(per_s, rel=0.02)
    assert sum(found.latencies) == found.requests
    if requests is not None:
        assert found.requests == requests
    assert len(told._marks) <= WINDOW_S / MARK_EVERY_S * 2


def test_steps_of_a_steady_load_are_all_alike() -> None:
    told, rates = Told("app", "D", FiguresReport("r", 0), 0.0), []
    at = step_at = 0.0
    while at < 60:
        at += SAY_EVERY_S
        told.hear(FiguresReport("r", int(at * 10)), at)
        if at >= step_at + STEP_S:
            step_at += STEP_S
            rates.append(told.step().per_s)
    assert rates == [10.0] * len(rates)
    assert len(rates) >= 10
    told.step()
    assert told.step().requests == 0
    told.hear(FiguresReport("r", 620), at + 1000)
    assert told.step().per_s == 20 / STEP_S


def test_replicas_are_put_together() -> None:
    parts = [told_after((0.0, 0), (10.0, n)).lately(10.0) for n in (0, 10, 30)]
    whole, per_s, errors_per_s = together(parts)
    assert (whole.requests, whole.errors, list(whole.latencies)) == (40, 2, [40])
    assert (per_s, errors_per_s) == (4.0, pytest.approx(0.2))


class Desk:
    """A world with a desk, both on the clock of the test."""

    def __init__(self, **options: object) -> None:
        self.world: World = deployed(num_replicas=2, **options)
        self.world.now = 1000.0
        self.desk = FiguresDesk(self.world.observed, self)

    def now(self) -> float:
        return self.world.now

    def wall_time(self) -> float:
        return self.world.now + 1e9

    def hear(self, number: int = 0, **said: Any) -> None:
        replica = self.world.replicas()[number]
        self.desk.heard(replica, FiguresReport(replica.replica_id, **said))

    def passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.world.now += 1
            self.desk.tend()

    def figures(self) -> DeploymentFigures:
        return self.desk.deployments()["app_D"]

    def samples(self, since: float = 0.0) -> deque[Sample]:
        return deque(self.desk.history(since=since)["app_D"].samples)


def test_figures_of_a_deployment_are_those_of_its_replicas() -> None:
    desk = Desk()
    first, second = desk.world.replicas()
    found = desk.figures()
    assert (found.wanted, found.running, found.calls.requests, found.memory_bytes) == (2, 2, None, 0)
    assert found.replicas[first.replica_id].memory_bytes is None
    for number in (0, 1):
        desk.hear(number, requests=0, memory_bytes=50, cpu_share=0.25, descriptors=20, threads=3)
    desk.world.now += 10
    desk.hear(0, requests=40, errors=4, latencies=(0, 40), memory_bytes=60, cpu_share=0.5, waiting=2, threads=3)
    desk.world.turn(report(first, ongoing=3), events.QueueReported("proxy:1", "app_D", 5))
    found = desk.figures()
    assert (found.calls.ongoing, found.calls.waiting, found.calls.requests, found.calls.errors) == (3, 7, 40, 4)
    assert (found.calls.requests_per_s, found.memory_bytes, found.cpu_share) == (4.0, 110, 0.75)
    assert found.calls.quantiles_ms == found.replicas[first.replica_id].calls.quantiles_ms == (0.15, 0.2, 0.2)
    assert found.replicas[second.replica_id].calls.requests == 0
    assert found.replicas[first.replica_id].age_s == 1010.0
    assert list(desk.desk.deployments("app", "D")) == ["app_D"]
    assert desk.desk.deployments("zoo") == desk.desk.deployments("app", "E") == {}


def test_where_nobody_counts_there_are_no_requests_and_still_memory() -> None:
    desk = Desk()
    desk.hear(0, requests=None, memory_bytes=60)
    assert (desk.figures().calls.requests, desk.figures().calls.requests_per_s) == (None, None)
    assert desk.figures().memory_bytes == 60


def test_the_history_has_a_sample_for_each_change_and_one_from_its_beginning() -> None:
    desk = Desk()
    desk.hear(0, requests=0, memory_bytes=50)
    desk.passes(100)
    [sample] = desk.samples()
    assert (sample.wanted, sample.running, sample.memory_bytes, sample.requests_per_s) == (2, 2, 50, 0.0)
    assert sample.at == 1e9 + 1000 + STEP_S
    desk.hear(0, requests=10, errors=5, latencies=(10,), memory_bytes=50)
    desk.passes(100)
    _, busy, quiet = desk.samples()
    assert (busy.requests_per_s, busy.errors_per_s, busy.quantiles_ms[0]) == (10 / STEP_S, 5 / STEP_S, 0.05)
    assert (quiet.requests_per_s, quiet.quantiles_ms) == (0.0, (None, None, None))
    assert [one.at for one in desk.samples(since=busy.at)] == [quiet.at]
    desk.passes(int(HISTORY_S) + 100)
    [rest] = desk.samples()
    assert rest.at == desk.wall_time() - HISTORY_S


def test_who_asks_for_what_came_since_misses_nothing() -> None:
    desk = Desk()
    desk.world.now += 0.0006
    asked_at = desk.desk.at()
    desk.world.now += 0.0002
    desk.desk._sample_at = desk.world.now
    desk.desk.tend()
    assert len(desk.samples(since=asked_at)) == 1


def test_the_history_of_a_busy_deployment_is_bounded() -> None:
    desk = Desk()
    for number in range(400):
        desk.hear(0, requests=0, memory_bytes=number)
        desk.passes(int(STEP_S))
    assert len(desk.samples()) <= HISTORY_S / STEP_S + 1


def test_the_last_requests_of_a_replica_count_after_its_end_and_then_it_is_forgotten() -> None:
    desk = Desk()
    [first, _] = desk.world.replicas()
    desk.hear(0, requests=0)
    desk.passes(10)
    desk.hear(0, requests=10)
    desk.world.turn(events.Exited(REPLICA, first.replica_id, -9))
    desk.passes(5)
    assert 10 / STEP_S in [one.requests_per_s for one in desk.samples()]
    assert desk.figures().calls.requests == 10
    assert first.replica_id not in desk.figures().replicas
    desk.passes(int(WINDOW_S))
    assert not desk.figures().calls.requests
    assert first.replica_id not in desk.desk._told
    desk.world.goal = a_goal(revision=2)
    desk.world.run()
    desk.passes(5)
    assert desk.desk.history() == {}


def test_replicas_that_fail_while_they_serve_are_counted() -> None:
    desk = Desk()
    assert desk.figures().restarts == 0
    first, second = desk.world.replicas()
    desk.world.turn(events.Exited(REPLICA, first.replica_id, -9))
    assert desk.figures().restarts == 1
    desk.world.turn(*(report(second, health_failures=n) for n in (1, 2, 3)))
    desk.world.run()
    assert desk.figures().restarts == 2
    # those that are replaced or no longer wanted have not failed; a new version does not forget
    redeploy(desk.world, "c2").run()
    redeploy(desk.world, "c2", num_replicas=1).run()
    assert desk.figures().restarts == 2


def test_the_autoscalers_last_decision_is_shown() -> None:
    desk = Desk()
    assert desk.figures().decision is None
    scaled = {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_num_ongoing_requests_per_replica": 2,
        "upscale_delay_s": 0.0,
    }
    desk.world = deployed(autoscaling_config=scaled)
    desk.desk = FiguresDesk(desk.world.observed, desk)
    desk.world.turn(*(report(one, ongoing=11) for one in desk.world.replicas()))
    decision = desk.figures().decision
    assert decision is not None
    assert (decision.before, decision.after) == (1, 4)
    assert "asks for" in decision.reason
