"""Access lines of many notes at once, put together from parts that exist already, column by column."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Protocol

from servd.observability.access_log import SHORT_TENTHS, AccessLog

_PARTS = 5


class Worded(Protocol):
    """Words of a kind of requests; see `AccessLog.words`."""

    words: bytes
    before_path: bytes
    after_path: bytes


def all_same(column: Sequence[Any]) -> bool:
    """Whether a column, which has something in it, has nothing but that."""
    return column.count(column[0]) == len(column)


class NotedLines:
    """Words and writes notes.

    wall_offset: what is added to monotonic seconds for the wall clock's.
    """

    __slots__ = ("_milli_end", "_prefix", "_second", "_start", "access", "wall_offset")

    def __init__(self, access: AccessLog, wall_offset: float) -> None:
        self.access = access
        self.wall_offset = wall_offset
        self.forget_time()

    def __repr__(self) -> str:
        return f"NotedLines({self.access})"

    def forget_time(self) -> None:
        """Lines look different from now on."""
        self._prefix, self._start = b"", ""
        self._milli_end = 0.0
        self._second = 0

    def write(self, columns: Sequence[Sequence[Any]], series: Sequence[Worded], tenths: Sequence[int]) -> None:
        """Write the lines of notes.

        Args:
            columns: of the notes, one at least, in the order in which they ended; ids as lines word them.
            series: of each, or one where it is that of all.
            tenths: of a millisecond, that each took.
        """
        _, _, _, _, ended, ids, paths, sizes, clients, replicas = columns
        parts: list[bytes] = [b""] * (_PARTS * len(ids))
        parts[0::_PARTS] = self._starts(ended, ids)
        parts[1::_PARTS] = ids
        parts[2::_PARTS] = self._middles(series, paths)
        parts[3::_PARTS] = self._latencies(tenths)
        parts[4::_PARTS] = self._ends(paths, sizes, clients, replicas)
        self.access.write(b"".join(parts))

    def _starts(self, ended: Sequence[float], ids: Sequence[bytes]) -> list[bytes]:
        starts: list[bytes] = []
        while (place := len(starts)) < len(ended):
            if ended[place] >= self._milli_end:
                self._turn_milli(ended[place])
            # one at least: a sum of clocks is not exact
            end = max(bisect_left(ended, self._milli_end, place), place + 1)
            starts += [self._prefix] * (end - place)
        if b"" in ids:
            return [one if known else self.access.without_id(one) for one, known in zip(starts, ids, strict=True)]
        return starts

    def _middles(self, series: Sequence[Worded], paths: Sequence[bytes]) -> list[bytes]:
        """What comes between id and latency."""
        access = self.access
        if len(series) == 1:
            one = series[0]
            if all_same(paths):
                path = paths[0]
                word = one.before_path + (access.paths.get(path) or access.path(path)) + one.after_path
                return [word if path else one.words] * len(paths)
            series = [one] * len(paths)
        known = access.paths
        return [
            one.before_path + (known.get(path) or access.path(path)) + one.after_path if path else one.words
            for one, path in zip(series, paths, strict=True)
        ]

    def _latencies(self, tenths: Sequence[int]) -> list[bytes]:
        known = self.access.latencies
        if max(tenths) < SHORT_TENTHS:
            return list(map(known.__getitem__, tenths))
        return [known[took] if took < SHORT_TENTHS else self.access.latency(took) for took in tenths]

    def _ends(
        self, paths: Sequence[bytes], sizes: Sequence[int], clients: Sequence[str], replicas: Sequence[str]
    ) -> list[bytes]:
        """What comes behind the latency: for requests of HTTP how much was sent, and who asked whom."""
        access, count = self.access, len(paths)
        if all_same(clients) and all_same(replicas):
            pair = (clients[0], replicas[0])
            whom = access.parties.get(pair) or access.end_of(*pair)
            if all_same(sizes) and b"" not in paths:
                return [(access.sizes.get(sizes[0]) or access.size(sizes[0])) + whom] * count
            if not any(paths):
                return [access.end_line] * count
        known, parties = access.sizes, access.parties
        return [
            (known.get(size) or access.size(size)) + (parties.get(pair) or access.end_of(*pair))
            if path
            else access.end_line
            for path, size, pair in zip(paths, sizes, zip(clients, replicas, strict=True), strict=True)
        ]

    def _turn_milli(self, now: float) -> None:
        """Word what comes before the request id for the rest of this millisecond."""
        at = now + self.wall_offset
        if not self._second <= at < self._second + 1:
            self._second = int(at)
            self._start = self.access.start(self._second)
        millis = int((at - self._second) * 1000)
        self._milli_end = self._second + (millis + 1) / 1000 - self.wall_offset
        self._prefix = self.access.until_id(self._start, self._second, millis)
