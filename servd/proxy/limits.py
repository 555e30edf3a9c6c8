"""Bounds of the data port: from the environment, and of what all requests of one connection may hold together."""

from collections.abc import Callable
from typing import Self

from servd.ground.keep_alive import KeepAlive
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import is_on, variable
from servd.wire.records import CREDIT_BYTES, FIRST_CREDIT, MEDIUM, MEDIUM_BYTES, NARROW, NARROW_BYTES

WHOLE_BODY_BYTES = 1024 * 1024
"""Request bodies up to this size are read whole before they are sent on; larger ones are streamed."""
ROOM_BYTES = CREDIT_BYTES + 512 * 1024
SHARE_BYTES = 12 * 1024
"""What the requests of one connection share, and what each that is under way costs, whatever it holds beside that."""
_KEPT_FREE_BYTES = 2 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may do, and whether it is told where its time went. Times in seconds; 0 = no bound for `body_bytes` and
    `request_s`.

    head_s: from the first byte of a request to the end of its head. idle_s: without a request, or without a byte of its body.
    request_s: time limit of a whole request. unused_s: between two requests of a connection, 0 = `idle_s`.
    keep_alive: after which time without a word a client's host counts as gone.
    ws_ping_interval_s, ws_ping_timeout_s: between two pings of a WebSocket (0 = none), and from a ping to a sign of life
    (0 = for ever).
    """

    head_bytes: int = 64 * 1024
    body_bytes: int = 0
    head_s: float = 30.0
    idle_s: float = 75.0
    connections: int = 16_384
    request_s: float = 0.0
    server_timing: bool = False
    keep_alive: KeepAlive = KeepAlive()
    ws_ping_interval_s: float = 20.0
    ws_ping_timeout_s: float = 20.0
    unused_s: float = 0.0

    @classmethod
    def from_environment(cls) -> Self:
        """`SERVD_HTTP_MAX_HEADER_BYTES`, `..._MAX_BODY_BYTES`, `..._HEADER_TIMEOUT_S`, `..._IDLE_TIMEOUT_S`,
        `..._MAX_CONNECTIONS`, `..._WS_PING_INTERVAL_S`, `..._WS_PING_TIMEOUT_S`, `..._SERVER_TIMING`,
        `SERVD_REQUEST_PROCESSING_TIMEOUT_S`, and those of `KeepAlive`.

        Raises:
            ValueError: one of them is no number or negative.
        """
        limits = cls(
            head_bytes=int(variable("HTTP_MAX_HEADER_BYTES", "65536")),
            body_bytes=int(variable("HTTP_MAX_BODY_BYTES", "0")),
            head_s=float(variable("HTTP_HEADER_TIMEOUT_S", "30")),
            idle_s=float(variable("HTTP_IDLE_TIMEOUT_S", "75")),
            connections=int(variable("HTTP_MAX_CONNECTIONS", "16384")),
            request_s=float(variable("REQUEST_PROCESSING_TIMEOUT_S", "0")),
            server_timing=is_on("HTTP_SERVER_TIMING"),
            keep_alive=KeepAlive.from_environment(),
            ws_ping_interval_s=float(variable("HTTP_WS_PING_INTERVAL_S", "20")),
            ws_ping_timeout_s=float(variable("HTTP_WS_PING_TIMEOUT_S", "20")),
        )
        if min(limits.head_bytes, limits.body_bytes, limits.head_s, limits.idle_s, limits.request_s) < 0:
            raise ValueError(f"limits of the data port must not be negative: {limits}")
        if min(limits.ws_ping_interval_s, limits.ws_ping_timeout_s) < 0:
            raise ValueError(f"times of WebSocket pings must not be negative: {limits}")
        return limits


def _nothing(size: int) -> None:
    """Nobody counts what leaves."""


def _never() -> bool:
    return False


class ConnectionRoom:
    """The room that the requests of one connection share.

    shares: how many they are. taken: bytes that they hold.
    """

    __slots__ = ("shares", "taken")

    def __init__(self) -> None:
        self.shares = self.taken = 0

    def __repr__(self) -> str:
        return f"ConnectionRoom(shares={self.shares}, taken={self.taken})"

    @property
    def left(self) -> int:
        """Bytes that none of them holds."""
        return max(ROOM_BYTES - SHARE_BYTES * self.shares - self.taken, 0)


class Share:
    """What one request holds of its connection's room, for its body and its answer.

    Args:
        room: None = the connection has this request alone.
        on_sent: called with bytes of the request's body that the proxy holds no more, or holds in the room from now on.
        is_shut: whether the client may send no body at all now, because of what others of its requests hold.
    """

    __slots__ = ("_borrowed", "_kept", "_lent", "_on_sent", "_room", "is_shut")

    def __init__(
        self,
        room: ConnectionRoom | None = None,
        on_sent: Callable[[int], None] = _nothing,
        is_shut: Callable[[], bool] = _never,
    ) -> None:
        self._room = room
        self._on_sent = on_sent
        self.is_shut = is_shut
        self._kept = self._borrowed = self._lent = 0
        if room is not None:
            room.shares += 1

    def __repr__(self) -> str:
        return f"Share(kept={self._kept}, lent={self._lent})"

    @property
    def is_alone(self) -> bool:
        """Nobody else has a say."""
        return self._room is None

    @property
    def lent(self) -> int:
        """Bytes that its answer has beside what every answer has."""
        return self._lent

    def keep(self, size: int) -> bool:
        """Whether so many further bytes of the body may be kept until it is whole, and while it is served."""
        if self._room is None:
            return True
        further = max(self._kept + size - _KEPT_FREE_BYTES, 0) - self._borrowed
        if further > self._room.left:
            return False
        self._kept += size
        self._borrow(further)
        self._on_sent(size)
        return True

    def sent(self, size: int) -> None:
        """So many bytes of the body have left: kept ones first."""
        if self._room is None:
            return
        kept = min(size, self._kept)
        self._kept -= kept
        self._borrow(-min(kept, self._borrowed))
        if size > kept:
            self._on_sent(size - kept)

    def open(self) -> int:
        """The flag for the answer: it may come as it likes (0) where nobody else has any room and each of the others can still
        have a medium one, else it is medium or narrow."""
        room = self._room
        if room is None:
            return 0
        room.taken -= self._lent
        # what a body of its own holds is nobody else's
        others_bytes = MEDIUM_BYTES * (room.shares - 1)
        is_alone = room.taken == self._borrowed and room.left >= CREDIT_BYTES + others_bytes
        flag = 0 if is_alone else MEDIUM if room.left >= MEDIUM_BYTES else NARROW
        self._lent = 0 if flag == NARROW else FIRST_CREDIT[flag]
        room.taken += self._lent
        return flag

    def widen(self) -> int:
        """Bytes that an answer may have outstanding beside what it had: a quarter of what is left, others shall find some too."""
        more = 0 if self._room is None else self._room.left // 4
        if more < NARROW_BYTES or self._room is None:
            return 0
        self._lent += more
        self._room.taken += more
        return more

    def close(self) -> None:
        """The request has ended."""
        if self._room is not None:
            self._room.shares -= 1
            self._room.taken -= self._borrowed + self._lent
            self._kept = self._borrowed = self._lent = 0
            self._room = None

    def _borrow(self, size: int) -> None:
        assert self._room is not None
        self._borrowed += size
        self._room.taken += size
