"""A large request body on its way to a replica, bounded by credit."""

from collections import deque
from collections.abc import Callable

from servd.calls.outgoing import Outgoing
from servd.wire.records import CREDIT_BYTES

_SMALL_BYTES = 1024
_JOINED_BYTES = 64 * 1024
"""Pieces up to the first size are put together, up to the second; to copy larger ones costs more than it saves."""


class BodyStream:
    """Sends what the client sent as far as the replica granted.

    Args:
        call: the request.
        on_room: called when less than `room_bytes` wait again.
        room_bytes: what may wait before the client should not be read from.
        on_sent: called with the size of each piece that was sent on.

    Attributes:
        received: bytes that the client sent so far.
    """

    __slots__ = (
        "_call",
        "_credit",
        "_is_closed",
        "_is_told",
        "_on_room",
        "_on_sent",
        "_pieces",
        "_room_bytes",
        "_waiting",
        "received",
    )

    def __init__(
        self,
        call: Outgoing,
        on_room: Callable[[], None],
        *,
        room_bytes: int = CREDIT_BYTES,
        on_sent: Callable[[int], None] | None = None,
    ) -> None:
        self._call = call
        self._on_room = on_room
        self._room_bytes = room_bytes
        self._on_sent = on_sent
        self._pieces: deque[bytes | bytearray] = deque()
        self._waiting = 0
        self.received = 0
        self._credit = 0
        self._is_closed = self._is_told = False

    def __repr__(self) -> str:
        return f"BodyStream(waiting={self._waiting}, credit={self._credit})"

    @property
    def is_full(self) -> bool:
        """The client should not be read from."""
        return self._waiting >= self._room_bytes

    @property
    def is_complete(self) -> bool:
        """The client has sent everything."""
        return self._is_closed

    @property
    def is_hungry(self) -> bool:
        """The replica would take more, and nothing is there."""
        return self._credit > 0 and not self._pieces and not self._is_closed

    def feed(self, data: bytes | bytearray) -> None:
        """Further bytes of the client."""
        self._collect(data)
        self._waiting += len(data)
        self.received += len(data)
        self._pump()

    def _collect(self, data: bytes | bytearray) -> None:
        # an object for each byte would cost many times what it holds
        last = self._pieces[-1] if self._pieces else b""
        if len(data) > _SMALL_BYTES or not 0 < len(last) < _JOINED_BYTES:
            self._pieces.append(data)
            return
        if isinstance(last, bytes):
            self._pieces[-1] = last = bytearray(last)
        last += data

    def close(self) -> None:
        """The client has sent everything."""
        self._is_closed = True
        self._pump()

    def take_parts(self) -> None:
        """A body has no messages."""

    def add_credit(self, size: int) -> None:
        """The replica grants further bytes."""
        was_full = self.is_full
        self._credit += size
        self._pump()
        if was_full and not self.is_full:
            self._on_room()

    @property
    def beginning(self) -> bytes:
        """What waits; it stays."""
        return bytes(self._pieces[0]) if len(self._pieces) == 1 else b"".join(self._pieces)

    def forget_beginning(self) -> None:
        """What waits has left by another way."""
        self._pieces.clear()
        self._waiting = 0

    def _pump(self) -> None:
        peer = self._call.peer
        while self._pieces and self._credit > 0 and peer is not None:
            piece = self._pieces.popleft()
            if len(piece) > self._credit:
                self._pieces.appendleft(piece[self._credit :])
                piece = piece[: self._credit]
            self._credit -= len(piece)
            self._waiting -= len(piece)
            peer.send_body(self._call, piece, True)
            if self._on_sent is not None:
                self._on_sent(len(piece))
        if self._is_closed and not self._is_told and not self._pieces and peer is not None and self._credit > 0:
            # what is granted for pieces that are taken later must not say it again
            self._is_told = True
            peer.send_body(self._call, b"", False)
