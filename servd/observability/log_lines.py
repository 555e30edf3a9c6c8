"""Lines of log files: what their heads say, which are wanted, and one file read over its rotation, from where it matters on."""

import heapq
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, NamedTuple

from servd.ground.quick_dataclass import dataclass

LONGEST_LINE = 1024 * 1024
"""Bytes; a longer one, which only native code can have printed, is cut into several."""

MOST_UNSORTED = 10_000
"""Lines that are held back at most until their order is known."""

NO_END = "~"
"""Later than any time."""

HALF_STANDS = 10
"""After so many looks that find a last line without an end as it was, it is one: whoever wrote it may be dead."""

_SECOND = len("2026-11-28 22:00:00")
_BLOCK_BYTES = 64 * 1024
_MARGIN_LINES = 100
"""So many more are read, to know the head of the first one: tracebacks have theirs far above."""
_TEXT = re.compile(r"([^ ]+) (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ")
# a file and line, or what was printed to, before the message or further attributes: a name before it may hold a " - " too
_PLACE = re.compile(r"(?::\d+| stdout| stderr)(?= - | [^ =]+=)")
_JSON = '{"levelname": '


def moment(time: str, path: str, until: str = NO_END) -> tuple[bool, str, bool]:
    """What lines of several files are put in order by: of those of one moment a proxy's come last, for it is the last to be done
    with a request.

    Args:
        until: now, as `Line.time`. What claims to be later was written before the clock was set back, or summer time ended: it
            comes first of all, for the newest lines are looked for at the end.
    """
    return time <= until, time, os.path.basename(path).startswith("http_proxy_")


class Head(NamedTuple):
    """What a line says of itself. known: ids and names, each between spaces. time: local, as text that sorts."""

    time: str
    level: str
    known: str


class Line(NamedTuple):
    """A line to show. time: its own, else that of the line with a head before it. is_named: one of the two has a head."""

    time: str
    text: str
    is_named: bool


@dataclass(frozen=True, slots=True)
class Wish:
    """Which lines are wanted: those of a request id, from a level on, from a local time on, that name an application."""

    request: str = ""
    level: int = 0
    since: str = ""
    app: str = ""

    @property
    def is_any(self) -> bool:
        """Whether every line is wanted."""
        return not (self.request or self.level or self.since or self.app)

    def fits(self, head: Head) -> bool:
        """Whether a line with this head is wanted, and those that follow it without one."""
        return (
            head.time >= self.since
            and (not self.request or f" {self.request} " in head.known)
            and (not self.app or f" {self.app} " in head.known)
            # a level of the application's own has no rank here
            and logging.getLevelNamesMapping().get(head.level, logging.CRITICAL) >= self.level
        )


def head_of(line: str) -> Head | None:
    """The head of a line in either encoding; None for a line that goes on with another, or has nothing to do with servd."""
    if found := _TEXT.match(line):
        place = _PLACE.search(line, found.end())
        end = place.end() + 1 if place else line.find(" - ") + 1 or None
        return Head(found[2], found[1], line[found.end() - 1 : end])
    if not line.startswith(_JSON):
        return None
    try:
        fields = json.loads(line)
        known = (fields.get(name) for name in ("component_name", "component_id", "request_id", "route", "application"))
        return Head(fields["asctime"], fields["levelname"], f" {' '.join(text for text in known if text)} ")
    except (ValueError, KeyError, TypeError):
        return None


def in_order(lines: Iterable[Line], until: str = NO_END) -> Iterator[Line]:
    """Lines of one file in order of time. They nearly are: access lines are written many at a time, a moment late.

    until: as of `moment`; what claims to be later stays in its place.
    """
    waiting: list[tuple[str, int, Line]] = []
    before = newest = ""
    for number, line in enumerate(lines):
        if line.time > until:
            while waiting:
                yield heapq.heappop(waiting)[2]
            yield line
            continue
        heapq.heappush(waiting, (line.time, number, line))
        if (second := line.time[:_SECOND]) > newest:
            before, newest = newest, second
        while waiting and (waiting[0][0][:_SECOND] < before or len(waiting) > MOST_UNSORTED):
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


class Source:
    """One log file, with those it rotated to, and followed over its rotation.

    Args:
        begin: time of lines before the first head.
        is_followed: a last line without an end is left for `more`, which gives it as it is after `HALF_STANDS` looks.
    """

    def __init__(self, path: str, wish: Wish, *, begin: str = "", is_followed: bool = False) -> None:
        self._path = path
        self._wish = wish
        self._is_followed = is_followed
        self._time = begin
        self._is_named = False
        self._is_wanted = wish.is_any
        self._file: IO[bytes] | None = None
        self._half = self._newest = b""
        self._looks = 0

    def __repr__(self) -> str:
        return f"Source({self._path})"

    def lines(self, last: int | None) -> Iterator[Line]:
        """What is wanted of the lines until now, the oldest first. last: so many at least, where all are wanted; None = all."""
        for path, begin in reversed(self._starts(last)):
            self.close()
            try:
                self._file = open(path, "rb")  # noqa: SIM115 - the last one is followed
            except OSError:
                # rotated away or removed this moment
                continue
            self._file.seek(begin)
            yield from self._read(is_over=path != self._path)
        if not self._is_followed:
            self.close()

    def more(self) -> list[Line]:
        """Lines added since the last call, or since `lines`; all lines of a file that nobody has asked for any."""
        found: list[Line] = []
        if self._file is not None:
            found += self._read()
            try:
                status, named = os.fstat(self._file.fileno()), os.stat(self._path)
            except OSError:
                return found
            if os.path.samestat(status, named):
                if status.st_size >= self._file.tell():
                    return found
                # it was begun anew
                found += self._rest_of_copy(self._file.tell())
                return [*found, *self._read()]
            # what came between that look and its rotation, and the files that it rotated to since
            found += self._read(is_over=True)
            between = _later_backups(self._path, status)
            self.close()
            for path in between:
                with suppress(OSError), open(path, "rb") as self._file:
                    found += self._read(is_over=True)
            self._file = None
        try:
            self._file = open(self._path, "rb")  # noqa: SIM115
        except OSError:
            return found
        return [*found, *self._read()]

    def _rest_of_copy(self, place: int) -> list[Line]:
        """What was added between the last look, which ended at that place, and the copy of a file that is then begun anew."""
        found: list[Line] = []
        live = self._file
        with suppress(OSError), open(f"{self._path}.1", "rb") as self._file:
            # another file may have that name
            self._file.seek(max(place - len(self._newest), 0))
            if self._newest and self._file.read(len(self._newest)) == self._newest:
                found += self._read(is_over=True)
        self._file, self._newest = live, b""
        assert live is not None
        live.seek(0)
        return found

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _starts(self, last: int | None) -> list[tuple[str, int]]:
        """Files and the offsets from which they matter, the newest first."""
        found: list[tuple[str, int]] = []
        left = None if last is None or not self._wish.is_any else last + _MARGIN_LINES * bool(last)
        for path in (self._path, *_backups(self._path)):
            begin = 0
            try:
                with open(path, "rb") as file:
                    if left is not None:
                        begin, count = _begin_of_last(file, left)
                        left -= count
                    elif self._wish.since:
                        begin = _begin_of_time(file, self._wish.since)
            except OSError:
                continue
            found.append((path, begin))
            if begin or (left is not None and left <= 0):
                break
        return found

    def _read(self, *, is_over: bool = False) -> Iterator[Line]:
        """What there is of the file that is open. is_over: nobody will add to it."""
        assert self._file is not None
        while data := self._file.readline(LONGEST_LINE):
            if not data.endswith(b"\n") and len(data) < LONGEST_LINE and self._may_go_on(data) and not is_over:
                self._file.seek(-len(data), os.SEEK_CUR)
                return
            self._newest = data
            text = data.decode("utf-8", "replace").removesuffix("\n")
            head = head_of(text)
            if head is not None:
                self._time, self._is_named = head.time, True
                self._is_wanted = self._wish.fits(head)
            if self._is_wanted:
                yield Line(self._time, text, self._is_named)

    def _may_go_on(self, half: bytes) -> bool:
        """Whether a last line without an end may get one."""
        self._looks = self._looks + 1 if half == self._half else 1
        self._half = half
        return self._is_followed and self._looks < HALF_STANDS


def _later_backups(path: str, before: os.stat_result) -> list[str]:
    """Files that a path rotated to after the one of before, the oldest first; none where that one is not known any more."""
    found: list[str] = []
    for backup in _backups(path):
        with suppress(OSError):
            if os.path.samestat(before, os.stat(backup)):
                return found[::-1]
        found.append(backup)
    return []


def _backups(path: str) -> Iterator[str]:
    number = 1
    while os.path.exists(backup := f"{path}.{number}"):
        yield backup
        number += 1


def _begin_of_last(file: IO[bytes], count: int) -> tuple[int, int]:
    """Where the last `count` lines begin, and how many there are of them."""
    end = file.seek(0, os.SEEK_END)
    if count <= 0:
        return end, 0
    found = 0
    while end > 0:
        begin = max(end - _BLOCK_BYTES, 0)
        file.seek(begin)
        block = file.read(end - begin)
        place = len(block)
        while (place := block.rfind(b"\n", 0, place)) >= 0:
            # the end of the line before the wanted ones
            if found == count:
                return begin + place + 1, found
            found += 1
        end = begin
    return 0, found


def _begin_of_time(file: IO[bytes], since: str) -> int:
    """An offset at or before the first line of that time, for files whose lines are in order."""
    low, high = 0, file.seek(0, os.SEEK_END)
    while high - low > _BLOCK_BYTES:
        middle = (low + high) // 2
        file.seek(middle)
        block = file.read(_BLOCK_BYTES).decode("utf-8", "replace").split("\n")[1:]
        head = next(filter(None, map(head_of, block)), None)
        if head is not None and head.time < since:
            low = middle
        else:
            high = middle
    return low
