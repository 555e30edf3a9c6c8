"""The HTTP/1.1 lane: an asyncio protocol on httptools that talks to the forwarder directly."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import httptools

from servd import records
from servd.outgoing import Outgoing
from servd.proxy.forwarder import Forwarder, Target, answer_failure, answer_timeout, status_line
from servd.proxy.limits import WHOLE_BODY_BYTES
from servd.proxy.probes import TEXT
from servd.records import CREDIT_BYTES, FRAME_BYTES, HTTP, STREAMED_BODY, Outbox
from servd.request_router import IDEMPOTENT_METHODS

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SPECIAL = frozenset(
    (
        b"connection",
        b"content-length",
        b"expect",
        b"serve_multiplexed_model_id",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
        b"x-request-timeout-seconds",
    )
)
_METHODS = {name.encode(): name for name in ("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH")}
_NO_BODY = frozenset((204, 304))
_LINGER_S = 1.0
_GRANT_BYTES = CREDIT_BYTES // 4
_UPGRADES = frozenset((b"websocket", b"h2c"))

logger = logging.getLogger(__name__)

HandOver = Callable[[asyncio.Transport, bytes], None]


class Request:
    """One parsed request that waits for its turn, or is being answered."""

    __slots__ = ("body", "headers", "keep_alive", "method", "special", "url", "version")

    def __init__(
        self,
        method: bytes,
        url: bytes,
        headers: list[bytes],
        body: bytes | bytearray,
        special: dict[bytes, bytes] | None,
        keep_alive: bool,
        version: str,
    ) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.special = special
        self.keep_alive = keep_alive
        self.version = version


class Listener:
    """What the connections of one proxy share.

    Attributes:
        tick: seconds since the start, for the idle and head limits.
        is_draining: every answer closes its connection.
    """

    def __init__(self, forwarder: Forwarder, hand_over: HandOver | None = None) -> None:
        self.forwarder = forwarder
        self.hand_over = hand_over
        self.connections: set[HttpConnection] = set()
        self.tick = 0
        self.is_draining = False
        self.drain_tick = 0

    def __repr__(self) -> str:
        return f"Listener(connections={len(self.connections)}, draining={self.is_draining})"

    @property
    def ongoing(self) -> int:
        """Requests that are being answered."""
        return sum(connection.is_active for connection in self.connections)

    def turn(self) -> None:
        """Once a second: renew the date, close what is idle or too slow."""
        self.tick += 1
        self.forwarder.refresh_date()
        for connection in list(self.connections):
            connection.look_at_time(self.tick)

    def drain(self) -> None:
        """Close connections after their next answer, idle ones after a grace of a second."""
        if not self.is_draining:
            self.is_draining = True
            self.drain_tick = self.tick
