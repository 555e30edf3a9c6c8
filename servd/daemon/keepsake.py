"""What a controller leaves to the next one: bytes by key, in memory that the daemon holds.

No file has a name, so none can be lost, damaged or full; it ends with the daemon, as all does that it speaks of.

How this works: two anonymous files. Each change is appended to one of them as a whole, with its sum: a controller may be
killed at any moment, and what it had not written to the end does not count. When the file has grown, all that holds is
written into the other one, which counts from then on because its number is larger.
"""

import os
import zlib
from collections.abc import Mapping
from multiprocessing import reduction
from typing import Any

from servd.exceptions import ProtocolError
from servd.wire.codec import decode_message, encode_message

Key = tuple[str, str]
"""(kind, name)."""
_GROWTH = 4
_GROWTH_BYTES = 1024 * 1024
_HEAD_BYTES = 8


class Keepsake:
    """Values by key, in the order in which they first came. One writer at a time."""

    def __init__(self, fds: tuple[int, int] | None = None) -> None:
        self._fds = fds or (_anonymous_file(), _anonymous_file())
        self._values: dict[Key, bytes] = {}
        self._number = 0
        self._current = 0
        self._end = 0
        self._whole_end = 0

    def __repr__(self) -> str:
        return f"Keepsake({len(self._values)} values, {self._end} bytes)"

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to a spawned process, it stands for the same memory there."""
        return _received, tuple(reduction.DupFd(fd) for fd in self._fds)

    @property
    def descriptors(self) -> tuple[int, int]:
        """Of its files, in this process."""
        return self._fds

    def load(self) -> dict[Key, bytes]:
        """All values that whoever wrote before has left."""
        found = [_read(fd) for fd in self._fds]
        self._current = 0 if found[0][0] >= found[1][0] else 1
        self._number, self._values, self._end = found[self._current]
        self._whole_end = self._end
        if self._number:
            # what was not written to the end must not stand behind what is
            os.ftruncate(self._fds[self._current], self._end)
        return dict(self._values)

    def save(self, changes: Mapping[Key, bytes | None]) -> None:
        """Keep changed values, None = forget.

        Raises:
            OSError: there is no memory for it. Nothing is kept then until a later call succeeds, rather than something old.
        """
        for key, value in changes.items():
            self._values[key] = value or b""
            if value is None:
                del self._values[key]
        try:
            if not self._number or self._end > _GROWTH_BYTES + _GROWTH * self._whole_end:
                self._write_whole()
            else:
                self._append(changes)
        except OSError:
            self._number = 0
            for fd in self._fds:
                os.ftruncate(fd, 0)
            raise

    def close(self) -> None:
        """Give up this process's part of it."""
        for fd in self._fds:
            os.close(fd)

    def _append(self, changes: Mapping[Key, bytes | None]) -> None:
        data = _record(changes)
        _write(self._fds[self._current], data, self._end)
        self._end += len(data)

    def _write_whole(self) -> None:
        other = 1 - self._current
        number = self._number + 1
        data = number.to_bytes(_HEAD_BYTES, "big") + _record(self._values)
        os.ftruncate(self._fds[other], 0)
        _write(self._fds[other], data, 0)
        os.ftruncate(self._fds[self._current], 0)
        self._current, self._number = other, number
        self._end = self._whole_end = len(data)


def _anonymous_file() -> int:
    return os.memfd_create("servd-facts", os.MFD_CLOEXEC)


def _received(*fds: Any) -> Keepsake:
    first, second = (fd.detach() for fd in fds)
    for fd in (first, second):
        os.set_inheritable(fd, False)
    return Keepsake((first, second))


def _record(changes: Mapping[Key, bytes | None]) -> bytes:
    data = encode_message([(*key, value) for key, value in changes.items()])
    return len(data).to_bytes(4, "big") + zlib.crc32(data).to_bytes(4, "big") + data


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _read(fd: int) -> tuple[int, dict[Key, bytes], int]:
    """Number, values and end of what was written to the end; number 0 for a file that holds nothing whole."""
    size = os.fstat(fd).st_size
    data = b""
    while len(data) < size and (more := os.pread(fd, size - len(data), len(data))):
        data += more
    values: dict[Key, bytes] = {}
    end = start = _HEAD_BYTES
    while (changes := _changes_at(data, end)) is not None:
        for kind, name, value in changes[0]:
            values[(kind, name)] = value or b""
            if value is None:
                del values[(kind, name)]
        end = changes[1]
    number = int.from_bytes(data[:_HEAD_BYTES], "big") if end > start else 0
    return number, values, end


def _changes_at(data: bytes, start: int) -> tuple[list[tuple[str, str, bytes | None]], int] | None:
    body = start + 8
    end = body + int.from_bytes(data[start : start + 4], "big")
    if len(data) < body or len(data) < end:
        return None
    if zlib.crc32(data[body:end]).to_bytes(4, "big") != data[start + 4 : body]:
        return None
    try:
        return decode_message(data[body:end]), end
    except ProtocolError:
        return None
