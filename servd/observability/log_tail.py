"""The last lines of many log files together, in order of time, for what they cost to read: a bounded part of each file's end."""

import heapq
import os
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

from servd.ground.names import without_controls
from servd.ground.quick_dataclass import dataclass
from servd.observability.log_lines import MOST_UNSORTED, NO_END, Wish, head_of, moment

MOST_FILES = 64
MOST_BYTES = 1024 * 1024
"""Of all files together."""
MOST_OF_ONE_BYTES = 256 * 1024
LONGEST_LINE = 4000
"""Characters of a line as it is given; of a longer one the begin."""


@dataclass(frozen=True, slots=True)
class TailLine:
    """One line. time: local, as text that sorts, like level that of the line before where it has no head. source: the file."""

    time: str
    level: str
    source: str
    text: str


def tail(paths: Sequence[str], wish: Wish, limit: int, until: str = NO_END) -> tuple[list[TailLine], bool]:
    """The last lines that are wanted. Blocks while it reads.

    Args:
        paths: of the log files, the one that changed last first; of more than `MOST_FILES` the rest is left out.
        limit: at most so many lines.
        until: as of `log_lines.moment`.

    Returns:
        The lines, the oldest first, and whether everything in those files was looked at.
    """
    read = paths[:MOST_FILES]
    share = min(MOST_BYTES // max(len(read), 1), MOST_OF_ONE_BYTES)
    is_all = len(read) == len(paths)
    found: list[deque[TailLine]] = []
    for path in read:
        try:
            text, is_whole = _end_of(path, share)
        except OSError:
            # rotated away or removed this moment
            continue
        is_all = is_all and is_whole
        wanted = _wanted(text, wish, os.path.basename(path).removesuffix(".log"))
        # of a MiB of empty lines no more than are given, and some that are out of order
        found.append(deque(wanted, maxlen=max(limit, 0) + MOST_UNSORTED))
    # nearly in order each: access lines are written a moment late
    key = partial(_moment, until)
    lines = deque(heapq.merge(*(sorted(one, key=key) for one in found), key=key), maxlen=max(limit, 0))
    return list(lines), is_all


def _end_of(path: str, most_bytes: int) -> tuple[str, bool]:
    """The last whole lines of a file, and whether they are all of it and of those that it rotated to."""
    with open(path, "rb") as file:
        begin = max(file.seek(0, os.SEEK_END) - most_bytes, 0)
        file.seek(begin)
        data = file.read(most_bytes)
    if begin:
        data = data.partition(b"\n")[2]
    return data.decode("utf-8", "replace"), not begin and not os.path.exists(f"{path}.1")


def _wanted(text: str, wish: Wish, source: str) -> Iterator[TailLine]:
    time = level = ""
    is_wanted = wish.is_any
    for line in text.removesuffix("\n").split("\n") if text else ():
        if (head := head_of(line)) is not None:
            time, level, is_wanted = head.time, head.level, wish.fits(head)
        if is_wanted:
            yield TailLine(time, level, source, without_controls(_cut(line)))


def _cut(line: str) -> str:
    left_out = len(line) - LONGEST_LINE
    return line if left_out <= 0 else f"{line[:LONGEST_LINE]} [{left_out} characters left out]"


def _moment(until: str, line: TailLine) -> tuple[bool, str, bool]:
    return moment(line.time, line.source, until)
