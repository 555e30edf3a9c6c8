"""Requests, noted in one step each; counted and worded for the access log a moment later, many at a time.

How this works: a note is one tuple in a list. `settle` adds it to its series and puts a line together from parts that
exist already: what is worded once per millisecond, the request's id, what is worded once per kind of request, one of
some thousand latencies, and for requests of HTTP the path, which was seen before, and who asked whom. A loop that does nothing
else does that several times faster than it would be done between requests.
"""

import asyncio
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from servd.ground.clock import Clock, SystemClock
from servd.ground.settings import is_on
from servd.observability import spans
from servd.observability.access_log import SHORT_TENTHS, AccessLog, Key, Labels
from servd.observability.head_traces import TracedId
from servd.observability.latency_buckets import bucket_of
from servd.observability.logs import Style, lets_access_lines_through

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
_NOTES_AT_ONCE = 256


def _never() -> bool:
    return False


def _bucket_of(tenths: int) -> int:
    # a latency is somewhere between its tenths and one more
    return bisect_left(LATENCY_BOUNDS_MS, (tenths + 1) / 10)


Note = tuple[Labels, str, "int | str", float, float, bytes, bytes, int, str, str]
"""A key's parts, begin and end, request id (ASCII that needs no escape in JSON); of requests of HTTP also the path as it came,
bytes of the answer's body, the client's address and the replica's id ("" = unknown), of others b"", 0, "", "".
"""

NOWHERE: Labels = ("", "", "", "")


def _untraced(note: Note, access: AccessLog | None) -> Note:
    """The note of a request that is part of a trace, its place there in the words of its line; its span ends."""
    request_id = note[5]
    assert type(request_id) is TracedId
    request_id.end(note)
    worded = bytes(request_id) if access is None else access.traced(request_id, request_id.trace)
    return (*note[:5], worded, *note[6:])


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

    def add_long(self, tenths: int) -> None:
        """Count one that took longer than `tenths` is long."""
        self.long[_bucket_of(tenths)] += 1
        self.long_tenths += tenths
        bucket = bucket_of(tenths)
        self.slow[bucket] = self.slow.get(bucket, 0) + 1

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


class Journal:
    """The requests of one process. Notes belong on the loop; everything else may be called from any thread.

    Args:
        access: None writes no lines.
        counts: False keeps no series; by default `SERVD_METRICS=0` asks for none.
        read: makes notes of what was appended to `noted`, where that is something else.
        is_idle: whether nothing is under way that could be noted. The journal rests then, until `resume`.

    Attributes:
        now: gives monotonic seconds.
        is_on: somebody wants the notes. Those with a `TracedId` are wanted anyway: their spans end with them.
        is_resting: `resume` must be called before something is noted.
        noted: what is not settled yet. Append to it, or call `note`.
    """

    __slots__ = (
        "_access",
        "_clock",
        "_counts",
        "_is_idle",
        "_is_writing",
        "_lock",
        "_loop",
        "_milli_end",
        "_patterned",
        "_period_s",
        "_prefix",
        "_read",
        "_second",
        "_series",
        "_start",
        "_wall_offset",
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
        read: Callable[[list[Any]], list[Note]] = list,
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
        self._wall_offset = self._clock.wall_time() - self.now()
        self._prefix, self._start = b"", ""
        self._milli_end = 0.0
        self._second = 0
        self._is_writing = access is not None
        self.is_on = self._counts or access is not None
        self._period_s = _SETTLE_S
        loop.call_later(_SETTLE_S, self._on_time)

    def __repr__(self) -> str:
        return f"Journal({len(self._series)} series, {len(self.noted)} notes)"

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
        self.noted.append((*key, began, self.now(), request_id, path, sent_bytes, client, replica_id))

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
                self._second, self._milli_end = 0, 0.0
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
            # the loop may append meanwhile: what comes behind these stays for the next time
            batch = self._read(self.noted[:_NOTES_AT_ONCE])
            del self.noted[: len(batch)]
            access = self._access if self._is_writing and lets_access_lines_through() else None
            if spans.has_met_traces:
                batch = [note if type(note[5]) is not TracedId else _untraced(note, access) for note in batch]
            if access is not None:
                access.write(self._lines(batch, access))
            else:
                self._count(batch)

    def _on_time(self) -> None:
        # a clock that was set shows from here on
        self._wall_offset = self._clock.wall_time() - self.now()
        count = len(self.noted)
        if count:
            self._settle_some()
        # so often that few wait: many would push other things out of the processor's cache
        self._period_s = min(self._period_s * _NOTES_AT_ONCE / (2 * count), _SETTLE_S) if count else _SETTLE_S
        if not self.noted and self._is_idle():
            self.is_resting = True
            return
        self._loop.call_later(self._period_s, self._on_time)

    def _count(self, batch: list[Note]) -> None:
        series = None
        last_labels, last_method, last_status = NOWHERE, "", None
        for labels, method, status, began, ended, *_ in batch:
            if series is None or status != last_status or labels != last_labels or method != last_method:
                last_labels, last_method, last_status = labels, method, status
                series = self._series.get((labels, method, status)) or self._learn((labels, method, status))
            tenths = int((ended - began) * 10_000)
            if tenths < SHORT_TENTHS:
                series.tenths[tenths] += 1
            else:
                series.add_long(tenths)

    def _lines(self, batch: list[Note], access: AccessLog) -> bytes:
        latencies, paths, sizes, parties = access.latencies, access.paths, access.sizes, access.parties
        milli_end, prefix = self._milli_end, self._prefix
        parts: list[bytes] = []
        series = None
        last_labels, last_method, last_status = NOWHERE, "", None
        for labels, method, status, began, ended, request_id, path, sent_bytes, client, replica_id in batch:
            if series is None or status != last_status or labels != last_labels or method != last_method:
                last_labels, last_method, last_status = labels, method, status
                series = self._series.get((labels, method, status)) or self._learn((labels, method, status))
            tenths = int((ended - began) * 10_000)
            if tenths < SHORT_TENTHS:
                series.tenths[tenths] += 1
                latency = latencies[tenths]
            else:
                series.add_long(tenths)
                latency = access.latency(tenths)
            if ended >= milli_end:
                self._turn_milli(ended)
                milli_end, prefix = self._milli_end, self._prefix
            start = prefix if request_id else access.without_id(prefix)
            if path:
                parts += (
                    start,
                    request_id,
                    series.before_path,
                    paths.get(path) or access.path(path),
                    series.after_path,
                    latency,
                    sizes.get(sent_bytes) or access.size(sent_bytes),
                    parties.get((client, replica_id)) or access.end_of(client, replica_id),
                )
            else:
                parts += (start, request_id, series.words, latency, access.end_line)
        return b"".join(parts)

    def _turn_milli(self, now: float) -> None:
        """Word what comes before the request id for the rest of this millisecond."""
        assert self._access is not None
        at = now + self._wall_offset
        if not self._second <= at < self._second + 1:
            self._second = int(at)
            self._start = self._access.start(self._second)
        millis = int((at - self._second) * 1000)
        self._milli_end = self._second + (millis + 1) / 1000 - self._wall_offset
        self._prefix = self._access.until_id(self._start, self._second, millis)

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
