"""The window of an HTTP/2 connection, which the bodies of all its requests share. Pure."""

WINDOW_BYTES = 384 * 1024
"""What may be on its way from the client to replicas, of all streams together: what a few handlers that do not read leave lying
stops none of the others.
"""
MOST_WINDOW_BYTES = 4 * WINDOW_BYTES
"""As far as it opens where requests that wait in line hold all of it, for the bodies of those that run."""
STUCK_TURNS = 3
"""Turns in which nothing moves even so, until requests that wait in line are turned away."""
_GROWTH = 3
"""So many times as many as before, each further time: whoever runs may be gone, and HAProxy says so once the window is open."""


class SharedWindow:
    """How much of it each stream holds, and when it opens again.

    Attributes:
        size: bytes that may be held in all.
    """

    __slots__ = ("_has_moved", "_held", "_held_bytes", "_next", "_stuck_turns", "_unopened_bytes", "size")

    def __init__(self) -> None:
        self.size = WINDOW_BYTES
        self._held: dict[int, int] = {}
        self._held_bytes = self._unopened_bytes = self._stuck_turns = 0
        self._next = 1
        self._has_moved = False

    def __repr__(self) -> str:
        return f"SharedWindow({self._held_bytes} of {self.size})"

    @property
    def is_half_held(self) -> bool:
        """Little may come until somebody takes what has."""
        return 2 * self._held_bytes >= self.size

    def held(self, stream_id: int) -> int:
        """Bytes that a stream holds."""
        return self._held.get(stream_id, 0)

    def hold(self, stream_id: int, size: int) -> None:
        """So many bytes of a stream have come."""
        self._held[stream_id] = self._held.get(stream_id, 0) + size
        self._held_bytes += size

    def release(self, stream_id: int, size: int) -> int:
        """So many bytes of a stream are held no more: by how many to open the window now, many at a time."""
        size = min(size, self._held.get(stream_id, 0))
        if not size:
            return 0
        self._has_moved = True
        self._held[stream_id] -= size
        self._held_bytes -= size
        self._unopened_bytes += size
        if self._unopened_bytes < WINDOW_BYTES // 4:
            return 0
        opened, self._unopened_bytes = self._unopened_bytes, 0
        return opened

    def forget(self, stream_id: int) -> None:
        """A stream is over."""
        self._held.pop(stream_id, None)

    def turn(self, *, is_stuck: bool) -> tuple[int, int]:
        """Once a second: what requests in line hold of their bodies may keep those that run from theirs, for ever.

        Args:
            is_stuck: nothing may come, and a request that runs waits for more.

        Returns:
            By how many bytes to open the window, and how many of the requests that wait to turn away.
        """
        has_moved, self._has_moved = self._has_moved, False
        if not is_stuck:
            self._stuck_turns = max(self._stuck_turns - 1, 0)
            self._next = self._next if self._stuck_turns else 1
            return 0, 0
        if has_moved:
            return 0, 0
        if self.size < MOST_WINDOW_BYTES:
            further = self.size + self._unopened_bytes
            self.size, self._unopened_bytes = 2 * self.size, 0
            return further, 0
        self._stuck_turns = min(self._stuck_turns + 1, STUCK_TURNS)
        if self._stuck_turns < STUCK_TURNS:
            return 0, 0
        count, self._next = self._next, self._next * _GROWTH
        return 0, count
