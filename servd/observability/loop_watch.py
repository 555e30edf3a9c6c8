"""Notices that a thread's loop does not turn any more, and says where it is stuck; shows where all threads and tasks are."""

import asyncio
import gc
import os
import sys
import threading
import traceback
from collections.abc import Callable
from types import AsyncGeneratorType, FrameType
from typing import Any

from servd.ground.clock import SystemClock
from servd.observability.measures import LoopLag
from servd.observability.tracebacks import is_users, users_paths

BEGAN = "began"
"""Name of the local variable that holds since when a request is in user code, in the replica's functions that call it."""

MAX_TASKS = 100
"""Tasks whose stacks are shown; a busy replica may have thousands."""

_MAX_DEPTH = 100
_now = SystemClock().now


def stacks(loop: asyncio.AbstractEventLoop) -> str:
    """Python stacks of all threads of this process but the calling one, and of the tasks of `loop`; for people."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [f"pid {os.getpid()}"]
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            lines = "".join(traceback.format_list(_shortened(traceback.extract_stack(frame)))).rstrip()
            parts.append(f"thread {names.get(ident, ident)}:\n{lines}")
    try:
        tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    except RuntimeError:
        # the set of tasks changed under our hands, several times in a row
        tasks = []
    for task in tasks[:MAX_TASKS]:
        frames = _suspended(task.get_coro())
        began = next((frame.f_locals[BEGAN] for frame in frames if BEGAN in frame.f_locals), None)
        age = f", {_now() - began:.1f} s" if isinstance(began, float) else ""
        parts.append(f"task {task.get_name()}{age}:\n{_text_of(frames)}")
    if len(tasks) > MAX_TASKS:
        parts.append(f"and {len(tasks) - MAX_TASKS} more tasks")
    return users_paths("\n\n".join(parts))


def _suspended(awaited: Any) -> list[FrameType]:
    """Frames from a coroutine down to what it waits for, as far as that is Python code."""
    frames: list[FrameType] = []
    while awaited is not None and len(frames) < _MAX_DEPTH:
        kinds = [kind for kind in ("cr", "gi", "ag") if hasattr(awaited, f"{kind}_frame")]
        if not kinds:
            # the step of an async generator tells of it only to the garbage collector
            awaited = next((one for one in gc.get_referents(awaited) if isinstance(one, AsyncGeneratorType)), None)
            continue
        frame = getattr(awaited, f"{kinds[0]}_frame")
        if frame is None:
            break
        frames.append(frame)
        awaited = getattr(awaited, "gi_yieldfrom" if kinds[0] == "gi" else f"{kinds[0]}_await")
    return frames


def _text_of(frames: list[FrameType]) -> str:
    lines = [traceback.extract_stack(frame, limit=1)[0] for frame in frames]
    first = next((i for i, line in enumerate(lines) if is_users(line.filename)), 0)
    return "".join(traceback.format_list(lines[first:])).rstrip() or "  (not in Python code)"


def _shortened(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Without the frames that only started the thread or its loop."""
    starts = [i for i, frame in enumerate(frames) if frame.filename.endswith(_STARTERS)]
    return frames[starts[-1] :] if starts else frames


_STARTERS = (os.path.join("asyncio", "runners.py"), "threading.py")


class LoopWatch:
    """Watches one loop from another thread.

    Args:
        ask: has a callback called on the watched loop, without waiting for it.
        thread_id: of the thread that runs the watched loop.
        stuck_after_s: silence from which on the loop counts as stuck, seconds.
        lag: is told how long each answer took.
    """

    def __init__(
        self,
        ask: Callable[[Callable[[], None]], None],
        thread_id: int,
        *,
        stuck_after_s: float,
        lag: LoopLag | None = None,
    ) -> None:
        self._ask = ask
        self._thread_id = thread_id
        self._stuck_after_s = stuck_after_s
        self._lag = lag
        self._asked_at = self._lag_began = 0.0
        self._is_waiting = False

    def __repr__(self) -> str:
        return f"LoopWatch(waiting={self._is_waiting}, asked_at={self._asked_at:.3f})"

    @property
    def is_waiting(self) -> bool:
        """The loop was asked and has not answered yet."""
        return self._is_waiting

    def look(self, now: float, *, asks: bool = True) -> str:
        """ "" while the loop turns, else how long it is stuck, where, and the stack of its thread.

        Args:
            now: monotonic seconds; to be called several times within `stuck_after_s`.
            asks: ask the loop once more if it has answered.
        """
        if not self._is_waiting and not asks:
            return ""
        if not self._is_waiting:
            self._asked_at = now
            self._is_waiting = True
            if self._lag is not None:
                self._lag_began = self._lag.now()
            self._ask(self._turned)
            return ""
        stuck_s = now - self._asked_at
        return blocked(self._thread_id, stuck_s) if stuck_s >= self._stuck_after_s else ""

    def _turned(self) -> None:
        if self._lag is not None:
            self._lag.note(self._lag.now() - self._lag_began)
        self._is_waiting = False


def blocked(thread_id: int, stuck_s: float) -> str:
    """How long a thread is at it, where in the user's code, and its stack on the lines after that."""
    frame = sys._current_frames().get(thread_id)
    if frame is None:
        return f"blocked {stuck_s:.0f} s"
    frames = traceback.extract_stack(frame)
    own = next((item for item in reversed(frames) if is_users(item.filename)), frames[-1])
    place = f"{os.path.basename(own.filename)}:{own.lineno}"
    return users_paths(f"blocked {stuck_s:.0f} s in {place}\n" + "".join(traceback.format_list(frames)).rstrip())
