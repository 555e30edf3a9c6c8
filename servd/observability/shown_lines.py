"""Lines for people on a stream that may hold its writers up: a terminal that is stopped, a pipe that nobody reads."""

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from servd.ground.shared_stream import SharedStream

MAX_WAITING_BYTES = 1024 * 1024
"""What may wait for the stream; further lines are dropped, and their number is told."""
HURRY_S = 0.1
"""How long a process waits for a full stream that may have no thread for it."""
_TURN_BYTES = 64 * 1024
"""What is written before other processes have their turn, about."""


class ShownLines:
    """Writes to a descriptor on a thread of its own, begun with the first line. Any thread may write; nobody ever waits.

    A text stream too, as far as a `logging.StreamHandler` asks for one.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._stream = SharedStream(fd)
        self._thread: threading.Thread | None = None
        self._lines: deque[bytes] = deque()
        self._waiting = self._dropped = 0
        self._changed = threading.Condition(threading.RLock())
        # a child has no such thread, and whoever writes this moment holds the lock for ever
        os.register_at_fork(after_in_child=self._begin_anew)

    def __repr__(self) -> str:
        return f"ShownLines({self._fd}, {self._waiting} bytes wait)"

    def write(self, lines: bytes | str) -> None:
        """Show whole lines some time soon, or drop them."""
        data = lines.encode(errors="backslashreplace") if isinstance(lines, str) else lines
        with self._changed:
            if self._waiting + len(data) > MAX_WAITING_BYTES:
                self._dropped += 1
                return
            self._lines.append(data)
            self._waiting += len(data)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="stderr", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:
                    # no thread can be had: the next line tries again
                    self._thread = None

    def flush(self) -> None:
        """Nothing: lines leave as soon as the stream takes them."""

    def finish(self, limit_s: float) -> None:
        """Wait until all is shown, `limit_s` seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, limit_s)

    def _begin_anew(self) -> None:
        self._thread = None
        self._lines.clear()
        self._waiting = self._dropped = 0
        self._changed = threading.Condition(threading.RLock())

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                data = self._turn()
                dropped, self._dropped = self._dropped, 0
            # its reader may be gone
            with suppress(OSError):
                self._stream.write(data + _told(dropped))
            with self._changed:
                self._waiting -= len(data)
                self._changed.notify_all()

    def _turn(self) -> bytes:
        taken: list[bytes] = []
        size = 0
        while self._lines and size < _TURN_BYTES:
            taken.append(self._lines.popleft())
            size += len(taken[-1])
        return b"".join(taken)


class HurriedLines:
    """As `ShownLines`, without a thread: for a process that forks, and for what must be seen though the process ends the moment
    after. A full stream is waited for a moment, and not again until it takes something.
    """

    def __init__(self, fd: int) -> None:
        self._stream = SharedStream(fd)
        self._dropped = 0
        self._turn = threading.Lock()

    def __repr__(self) -> str:
        return f"HurriedLines({self._stream}, {self._dropped} dropped)"

    def write(self, lines: bytes | str) -> None:
        """Show lines now, or drop them."""
        data = lines.encode(errors="backslashreplace") if isinstance(lines, str) else lines
        # not for ever: a fork in the middle of another thread's turn leaves the lock taken
        if not self._turn.acquire(timeout=2 * HURRY_S):
            return
        try:
            # its reader may be gone
            with suppress(OSError):
                if self._stream.write(_told(self._dropped) + data, 0.0 if self._dropped else HURRY_S):
                    self._dropped = 0
                else:
                    self._dropped += 1
        finally:
            self._turn.release()

    def flush(self) -> None:
        """Nothing waits."""


def outlets_of(kind: Callable[[int], ShownLines | HurriedLines]) -> dict[str, ShownLines | HurriedLines]:
    """Outlets for `stdout` and `stderr`; one for both where these are one stream, since a process has no turns with itself."""
    stderr = kind(2)
    try:
        is_one = os.path.sameopenfile(1, 2)
    except OSError:
        is_one = True
    return {"stdout": stderr if is_one else kind(1), "stderr": stderr}


def _told(dropped: int) -> bytes:
    return b"servd: %d times lines were not shown: nobody reads them fast enough\n" % dropped if dropped else b""
