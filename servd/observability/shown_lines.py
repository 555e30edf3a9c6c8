"""Lines for people on a stream that may hold its writers up: a terminal that is stopped, a pipe that nobody reads."""

import os
import threading
from collections import deque

MAX_WAITING_BYTES = 1024 * 1024
"""What may wait for the stream; further lines are dropped, and their number is told."""


class ShownLines:
    """Writes to a descriptor on a thread of its own, begun with the first line. Any thread may write; nobody ever waits.

    A text stream too, as far as a `logging.StreamHandler` asks for one.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
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
                data = b"".join(self._lines)
                self._lines.clear()
                dropped, self._dropped = self._dropped, 0
            if dropped:
                data += b"servd: %d times lines were not shown: nobody reads them fast enough\n" % dropped
            self._write(data)
            with self._changed:
                self._waiting = sum(map(len, self._lines))
                self._changed.notify_all()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            # its reader is gone
            pass
