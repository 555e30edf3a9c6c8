"""When the client of a WebSocket is asked for a sign of life, and when it is gone."""

from typing import Literal

Beat = Literal["ping", "gone"]


class Heartbeat:
    """The pings of one WebSocket, as uvicorn's; anything that the client sends is as good as a pong.

    Args:
        interval_s: from the beginning, or from the answer to a ping, to the next; 0 = no pings.
        timeout_s: from a ping to a sign of life; 0 = nobody waits for one.
    """

    def __init__(self, interval_s: float, timeout_s: float) -> None:
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._seconds = 0
        self._is_asked = False
        self._is_over = interval_s <= 0

    def __repr__(self) -> str:
        return f"Heartbeat({'asked' if self._is_asked else 'alive'}, seconds={self._seconds})"

    def turn(self, is_excused: bool) -> Beat | None:
        """A second has passed: what is to be done now. "gone" comes once, and nothing after it.

        Args:
            is_excused: a pong would not have been heard, because the client is not read from or is still taking what was
                sent before the ping.
        """
        if self._is_over:
            return None
        self._seconds += 1
        if not self._is_asked:
            if self._seconds < self._interval_s:
                return None
            self._seconds = 0
            self._is_asked = self._timeout_s > 0
            return "ping"
        if is_excused:
            self._seconds = 0
        elif self._seconds >= self._timeout_s:
            self._is_over = True
            return "gone"
        return None

    def hear(self) -> None:
        """The client has sent something."""
        if self._is_asked:
            self._is_asked = False
            self._seconds = 0
