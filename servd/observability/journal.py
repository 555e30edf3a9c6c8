"""Requests, noted in one step each; counted and worded for the access log a moment later, many at a time.

How this works: a note is one tuple in a list. `settle` adds it to its series and puts a line together from parts that
exist already: what is worded once per millisecond, the request's id, what is worded once per kind of request, and one of
some thousand ends, by latency. A loop that does nothing else does that several times faster than it would be done between
requests.
"""

import asyncio
import json
import os
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from servd.ground.clock import Clock, SystemClock, local_stamp
from servd.ground.names import on_one_line
from servd.ground.settings import is_on
from servd.observability.log_file import LogFile
from servd.observability.logs import Style

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

_SETTLE_S = 0.25
_NOTES_AT_ONCE = 256
_TABLE_TENTHS = 2000


def _never() -> bool:
    return False


def _bucket_of(tenths: int) -> int:
    # a latency is somewhere between its tenths and one more
    return bisect_left(LATENCY_BOUNDS_MS, (tenths + 1) / 10)


Labels = tuple[str, str, str]
"""Route prefix, application, deployment (full name); "" where a request had none."""

Key = tuple[Labels, str, "int | str"]
"""Labels, method, and the HTTP status, or "OK" or "ERROR"."""

Note = tuple[Labels, str, "int | str", float, float, bytes]
"""A key's parts, begin and end, request id (ASCII that needs no escape in JSON)."""

NOWHERE: Labels = ("", "", "")


class Series:
    """Requests of one key.

    tenths: how many took that many tenths of a millisecond, cut to whole ones. long: as `buckets`, of those that took longer than
    `tenths` is long; long_tenths: their sum. words: in the access lines of all of them.
    """

    __slots__ = ("long", "long_tenths", "tenths", "words")

    def __init__(self, words: str) -> None:
        self.tenths = [0] * _TABLE_TENTHS
        self.long = [0] * (len(LATENCY_BOUNDS_MS) + 1)
        self.long_tenths = 0
        self.words = words

    def __repr__(self) -> str:
        return f"Series({self.words.strip()}: {self.count})"

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.tenths) + sum(self.long)

    def add_long(self, tenths: int) -> None:
        """Count one that took longer than `tenths` is long."""
        self.long[_bucket_of(tenths)] += 1
        self.long_tenths += tenths

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


def place_of(function: Callable[..., Any]) -> tuple[str, int]:
    """File name and first line of a function, as log lines show them."""
    code = function.__code__
    return os.path.basename(code.co_filename), code.co_firstlineno


class AccessLog:
    """How access lines of one process look, and where they go.

    Args:
        component, component_id: as in the other lines of the file.
        place: file and line of the code that notes.
    """

    def __init__(self, file: LogFile, component: str, component_id: str, place: tuple[str, int]) -> None:
        self._file = file
        self._component = component
        self._component_id = component_id
        self._place = place
        self.is_enabled = True
        self.set_style(is_json=False)

    def __repr__(self) -> str:
        return f"AccessLog({self._file}, {'on' if self.is_enabled else 'off'})"

    def set_style(self, *, is_json: bool) -> None:
        """Write JSON objects, or lines of text."""
        self.is_json = is_json
        if is_json:
            who = f'", "component_name": {_quoted(self._component)}, "component_id": {_quoted(self._component_id)}'
            self._start = '{"levelname": "INFO", "asctime": "'
            self.before_id = who + ', "request_id": "'
            end = 'ms"}\n'
        else:
            self._start = "INFO "
            self.before_id = on_one_line(f" {self._component} {self._component_id} ")
            end = "ms\n"
        self._end = end
        self.ends = [self.end(tenths) for tenths in range(_TABLE_TENTHS)]

    def start(self, second: int) -> str:
        """The begin of all lines of a wall clock's second."""
        return self._start + local_stamp(second)

    def without_id(self, prefix: str) -> str:
        """What comes before `words` where no request id is known; `prefix` ends with `before_id`."""
        return prefix if self.is_json else prefix[:-1]

    def words(self, key: Key) -> str:
        """What follows the request id and comes before the latency, for all requests of a key."""
        (route, app, _), method, status = key
        name, line = self._place
        if not self.is_json:
            known = on_one_line("".join(f" {part}" for part in (route, app) if part))
            return f"{known} {name}:{line} - {method} {status} "
        fields: dict[str, str | int] = {"route": route, "application": app, "filename": name, "lineno": line}
        text = "".join(f', "{field}": {_quoted(value)}' for field, value in fields.items() if value != "")
        return f'"{text}, "message": "{_quoted(method)[1:-1]} {status} '

    def end(self, tenths: int) -> str:
        """The end of a line, for a latency in tenths of a millisecond. `ends` holds those of the short ones."""
        return f"{tenths / 10:.1f}{self._end}"

    def tend(self) -> None:
        """See to the file where others write to it."""
        self._file.tend()

    def write(self, text: str) -> None:
        """Append whole lines."""
        self._file.write(text.encode(errors="backslashreplace"))


class Journal:
    """The requests of one process. Notes belong on the loop; everything else may be called from any thread.

    Args:
        access: None writes no lines.
        counts: False keeps no series; by default `SERVD_METRICS=0` asks for none.
        read: makes notes of what was appended to `noted`, where that is something else.
        is_idle: whether nothing is under way that could be noted. The journal rests then, until `resume`.

    Attributes:
        now: gives monotonic seconds.
        is_on: somebody wants the notes.
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
        self._wall_offset = self._clock.wall_time() - self.now()
        self._prefix = self._start = ""
        self._milli_end = 0.0
        self._second = 0
        self._is_writing = access is not None
        self.is_on = self._counts or access is not None
        self._period_s = _SETTLE_S
        loop.call_later(_SETTLE_S, self._on_time)

    def __repr__(self) -> str:
        return f"Journal({len(self._series)} series, {len(self.noted)} notes)"

    def note(self, key: Key, began: float, request_id: bytes) -> None:
        """A request has ended now. began: by `now`. request_id: ASCII that needs no escape in JSON."""
        self.noted.append((*key, began, self.now(), request_id))

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
                    series.words = access.words(key)

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
            access = self._access if self._is_writing else None
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
        for labels, method, status, began, ended, _ in batch:
            if series is None or status != last_status or labels != last_labels or method != last_method:
                last_labels, last_method, last_status = labels, method, status
                series = self._series.get((labels, method, status)) or self._learn((labels, method, status))
            tenths = int((ended - began) * 10_000)
            if tenths < _TABLE_TENTHS:
                series.tenths[tenths] += 1
            else:
                series.add_long(tenths)

    def _lines(self, batch: list[Note], access: AccessLog) -> str:
        ends = access.ends
        milli_end, prefix = self._milli_end, self._prefix
        parts: list[str] = []
        series = None
        last_labels, last_method, last_status = NOWHERE, "", None
        for labels, method, status, began, ended, request_id in batch:
            if series is None or status != last_status or labels != last_labels or method != last_method:
                last_labels, last_method, last_status = labels, method, status
                series = self._series.get((labels, method, status)) or self._learn((labels, method, status))
            tenths = int((ended - began) * 10_000)
            if tenths < _TABLE_TENTHS:
                series.tenths[tenths] += 1
                end = ends[tenths]
            else:
                series.add_long(tenths)
                end = access.end(tenths)
            if ended >= milli_end:
                self._turn_milli(ended)
                milli_end, prefix = self._milli_end, self._prefix
            if request_id:
                parts += (prefix, request_id.decode(), series.words, end)
            else:
                parts += (access.without_id(prefix), series.words, end)
        return "".join(parts)

    def _turn_milli(self, now: float) -> None:
        """Word what comes before the request id for the rest of this millisecond."""
        assert self._access is not None
        at = now + self._wall_offset
        if not self._second <= at < self._second + 1:
            self._second = int(at)
            self._start = self._access.start(self._second)
        millis = int((at - self._second) * 1000)
        self._milli_end = self._second + (millis + 1) / 1000 - self._wall_offset
        self._prefix = f"{self._start},{millis:03d}{self._access.before_id}"

    def _learn(self, key: Key) -> Series:
        if len(self._series) >= MAX_SERIES:
            key = (NOWHERE, "-", key[2])
            if key in self._series:
                return self._series[key]
        series = self._series[key] = Series(self._access.words(key) if self._access is not None else "")
        return series


def _quoted(value: str | int) -> str:
    return json.dumps(value)
