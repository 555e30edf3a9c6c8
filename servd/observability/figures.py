"""Figures of replicas: what a process uses, how its requests go, and what of both was lately. Pure.

How this works: a replica reports sums that only grow, and its state of the moment, when something changed, every `SAY_EVERY_S` at
most; so a report that is lost costs nothing. The controller keeps the latest report and some before it: what lies between two is
what happened between them. Nobody is asked anything, and one who does nothing says nothing.
"""

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field

from servd.ground.process import Usage
from servd.ground.quick_dataclass import dataclass
from servd.observability.access_log import Key
from servd.observability.journal import Series
from servd.observability.latency_buckets import added, bucketed, taken
from servd.wire.codec import register_message

SAY_EVERY_S = 2.0
IDLE_LOOK_S = 30.0
"""How often at most to look at what a process uses in which no request is under way: a look costs a tenth of a millisecond."""
WINDOW_S = 60.0
"""What figures of the last minute are of."""
MARK_EVERY_S = 5.0
"""So far apart are the reports that are kept for that: the window begins up to so much too early."""
STEP_S = 5.0
"""A sample of the history is of so long."""
MEMORY_STEP_BYTES = 1024 * 1024
CPU_STEP = 0.01
"""Changes from here on are worth a report."""

_LOOKS = 2
"""After the last sign of requests: one may come and go while the first look is taken, and be no further sign."""


@dataclass(frozen=True, slots=True)
class FiguresReport:
    """Replica -> controller: what its process uses, and how the requests went that ended since it began.

    requests: None where nobody counts; errors: those with an exception; latencies: of all by `latency_buckets.bucket_of`.
    waiting: requests that were taken and wait for a thread. cpu_s: used so far; cpu_share: lately, 1 = one core. memory_bytes:
    resident, shared parts included.
    """

    replica_id: str
    requests: int | None = None
    errors: int = 0
    latencies: tuple[int, ...] = ()
    waiting: int = 0
    cpu_s: float = 0.0
    cpu_share: float = 0.0
    memory_bytes: int = 0
    descriptors: int = 0
    threads: int = 0


register_message(FiguresReport)


@dataclass(frozen=True, slots=True)
class Ended:
    """Requests that ended within some time. seconds: how long that was; latencies: by bucket."""

    requests: int = 0
    errors: int = 0
    latencies: Sequence[int] = ()
    seconds: float = WINDOW_S

    @property
    def per_s(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def errors_per_s(self) -> float:
        """Errors a second."""
        return self.errors / self.seconds


def counted(series: dict[Key, Series]) -> tuple[int, int, tuple[int, ...]]:
    """Requests, errors and latencies by bucket of a replica's journal."""
    parts, errors = [], 0
    for (_, _, status), one in series.items():
        counts = bucketed(one.tenths)
        if one.slow:
            slow = [0] * (max(one.slow) + 1)
            for bucket, number in one.slow.items():
                slow[bucket] = number
            counts = added((counts, slow))
        errors += sum(counts) if status == "ERROR" else 0
        parts.append(counts)
    latencies = added(parts)
    return sum(latencies), errors, tuple(latencies)


def is_news(said: FiguresReport, found: FiguresReport) -> bool:
    """Whether a report differs from the one before by more than a process does that is left alone."""
    return (
        (said.requests, said.waiting, said.descriptors, said.threads)
        != (found.requests, found.waiting, found.descriptors, found.threads)
        or abs(said.memory_bytes - found.memory_bytes) >= MEMORY_STEP_BYTES
        or abs(said.cpu_share - found.cpu_share) >= CPU_STEP
    )


class OwnFigures:
    """Of one replica, as it reports them. All methods are for its warden, but `stir`.

    Args:
        look: gives requests (None where nobody counts), errors, latencies by bucket, and how many wait for a thread.
        use: gives what the process uses; raises OSError where nobody can look.
    """

    def __init__(
        self,
        replica_id: str,
        look: Callable[[], tuple[int | None, int, tuple[int, ...], int]],
        use: Callable[[], Usage],
    ) -> None:
        self._replica_id = replica_id
        self._look = look
        self._use = use
        self._said: FiguresReport | None = None
        self._looked_at = float("-inf")
        self._is_stirred = True
        self._looks = 0
        self._requests: tuple[int | None, int, tuple[int, ...], int] = (None, 0, (), 0)
        self._used: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return f"OwnFigures({self._said})"

    def stir(self) -> None:
        """Something is under way that the figures will show; any thread may say so."""
        self._is_stirred = True

    def rest_s(self, now: float, longest_s: float) -> float:
        """How long nobody needs to look, where nothing is under way any more, at most `longest_s`. now: monotonic seconds."""
        return min(max(self._due_at - now, 0.0), longest_s) if self._has_looks else longest_s

    @property
    def _has_looks(self) -> bool:
        return self._is_stirred or self._looks > 0

    @property
    def _due_at(self) -> float:
        return self._looked_at + (SAY_EVERY_S if self._has_looks else IDLE_LOOK_S)

    def forget_said(self) -> None:
        """Whoever was told is gone: all is to be said again."""
        self._said = None
        self._looked_at = float("-inf")

    def say(self, send: Callable[[FiguresReport], bool], now: float, *, at_once: bool = False) -> None:
        """Report what changed, every `SAY_EVERY_S` at most. send: False if it could not be sent. now: monotonic seconds."""
        if now < self._due_at and not at_once:
            return
        self._looked_at = now
        if self._has_looks or at_once:
            if self._is_stirred:
                # only where it is set: a look after this one finds what another thread says meanwhile
                self._is_stirred = False
                self._looks = _LOOKS
            self._looks = max(self._looks - 1, 0)
            self._requests = self._look()
        found = self._report(now)
        if self._said is not None and not is_news(self._said, found):
            return
        if send(found):
            self._said = found
        else:
            self.stir()

    def _report(self, now: float) -> FiguresReport:
        requests, errors, latencies, waiting = self._requests
        try:
            usage = self._use()
        except OSError:
            # no descriptor is left: the last figures stand
            said = self._said
            usage = Usage() if said is None else Usage(said.cpu_s, said.memory_bytes, said.descriptors, said.threads)
        cpu_s, share = usage.cpu_s, 0.0
        if self._used is not None and now > self._used[1]:
            share = max(cpu_s - self._used[0], 0.0) / (now - self._used[1])
        self._used = cpu_s, now
        about = (usage.memory_bytes, usage.descriptors, usage.threads)
        return FiguresReport(
            self._replica_id, requests, errors, latencies, waiting, round(cpu_s, 2), round(share, 3), *about
        )


@dataclass(frozen=True, slots=True)
class _Mark:
    """What a report said of requests, and when."""

    at: float = 0.0
    requests: int = 0
    errors: int = 0
    latencies: Sequence[int] = field(default_factory=lambda: array("Q"))


class Told:
    """What one replica has told of late. app, deployment: bare name. now, everywhere: monotonic seconds.

    Attributes:
        latest: the last report.
    """

    __slots__ = ("_last", "_marks", "_sampled", "app", "deployment", "latest")

    def __init__(self, app: str, deployment: str, report: FiguresReport, now: float) -> None:
        self.app = app
        self.deployment = deployment
        self.latest = report
        # what it counted before it was known here is of nobody knows when
        self._last = self._sampled = _mark(report, now)
        self._marks = deque([self._last])

    def __repr__(self) -> str:
        return f"Told({self.latest}, {len(self._marks)} marks)"

    def hear(self, report: FiguresReport, now: float) -> None:
        """It has reported."""
        self.latest = report
        last = self._last
        if (report.requests or 0) == last.requests:
            return
        if now - self._marks[-1].at >= MARK_EVERY_S and last is not self._marks[-1]:
            self._marks.append(last)
        self._last = _mark(report, now)
        self._forget(now)

    def lately(self, now: float) -> Ended:
        """Requests of the last `WINDOW_S`."""
        self._forget(now)
        first, last = self._marks[0], self._last
        if last.at <= now - WINDOW_S:
            return Ended()
        # who reports all the time is some time behind; who has fallen silent has had no request since
        end = last.at if now - last.at < 2 * SAY_EVERY_S else now
        span_s = max(end - first.at, STEP_S)
        # before it began again there was nothing
        return _between(first, last, span_s if span_s <= WINDOW_S + MARK_EVERY_S else WINDOW_S)

    def step(self) -> Ended:
        """Requests since it was called last, for the history."""
        first, last = self._sampled, self._last
        self._sampled = last
        if first is last:
            return Ended(seconds=STEP_S)
        span_s = last.at - first.at
        return _between(first, last, span_s if STEP_S - SAY_EVERY_S < span_s < STEP_S + SAY_EVERY_S else STEP_S)

    def _forget(self, now: float) -> None:
        """Leave one mark from before the window."""
        while len(self._marks) > 1 and self._marks[1].at <= now - WINDOW_S:
            self._marks.popleft()
        if len(self._marks) == 1 and self._last.at <= now - WINDOW_S:
            self._marks[0] = self._last


def _mark(report: FiguresReport, now: float) -> _Mark:
    return _Mark(now, report.requests or 0, report.errors, array("Q", report.latencies))


def _between(first: _Mark, last: _Mark, seconds: float) -> Ended:
    counts = taken(last.latencies, first.latencies)
    return Ended(last.requests - first.requests, last.errors - first.errors, counts, seconds)


def together(parts: Iterable[Ended]) -> tuple[Ended, float, float]:
    """The requests of several replicas as one, with requests and errors a second."""
    found = [part for part in parts if part.requests]
    whole = Ended(
        sum(part.requests for part in found),
        sum(part.errors for part in found),
        added([part.latencies for part in found]),
    )
    return whole, sum(part.per_s for part in found), sum(part.errors_per_s for part in found)
