"""Notices that a thread's loop does not turn any more, and says where it is stuck."""

import os
import sys
import traceback
from collections.abc import Callable


class LoopWatch:
    """Watches one loop from another thread.

    Args:
        ask: has a callback called on the watched loop, without waiting for it.
        thread_id: of the thread that runs the watched loop.
        stuck_after_s: silence from which on the loop counts as stuck, seconds.
    """

    def __init__(self, ask: Callable[[Callable[[], None]], None], thread_id: int, *, stuck_after_s: float) -> None:
        self._ask = ask
        self._thread_id = thread_id
        self._stuck_after_s = stuck_after_s
        self._asked_at = 0.0
        self._is_waiting = False

    def __repr__(self) -> str:
        return f"LoopWatch(waiting={self._is_waiting}, asked_at={self._asked_at:.3f})"

    def look(self, now: float) -> str:
        """ "" while the loop turns, else how long it is stuck, where, and the stack of its thread.

        Args:
            now: monotonic seconds; to be called several times within `stuck_after_s`.
        """
        if not self._is_waiting:
            self._asked_at = now
            self._is_waiting = True
            self._ask(self._turned)
            return ""
        stuck_s = now - self._asked_at
        return self._diagnosis(stuck_s) if stuck_s >= self._stuck_after_s else ""

    def _turned(self) -> None:
        self._is_waiting = False

    def _diagnosis(self, stuck_s: float) -> str:
        frame = sys._current_frames().get(self._thread_id)
        if frame is None:
            return f"blocked {stuck_s:.0f} s"
        frames = traceback.extract_stack(frame)
        place = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}"
        return f"blocked {stuck_s:.0f} s in {place}\n" + "".join(traceback.format_list(frames)).rstrip()
