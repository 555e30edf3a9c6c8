"""Requests, noted in one step each; counted and worded for the access log later, many at a time.

How this works: a note is one `append`. `settle` takes what was noted, adds it to the series of its key, and puts a line
together from parts that are worded once per key, millisecond or tenth of a millisecond of latency. So a request pays for
a note, and a small share of a loop that does nothing else.
"""

import asyncio
import json
import os
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from servd.clock import Clock, SystemClock, local_stamp
from servd.logs import LogFile, Style
from servd.settings import is_on

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
MAX_SERIES = 4096
"""Series of one process; whatever comes beyond is counted together, so that nobody fills the memory with odd methods."""

_SETTLE_S = 0.25
_SETTLE_NOTES = 256
_TABLE_TENTHS = 2000


def _bucket_of(tenths: int) -> int:
    # a latency is somewhere between its tenths and one more
    return bisect_left(LATENCY_BOUNDS_MS, (tenths + 1) / 10)


_BUCKET_OF = [_bucket_of(tenths) for tenths in range(_TABLE_TENTHS)]

Labels = tuple[str, str, str]
"""Route prefix, application, deployment (full name); "" where a request had none."""

Key = tuple[Labels, str, "int | str"]
"""Labels, method, and the HTTP status, or "OK" or "ERROR"."""

NOWHERE: Labels = ("", "", "")


class Series:
    """Requests of one key.

    buckets: how many were at most each of `LATENCY_BOUNDS_MS` and more than the one before, then the rest. tenths: sum of their
    latencies in tenths of a millisecond.
    """

    __slots__ = ("buckets", "tenths", "words")

    def __init__(self, words: str) -> None:
        self.buckets = [0] * (len(LATENCY_BOUNDS_MS) + 1)
        self.tenths = 0
        self.words = words

    def __repr__(self) -> str:
        return f"Series({self.words.strip()}: {sum(self.buckets)})"


def place_of(function: Callable[..., Any]) -> tuple[str, int]:
    """File name and first line of a function, as log lines show them."""
    code = function.__code__
    return os.path.basename(code.co_filename), code.co_firstlineno


_NO_SERIES = Series("")


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
            self.before_id = f" {self._component} {self._component_id} "
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
            known = "".join(f" {part}" for part in (route, app) if part)
            return f"{known} {name}:{line} - {method} {status} "
        fields: dict[str, str | int] = {"route": route, "application": app, "filename": name, "lineno": line}
        text = "".join(f', "{field}": {_quoted(value)}' for field, value in fields.items() if value != "")
        return f'"{text}, "message": "{_quoted(method)[1:-1]} {status} '

    def end(self, tenths: int) -> str:
        """The end of a line, for a latency in tenths of a millisecond. `ends` holds those of the short ones."""
        return f"{tenths / 10:.1f}{self._end}"

    def write(self, text: str) -> None:
        """Append whole lines."""
        self._file.write(text.encode(errors="backslashreplace"))


class Journal:
    """The requests of one process.

    `note` belongs on the loop; everything else may be called from any thread.

    Attributes:
        now: gives monotonic seconds.
        noted: what was noted and is not settled: key, begin, end, request id. Who has no time for `note` appends here, and
            calls `look` when the list has `next_look` entries or more.
        is_on: somebody wants the notes.

    Args:
        access: None writes no lines.
        counts: False keeps no series; by default `SERVD_METRICS=0` asks for none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        access: AccessLog | None = None,
        *,
        counts: bool | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._loop = loop
        self._access = access
        self._counts = is_on("METRICS", "1") if counts is None else counts
        self._clock = clock or SystemClock()
        self.now = self._clock.now
        self.noted: list[tuple[Key, float, float, str]] = []
        self.next_look = 1
        self._lock = threading.Lock()
        self._series: dict[Key, Series] = {}
        self._wall_offset = self._clock.wall_time() - self.now()
        self._second = 0
        self._start = ""
        self.is_on = self._counts or access is not None

    def __repr__(self) -> str:
        return f"Journal({len(self._series)} series, {len(self.noted)} notes)"

    def note(self, key: Key, began: float, request_id: str) -> None:
        """A request has ended now.

        Args:
            began: by `now`.
            request_id: must need no escape in JSON.
        """
        noted = self.noted
        noted.append((key, began, self.now(), request_id))
        if len(noted) >= self.next_look:
            self.look()

    def look(self) -> None:
        """Settle if enough was noted, else see to it that it happens soon."""
        if self.next_look == 1:
            self.next_look = _SETTLE_NOTES
            self._loop.call_later(_SETTLE_S, self._on_time)
        else:
            self.settle()

    def configure(self, style: Style) -> None:
        """Write lines of another style from now on, or none."""
        self.settle()
        with self._lock:
            access = self._access
            if access is None:
                return
            access.is_enabled = style.has_access_log
            self.is_on = self._counts or style.has_access_log
            if access.is_json != style.is_json:
                access.set_style(is_json=style.is_json)
                self._second = 0
                for key, series in self._series.items():
                    series.words = access.words(key)

    def series(self) -> dict[Key, Series]:
        """What was counted, all notes settled. The series go on counting."""
        self.settle()
        if not self._counts:
            return {}
        with self._lock:
            return dict(self._series)

    def settle(self) -> None:
        """Count and write what was noted."""
        with self._lock:
            noted = self.noted
            count = len(noted)
            # the loop may append meanwhile: what is behind `count` stays for the next time
            batch = noted[:count]
            del noted[:count]
            if not batch:
                return
            access = self._access
            if access is None or not access.is_enabled:
                self._count(batch)
            else:
                access.write(self._lines(batch, access))

    def _on_time(self) -> None:
        self.next_look = 1
        # a clock that was set shows from here on
        self._wall_offset = self._clock.wall_time() - self.now()
        self.settle()

    def _count(self, batch: list[tuple[Key, float, float, str]]) -> None:
        known = self._series
        last: Key | None = None
        series = _NO_SERIES
        for key, began, ended, _ in batch:
            if key != last:
                series = known.get(key) or self._learn(key)
                last = key
            tenths = int((ended - began) * 10_000)
            series.tenths += tenths
            series.buckets[_BUCKET_OF[tenths] if tenths < _TABLE_TENTHS else _bucket_of(tenths)] += 1

    def _lines(self, batch: list[tuple[Key, float, float, str]], access: AccessLog) -> str:
        known, ends = self._series, access.ends
        parts: list[str] = []
        last: Key | None = None
        milli_end, prefix = -1.0, ""
        series = _NO_SERIES
        for key, began, ended, request_id in batch:
            if key != last:
                series = known.get(key) or self._learn(key)
                last = key
            tenths = int((ended - began) * 10_000)
            series.tenths += tenths
            if tenths < _TABLE_TENTHS:
                end = ends[tenths]
                series.buckets[_BUCKET_OF[tenths]] += 1
            else:
                end = access.end(tenths)
                series.buckets[_bucket_of(tenths)] += 1
            if ended >= milli_end:
                milli_end, prefix = self._prefix(ended, access)
            if request_id:
                parts += (prefix, request_id, series.words, end)
            else:
                parts += (access.without_id(prefix), series.words, end)
        return "".join(parts)

    def _prefix(self, moment: float, access: AccessLog) -> tuple[float, str]:
        """What comes before the request id for the rest of this millisecond, and its end."""
        at = moment + self._wall_offset
        if not self._second <= at < self._second + 1:
            self._second = int(at)
            self._start = access.start(self._second)
        millis = int((at - self._second) * 1000)
        end = self._second + (millis + 1) / 1000 - self._wall_offset
        return end, f"{self._start},{millis:03d}{access.before_id}"

    def _learn(self, key: Key) -> Series:
        if len(self._series) >= MAX_SERIES:
            key = (NOWHERE, "-", key[2])
            if key in self._series:
                return self._series[key]
        series = self._series[key] = Series(self._access.words(key) if self._access is not None else "")
        return series


def _quoted(value: str | int) -> str:
    return json.dumps(value)
