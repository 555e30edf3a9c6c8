"""The only place that reads a clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """Source of time."""

    def now(self) -> float:
        """Monotonic seconds; only differences mean something."""
        ...

    def wall_time(self) -> float:
        """Seconds since the epoch, for what people read."""
        ...


class SystemClock:
    """The system's clocks."""

    # asked for every request: no Python call in between
    now = staticmethod(time.monotonic)
    wall_time = staticmethod(time.time)


def worked() -> float:
    """CPU time of this thread, seconds: what others do meanwhile does not count."""
    return time.thread_time()


def block_for(seconds: float) -> None:
    """Block this thread; for processes without an event loop."""
    time.sleep(seconds)


def local_stamp(second: int) -> str:
    """`2023-06-20 12:00:00`, local time, of a wall clock's second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
