"""Whole lines on a stream that several processes write to, and that may hold its writers up: a pipe, a socket, a terminal.

How this works: such a stream takes in one piece only what is short, and only while it is not full; else parts of others' lines
come in between. So its writers take turns, by a lock on the stream itself: it is one for all who have the stream, and ends with
whoever holds it.
"""

import contextlib
import fcntl
import os
import select
import stat

from servd.ground.clock import SystemClock

_LOOK_MS = 10
_now = SystemClock().now


class SharedStream:
    """A descriptor that other processes write to as well."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_torn = False

    def __repr__(self) -> str:
        return f"SharedStream({self._fd}{', torn' if self._is_torn else ''})"

    def write(self, lines: bytes, limit_s: float | None = None) -> bool:
        """Write lines; gives whether all of them are.

        limit_s: how long to wait for the reader, and for other writers, at most; None = for ever.

        Raises:
            OSError: nobody reads it any more, or it takes nothing.
        """
        by = None if limit_s is None else _now() + limit_s
        if not self._takes_turns():
            return self._write(lines, None)
        if not self._begin_turn(by):
            return False
        try:
            return self._write(lines, by)
        finally:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _takes_turns(self) -> bool:
        """Files take every piece as a whole, and all of the host have /dev/null."""
        mode = os.fstat(self._fd).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(self._fd)

    def _begin_turn(self, by: float | None) -> bool:
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | (0 if by is None else fcntl.LOCK_NB))
            except OSError as error:
                if by is not None and isinstance(error, BlockingIOError | PermissionError):
                    if _now() >= by:
                        return False
                    select.poll().poll(_LOOK_MS)
                    continue
                # no locks here: better lines in pieces than none
            return True

    def _write(self, lines: bytes, by: float | None) -> bool:
        # what became of an earlier line must not be the begin of this one
        data = b"\n" + lines if self._is_torn else lines
        at = 0
        try:
            while at < len(data):
                if by is not None and not self._is_writable(max(by - _now(), 0.0)):
                    return False
                try:
                    at += os.write(self._fd, data[at:] if by is None else _piece(data, at))
                except BlockingIOError:
                    # somebody who has it too wants no call to wait
                    if by is None:
                        self._is_writable(None)
        finally:
            if at:
                # what was given without an end has none
                self._is_torn = at < len(data) and data[at - 1 : at] != b"\n"
        return True

    def _is_writable(self, limit_s: float | None) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(None if limit_s is None else limit_s * 1000))


def _piece(data: bytes, at: int) -> bytes:
    """What a pipe that is not full takes without waiting: whole lines, if there is the end of one."""
    piece = data[at : at + select.PIPE_BUF]
    return piece[: piece.rfind(b"\n") + 1] or piece
