"""Requests, noted in one step each; counted and worded for the access log a moment later, many at a time.

How this works: notes lie one behind the other in a list. `settle` takes some hundred of them as columns, adds them to their
series and has their lines put together, column by column too: what is the same in all of them, as most is in most cases, is
looked at once. That takes a fraction of what it would between requests.
"""

import asyncio
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servd.ground.clock import Clock, SystemClock
from servd.ground.settings import is_on
from servd.observability import spans
from servd.observability.access_log import SHORT_TENTHS, AccessLog, Key, Labels
from servd.observability.head_traces import TracedId
from servd.observability.latency_buckets import bucket_of
from servd.observability.logs import Style, lets_access_lines_through
from servd.observability.noted_lines import NotedLines, all_same

LATENCY_BOUNDS_MS = (
    1,
    2,
    5,
    10,
    20,
    50,
    100,
    200,
    300,
    400,
    500,
    1000,
    2000,
    5000,
    10000,
    60000,
    120000,
    300000,
    600000,
)
MAX_SERIES = 512
"""Series of one process; whatever comes beyond is counted together, so that nobody fills the memory with odd methods."""
MAX_PATTERNED_SERIES = 256
"""How many of them may be of one pattern; whatever comes beyond is counted under the application's prefix alone."""

_SETTLE_S = 0.25
_SETTLE_SOON_S = 0.05
"""Where next to nothing is noted: somebody may be trying something, and look for its line at once."""
_FEW = 16
_NOTES_AT_ONCE = 512


def _never() -> bool:
    return False


def _bucket_of(tenths: int) -> int:
    # a latency is somewhere between its tenths and one more
    return bisect_left(LATENCY_BOUNDS_MS, (tenths + 1) / 10)


Note = tuple[Labels, str, "int | str", float, float, bytes, bytes, int, str, str]
"""A key's parts, begin and end, request id (ASCII that needs no escape in JSON); of requests of HTTP also the path as it came,
bytes of the answer's body, the client's address and the replica's id ("" = unknown), of others b"", 0, "", "".
"""

Columns = list[Sequence[Any]]
"""Notes by their parts, in the order of `Note`."""

NOWHERE: Labels = ("", "", "", "")
NOTE_PARTS = 10
"""How many a `Note` has."""


def columns_of(notes: list[Any]) -> Columns:
    """Notes that lie one behind the other, as columns."""
    return [notes[place::NOTE_PARTS] for place in range(NOTE_PARTS)]


class Series:
    """Requests of one key.

    tenths: how many took that many tenths of a millisecond, cut to whole ones. long: as `buckets`, of those that took longer than
    `tenths` is long; long_tenths: their sum; slow: how many of them by `latency_buckets.bucket_of`. words, before_path,
    after_path: in the access lines of all of them.
    """

    __slots__ = ("after_path", "before_path", "long", "long_tenths", "slow", "tenths", "words")

    def __init__(self, words: bytes = b"", before_path: bytes = b"", after_path: bytes = b"") -> None:
        self.tenths = [0] * SHORT_TENTHS
        self.long = [0] * (len(LATENCY_BOUNDS_MS) + 1)
        self.long_tenths = 0
        self.slow: dict[int, int] = {}
        self.words = words
        self.before_path = before_path
        self.after_path = after_path

    def __repr__(self) -> str:
        return f"Series({self.words.decode().strip()}: {self.count})"

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.tenths) + sum(self.long)

    def add(self, found: Mapping[int, int]) -> None:
        """Count some: tenths of a millisecond -> how many took so many."""
        for tenths, number in found.items():
            if tenths < SHORT_TENTHS:
                self.tenths[tenths] += number
            else:
                self.add_long(tenths, number)

    def add_long(self, tenths: int, number: int = 1) -> None:
        """Count some that took longer than `tenths` is long."""
        self.long[_bucket_of(tenths)] += number
        self.long_tenths += tenths * number
        bucket = bucket_of(tenths)
        self.slow[bucket] = self.slow.get(bucket, 0) + number

    def buckets(self) -> list[int]:
        """How many were at most each of `LATENCY_BOUNDS_MS` and more than the one before, then the rest."""
        found = self.long.copy()
        for tenths, number in enumerate(self.tenths):
            if number:
                found[_bucket_of(tenths)] += number
        return found

    def total_ms(self) -> float:
        """Sum of the latencies."""
        tenths = self.long_tenths + sum(tenths * number for tenths, number in enumerate(self.tenths) if number)
        # half a tenth more for each: they were cut
        return (tenths + self.count / 2) / 10


def _untraced(columns: Columns, access: AccessLog | None) -> list[bytes]:
    """The ids of notes, those of requests that are part of a trace with their place there, as lines word it; their spans end."""
    ids = list(columns[5])
    for place, request_id in enumerate(ids):
        if type(request_id) is TracedId:
            request_id.end(tuple(column[place] for column in columns))
            ids[place] = bytes(request_id) if access is None else access.traced(request_id, request_id.trace)
    return ids


class Journal:
    """The requests of one process. Notes belong on the loop; everything else may be called from any thread.

    Args:
        access: None writes no lines.
        counts: False keeps no series; by default `SERVD_METRICS=0` asks for none.
        read: makes columns of the notes.
        is_idle: whether nothing is under way that could be noted. The journal rests then, until `resume`.

    Attributes:
        now: gives monotonic seconds.
        is_on: somebody wants the notes. Those with a `TracedId` are wanted anyway: their spans end with them.
        is_resting: `resume` must be called before something is noted.
        noted: what is not settled yet, part by part. Put whole notes behind it, in one step, or call `note`.
    """

    __slots__ = (
        "_access",
        "_clock",
        "_counts",
        "_is_idle",
        "_is_writing",
        "_lines",
        "_lock",
        "_loop",
        "_patterned",
        "_period_s",
        "_read",
        "_series",
        "is_on",
        "is_resting",
        "noted",
        "now",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        access: AccessLog | None = None,
        *,
        counts: bool | None = None,
        clock: Clock | None = None,
        read: Callable[[list[Any]], Columns] = columns_of,
        is_idle: Callable[[], bool] = _never,
    ) -> None:
        self._loop = loop
        self._read = read
        self._is_idle = is_idle
        self.is_resting = False
        self._access = access
        self._counts = is_on("METRICS", "1") if counts is None else counts
        self._clock = clock or SystemClock()
        self.now = self._clock.now
        self.noted: list[Any] = []
        self._lock = threading.Lock()
        self._series: dict[Key, Series] = {}
        self._patterned = 0
        self._lines = None if access is None else NotedLines(access, self._clock.wall_time() - self.now())
        self._is_writing = access is not None
        self.is_on = self._counts or access is not None
        self._period_s = _SETTLE_S
        loop.call_later(_SETTLE_SOON_S, self._on_time)

    def __repr__(self) -> str:
        return f"Journal({len(self._series)} series, {len(self.noted) // NOTE_PARTS} notes)"

    def note(
        self,
        key: Key,
        began: float,
        request_id: bytes,
        path: bytes = b"",
        sent_bytes: int = 0,
        client: str = "",
        replica_id: str = "",
    ) -> None:
        """A request has ended now. began: by `now`; the others as `Note` says."""
        self.noted.extend((*key, began, self.now(), request_id, path, sent_bytes, client, replica_id))

    def configure(self, style: Style) -> None:
        """Write lines of another style from now on, or none."""
        self.settle()
        access = self._access
        if access is None:
            return
        with self._lock:
            self._is_writing = style.has_access_log
            self.is_on = self._counts or style.has_access_log
            if access.is_json != style.is_json:
                access.set_style(is_json=style.is_json)
                assert self._lines is not None
                self._lines.forget_time()
                for key, series in self._series.items():
                    series.words, series.before_path, series.after_path = access.words(key)

    @property
    def is_counting(self) -> bool:
        """Whether it keeps series."""
        return self._counts

    def series(self) -> dict[Key, Series]:
        """What was counted, all notes settled. The series go on counting."""
        self.settle()
        return self._series.copy() if self._counts else {}

    def resume(self) -> None:
        """Something begins that will be noted."""
        if self.is_resting:
            self.is_resting = False
            self._on_time()

    def settle(self) -> None:
        """Count and write everything that was noted."""
        while self.noted:
            self._settle_some()

    def _settle_some(self) -> None:
        with self._lock:
            # the loop may put more there meanwhile: what comes behind these stays for the next time
            batch = self.noted[: _NOTES_AT_ONCE * NOTE_PARTS]
            del self.noted[: len(batch)]
            columns = self._read(batch)
            # several threads may settle
            if not len(columns[0]):
                return
            lines = self._lines if self._is_writing and lets_access_lines_through() else None
            if spans.has_met_traces and TracedId in set(map(type, columns[5])):
                columns[5] = _untraced(columns, None if lines is None else lines.access)
            series, tenths = self._count(columns)
            if lines is not None:
                lines.write(columns, series, tenths)

    def _on_time(self) -> None:
        if self._lines is not None:
            # a clock that was set shows from here on
            self._lines.wall_offset = self._clock.wall_time() - self.now()
        count = len(self.noted) // NOTE_PARTS
        if count:
            self._settle_some()
        if count <= _FEW:
            self._period_s = _SETTLE_SOON_S
        else:
            # so often that few wait: many would push other things out of the processor's cache
            self._period_s = min(self._period_s * _NOTES_AT_ONCE / (2 * count), _SETTLE_S)
        if not self.noted and self._is_idle():
            self.is_resting = True
            return
        self._loop.call_later(self._period_s, self._on_time)

    def _count(self, columns: Columns) -> tuple[list[Series], list[int]]:
        """Add notes to their series. Gives the series, one where it is that of all, and the tenths that each took."""
        labels, methods, statuses, began, ended, *_ = columns
        tenths = [int((end - begin) * 10_000) for begin, end in zip(began, ended, strict=True)]
        series, learn = self._series, self._learn
        if all_same(labels) and all_same(methods) and all_same(statuses):
            key = (labels[0], methods[0], statuses[0])
            found = [series.get(key) or learn(key)]
            found[0].add(Counter(tenths))
        else:
            found = [series.get(key) or learn(key) for key in zip(labels, methods, statuses, strict=True)]
            for one, took in zip(found, tenths, strict=True):
                if took < SHORT_TENTHS:
                    one.tenths[took] += 1
                else:
                    one.add_long(took)
        return found, tenths

    def _learn(self, key: Key) -> Series:
        if key[0][3]:
            if self._patterned >= MAX_PATTERNED_SERIES:
                plain: Key = ((*key[0][:3], ""), *key[1:])
                return self._series.get(plain) or self._learn(plain)
            self._patterned += 1
        elif len(self._series) - self._patterned >= MAX_SERIES:
            key = (NOWHERE, "-", key[2])
            if key in self._series:
                return self._series[key]
        series = self._series[key] = Series(*(self._access.words(key) if self._access is not None else ()))
        return series
