"""Why processes died, as far as the host tells."""

import signal
from collections import deque
from collections.abc import Callable

from servd.ground.clock import Clock, SystemClock
from servd.ground.host_limits import memory_bound, no_process, oom_kills, processes_left

REPLICA_THREADS = 4
"""What a replica starts before it is ready, at least: its own two and ZeroMQ's two."""
KNOWN_S = 10.0
"""How long the news that the kernel has killed a process stand for the death of one: a large one takes a while to be gone."""


class Deaths:
    """Tells who was killed for want of memory.

    Args:
        kills: gives how many processes the kernel has killed for that so far.
    """

    def __init__(self, clock: Clock | None = None, kills: Callable[[], int] = oom_kills) -> None:
        self._now = (clock or SystemClock()).now
        self._kills = kills
        self._seen = kills()
        self._fresh: deque[float] = deque()

    def __repr__(self) -> str:
        return f"Deaths({self._seen} killed for want of memory, {len(self._fresh)} of them unknown)"

    def look(self) -> None:
        """To be called every second: what was killed long ago was somebody else's."""
        now, count = self._now(), self._kills()
        self._fresh.extend([now] * (count - self._seen))
        self._seen = count
        while self._fresh and self._fresh[0] < now - KNOWN_S:
            self._fresh.popleft()

    def cause_of(self, exit_code: int | None) -> str:
        """Why a process ended so, "" where nobody knows. To be called once for each."""
        if exit_code != -signal.SIGKILL:
            return ""
        self.look()
        if not self._fresh:
            return ""
        self._fresh.popleft()
        bound = memory_bound()
        where = "the host" if bound is None else f"the control group ({bound // 2**20} MiB) or the host"
        return f"the kernel killed it, for {where} had no memory left"


def limit_at_start() -> str:
    """Which limit of the host a replica may have died of that could not start its threads, "" if none is reached."""
    left = processes_left()
    return no_process() if left is not None and left < REPLICA_THREADS else ""
