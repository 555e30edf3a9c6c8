"""Bounds of what all requests of one connection may hold together."""

from collections.abc import Callable

from servd.wire.records import CREDIT_BYTES, FIRST_CREDIT, MEDIUM, MEDIUM_BYTES, NARROW, NARROW_BYTES

ROOM_BYTES = CREDIT_BYTES + 512 * 1024
SHARE_BYTES = 12 * 1024
"""What the requests of one connection share, and what each that is under way costs, whatever it holds beside that."""
_KEPT_FREE_BYTES = 2 * 1024
_GRANT_BYTES = CREDIT_BYTES // 4
_LARGE_BYTES = NARROW_BYTES // 2
"""Who sends pieces of this size fills a narrow window at once."""


def _nothing(size: int) -> None:
    """Nobody counts what leaves."""


def _never() -> bool:
    return False


class ConnectionRoom:
    """The room that the requests of one connection share.

    shares: how many they are. taken: bytes that they hold.

    Args:
        size: bytes in all.
    """

    __slots__ = ("_size", "shares", "taken")

    def __init__(self, size: int = ROOM_BYTES) -> None:
        self._size = size
        self.shares = self.taken = 0

    def __repr__(self) -> str:
        return f"ConnectionRoom(shares={self.shares}, taken={self.taken})"

    @property
    def left(self) -> int:
        """Bytes that none of them holds."""
        return max(self._size - SHARE_BYTES * self.shares - self.taken, 0)


class Share:
    """What one request holds of its connection's room, for its body and its answer.

    Args:
        room: None = the connection has this request alone.
        on_sent: called with bytes of the request's body that the proxy holds no more, or holds in the room from now on.
        is_shut: whether the client may send no body at all now, because of what others of its requests hold.

    Attributes:
        is_hungry: whether the replica waits for more of the body.
        turn_away: ends the request if no replica has it yet, and says whether it did.
    """

    __slots__ = ("_borrowed", "_kept", "_lent", "_on_sent", "_room", "is_hungry", "is_shut", "turn_away")

    def __init__(
        self,
        room: ConnectionRoom | None = None,
        on_sent: Callable[[int], None] = _nothing,
        is_shut: Callable[[], bool] = _never,
    ) -> None:
        self._room = room
        self._on_sent = on_sent
        self.is_shut = is_shut
        self.is_hungry = self.turn_away = _never
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


class Window:
    """What of one answer may be on its way while its client has not taken it.

    Args:
        share: what the answer may hold of its connection's room.
    """

    __slots__ = ("_is_narrow", "_size", "_taken", "share")

    def __init__(self, share: Share) -> None:
        self.share = share
        self._is_narrow = False
        self._size = CREDIT_BYTES
        self._taken = 0

    def __repr__(self) -> str:
        return f"Window({self._size}, taken={self._taken})"

    def open(self, *, lasts: bool = False) -> int:
        """The flag for the answer, which begins. lasts: what it borrowed at once would be nobody else's for long."""
        flag = NARROW if lasts and not self.share.is_alone else self.share.open()
        self._is_narrow = flag > 0
        self._size = FIRST_CREDIT[flag]
        return flag

    def widened(self, size: int) -> int:
        """A part of so many bytes came: how many more may be on their way, as far as there is room."""
        more = self.share.widen() if self._is_narrow and size >= _LARGE_BYTES else 0
        if more:
            self._is_narrow = False
            self._size += more
        return more

    def took(self, size: int) -> int:
        """The client took so many bytes: what the replica shall hear of now, of many small parts at once: each message costs."""
        self._taken += size
        if self._taken < min(_GRANT_BYTES, self._size // 2):
            return 0
        taken, self._taken = self._taken, 0
        return taken
