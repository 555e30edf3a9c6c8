"""Requests: counted as they end, their access lines put together from ready parts and written many at a time.

How this works: a note adds one to the series of its key, and appends four parts of a line that exist already: what is
worded once per millisecond, the request's id, what is worded once per key, and one of some thousand ends, by latency. The
loop writes the parts as one text. Counting later and together was tried: what is kept until then pushes other things
out of the processor's cache, and that cost more.
"""

import asyncio
import json
import os
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
MAX_SERIES = 512
"""Series of one process; whatever comes beyond is counted together, so that nobody fills the memory with odd methods."""

_FLUSH_S = 0.25
_FLUSH_PARTS = 1024
_TABLE_TENTHS = 2000


def _bucket_of(tenths: int) -> int:
    # a latency is somewhere between its tenths and one more
    return bisect_left(LATENCY_BOUNDS_MS, (tenths + 1) / 10)


Labels = tuple[str, str, str]
"""Route prefix, application, deployment (full name); "" where a request had none."""

Key = tuple[Labels, str, "int | str"]
"""Labels, method, and the HTTP status, or "OK" or "ERROR"."""

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


_NO_ENDS = [""] * _TABLE_TENTHS
NO_SERIES = Series("")
"""Stands for "not asked for yet": nothing is added to it."""


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
    """The requests of one process. Belongs on the loop, but for `series`.

    Args:
        access: None writes no lines.
        counts: False keeps no series; by default `SERVD_METRICS=0` asks for none.

    Attributes:
        now: gives monotonic seconds.
        is_on: somebody wants the notes.
    """

    __slots__ = (
        "_access",
        "_clock",
        "_counts",
        "_ends",
        "_is_writing",
        "_loop",
        "_milli_end",
        "_next_look",
        "_parts",
        "_prefix",
        "_second",
        "_series",
        "_start",
        "_wall_offset",
        "is_on",
        "now",
    )

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
        self._series: dict[Key, Series] = {}
        self._wall_offset = self._clock.wall_time() - self.now()
        self._parts: list[str] = []
        self._next_look = 1
        self._prefix = self._start = ""
        self._milli_end = 0.0
        self._second = 0
        self._is_writing = access is not None
        self._ends = access.ends if access is not None else _NO_ENDS
        self.is_on = self._counts or access is not None

    def __repr__(self) -> str:
        return f"Journal({len(self._series)} series, {len(self._parts)} parts)"

    def note(self, key: Key, began: float, request_id: str) -> None:
        """A request has ended now. began: by `now`. request_id: must need no escape in JSON."""
        self.add(self.find(key), began, request_id)

    def find(self, key: Key) -> Series:
        """The series of a key; for who has many requests of the same one."""
        return self._series.get(key) or self._learn(key)

    def add(self, series: Series, began: float, request_id: str) -> None:
        """As `note`."""
        now = self.now()
        tenths = int((now - began) * 10_000)
        if tenths < _TABLE_TENTHS:
            series.tenths[tenths] += 1
            end = self._ends[tenths]
        else:
            series.long[_bucket_of(tenths)] += 1
            series.long_tenths += tenths
            end = self._access.end(tenths) if self._access is not None else ""
        if self._is_writing:
            if now >= self._milli_end:
                self._turn_milli(now)
            parts = self._parts
            parts += (self._prefix, request_id, series.words, end) if request_id else self._without_id(series, end)
            if len(parts) >= self._next_look:
                self._look()

    def configure(self, style: Style) -> None:
        """Write lines of another style from now on, or none."""
        self.flush()
        access = self._access
        if access is None:
            return
        self._is_writing = style.has_access_log
        self.is_on = self._counts or style.has_access_log
        if access.is_json != style.is_json:
            access.set_style(is_json=style.is_json)
            self._ends = access.ends
            self._second = 0
            self._milli_end = 0.0
            for key, series in self._series.items():
                series.words = access.words(key)

    def series(self) -> dict[Key, Series]:
        """What was counted; the series go on counting. Any thread may ask."""
        return self._series.copy() if self._counts else {}

    def flush(self) -> None:
        """Write the lines of all requests so far."""
        if self._parts and self._access is not None:
            text = "".join(self._parts)
            self._parts.clear()
            self._access.write(text)

    def _look(self) -> None:
        if self._next_look == 1:
            self._next_look = _FLUSH_PARTS
            self._loop.call_later(_FLUSH_S, self._on_time)
        else:
            self.flush()

    def _on_time(self) -> None:
        self._next_look = 1
        # a clock that was set shows from here on
        self._wall_offset = self._clock.wall_time() - self.now()
        self.flush()

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

    def _without_id(self, series: Series, end: str) -> tuple[str, ...]:
        assert self._access is not None
        return self._access.without_id(self._prefix), series.words, end

    def _learn(self, key: Key) -> Series:
        if len(self._series) >= MAX_SERIES:
            key = (NOWHERE, "-", key[2])
            if key in self._series:
                return self._series[key]
        series = self._series[key] = Series(self._access.words(key) if self._access is not None else "")
        return series


def _quoted(value: str | int) -> str:
    return json.dumps(value)
