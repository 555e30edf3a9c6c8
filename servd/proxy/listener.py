"""What the connections of one proxy share: the forwarder, their number, the clock tick, the drain."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from servd.proxy.forwarder import Forwarder

IDLE_GRACE_TICKS = 2
"""Ticks before a draining proxy closes idle connections: at least one whole second. Closing at once loses
requests that are on their way."""

SHORT_IDLE_S = 5.0
"""Without a request for so long, a connection ends while other clients wait for a descriptor."""

HandOver = Callable[[asyncio.Transport, bytes], None]


class Connection(Protocol):
    """What a listener asks of an `http1.HttpConnection`."""

    @property
    def is_active(self) -> bool:
        """A request is being answered."""
        ...

    @property
    def is_websocket(self) -> bool:
        """It is one that is served here: not a request like others."""
        ...

    def drain(self) -> None:
        """End what would not end by itself."""
        ...

    def check_time(self, tick: int, is_over: bool) -> None:
        """End what is idle or too slow; `is_over`: idle ones end now."""
        ...


class Listener:
    """The connections of one proxy.

    Args:
        hand_over: takes over a connection that is not HTTP/1.1, with the bytes read so far.
        handed_over: how many such connections there are; they count against the cap too.

    Attributes:
        tick: whole seconds since the start, for limits of idle and slow connections.
        is_draining: every answer closes its connection.
        is_short: clients wait for a descriptor.
    """

    def __init__(
        self, forwarder: Forwarder, hand_over: HandOver | None = None, handed_over: Callable[[], int] = int
    ) -> None:
        self.forwarder = forwarder
        self.hand_over = hand_over
        self.handed_over = handed_over
        self.connections: set[Connection] = set()
        self.tick = 0
        self.is_draining = False
        self.is_short = False
        self._drain_tick = 0

    def __repr__(self) -> str:
        return f"Listener(connections={len(self.connections)}{', draining' if self.is_draining else ''})"

    @property
    def is_overcrowded(self) -> bool:
        """More connections are open than allowed."""
        return len(self.connections) + self.handed_over() > self.forwarder.limits.connections

    @property
    def idle_s(self) -> float:
        """How long a connection may be without a request."""
        idle_s = self.forwarder.limits.unused_s or self.forwarder.limits.idle_s
        return min(idle_s, SHORT_IDLE_S) if self.is_short else idle_s

    @property
    def ongoing(self) -> int:
        """Requests that are being answered, WebSockets not included."""
        return sum(connection.is_active and not connection.is_websocket for connection in self.connections)

    def turn(self) -> None:
        """To be called once a second: renews the date, ends connections that are idle or too slow."""
        self.tick += 1
        self.forwarder.refresh_date()
        is_over = self.is_draining and self.tick - self._drain_tick >= IDLE_GRACE_TICKS
        for connection in list(self.connections):
            connection.check_time(self.tick, is_over)

    def drain(self) -> None:
        """Close connections after their next answer, idle ones after the grace, WebSockets now."""
        if not self.is_draining:
            self.is_draining = True
            self._drain_tick = self.tick
            for connection in list(self.connections):
                connection.drain()
