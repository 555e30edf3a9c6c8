"""The listening socket of a proxy: open while the process has descriptors to spare, else clients wait in the kernel's queue."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from servd.ground.clock import Clock, SystemClock
from servd.ground.host_limits import count_descriptors_left, descriptor_limit, descriptors_left, no_descriptor, told

_MOST_SPARE = 64
_LEAST_SPARE = 6
_SHARE = 8
_SAY_AGAIN_S = 60.0

Serve = Callable[[socket.socket, Callable[[], asyncio.Protocol]], Awaitable[asyncio.Server]]
"""Accepts connections on a socket of its own, with a protocol for each."""

logger = logging.getLogger(__name__)


class Door:
    """Accepts clients, and pauses while few descriptors are left: new replicas, the controller's line and files need some.

    Without a pause the event loop's library accepts who comes then, and closes the connection at once.

    Args:
        sock: listening; somebody else holds it too, so nobody is lost while it is not read here.
        serve: makes the server.
        make_protocol: of a new connection.
        spare: descriptors that clients do not get; None = a share of all.

    Attributes:
        pauses: how often it closed.
        has_opened: it accepts, or did.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        serve: Serve,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        spare: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._serve = serve
        self._make_protocol = make_protocol
        self._fixed_spare = spare
        self._clock = clock or SystemClock()
        self._server: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None
        self._is_wanted = False
        self._said_at = -_SAY_AGAIN_S
        self._is_told = False
        self.pauses = 0
        self.has_opened = False

    def __repr__(self) -> str:
        state = "open" if self._server is not None else "paused" if self._is_wanted else "closed"
        return f"Door({state}, pauses={self.pauses})"

    @property
    def trouble(self) -> str:
        """Why it does not accept, for people; "" while it does, or is not meant to."""
        if not self._is_wanted or self._server is not None or self._opening is not None:
            return ""
        return f"new clients wait until there are descriptors for them: {no_descriptor()}"

    async def open(self) -> None:
        """Accept from now on, or from when there are descriptors for clients."""
        self._is_wanted = True
        self.turn()
        if self._opening is not None:
            await self._opening

    def turn(self) -> None:
        """To be called a few times a second: accept again once descriptors are free, no longer when something else took them."""
        if not self._is_wanted or self._opening is not None:
            return
        if self._server is not None:
            if self._left() <= self._spare():
                self._pause()
        # counted: the lowest free number may be the one that the server itself has just given back
        elif count_descriptors_left() > 2 * self._spare():
            self._opening = self._loop.create_task(self._open())
        elif self.pauses == 0:
            self._note_pause()

    async def close(self) -> None:
        """Accept nothing more; the socket stays."""
        self._is_wanted = False
        if self._opening is not None:
            await self._opening
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _open(self) -> None:
        try:
            # its own copy of the descriptor: a server closes what it was given
            self._server = await self._serve(self._sock.dup(), self._accepted)
        except OSError as error:
            logger.error("accept_failed reason=%s", told(error))
            return
        finally:
            self._opening = None
        self.has_opened = True
        if self._is_told:
            self._is_told = False
            logger.warning("accept_resumed pauses=%d", self.pauses)

    def _accepted(self) -> asyncio.Protocol:
        if self._left() <= self._spare():
            # not now: the library is about to use the server
            self._loop.call_soon(self._pause)
        return self._make_protocol()

    def _pause(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self._note_pause()

    def _note_pause(self) -> None:
        self.pauses += 1
        now = self._clock.now()
        # under steady pressure it opens and closes with each client that goes and comes
        if now - self._said_at >= _SAY_AGAIN_S:
            self._said_at, self._is_told = now, True
            logger.warning("accept_paused pauses=%d reason=%s", self.pauses, no_descriptor())

    def _spare(self) -> int:
        if self._fixed_spare is not None:
            return self._fixed_spare
        return max(_LEAST_SPARE, min(descriptor_limit() // _SHARE, _MOST_SPARE))

    def _left(self) -> int:
        return descriptors_left(self._sock.fileno())
