"""Who reads the body of a request, which may be lent to the replica with its client's connection: the caller's half. Pure.

```
            read                lend again, to another replica that was asked after the first refused
           +----+                +----+
           v    |     lend       v    |
    ---->   OWN  ------------->   LENT
            | ^                   |  |
            | +--- back(taken) ---+  |
            +------ end --> LOST <---+ end
```

The caller reads while it is OWN, and only then; the replica while it is LENT. LOST: nobody knows what of the body is left, or
nobody wants it any more, so that the connection carries no further request.
"""

from enum import Enum

from servd.exceptions import ProtocolError

LENT_BODY_BYTES = 256 * 1024
"""From this size on a body is lent; below, that costs more than it saves."""


class Reader(Enum):
    """Who reads."""

    OWN = "the caller"
    LENT = "the replica"
    LOST = "nobody"


class BodyLoan:
    """One body.

    Attributes:
        left: bytes of it that nobody has read yet, >= 0, as far as the caller knows.
        reader: whose turn it is.
    """

    __slots__ = ("left", "reader")

    def __init__(self, left: int) -> None:
        self.left = left
        self.reader = Reader.OWN

    def __repr__(self) -> str:
        return f"BodyLoan({self.left} bytes left, read by {self.reader.value})"

    @property
    def is_lent(self) -> bool:
        """The replica may read, so nobody else does."""
        return self.reader is Reader.LENT

    @property
    def is_whole(self) -> bool:
        """All of it was read; what the client sends is the next request."""
        return self.reader is Reader.OWN and not self.left

    def read(self, size: int) -> int:
        """The caller has read so many bytes of the connection; how many of them belong to the body.

        Where it is LOST all do. None do while it is LENT: that the caller reads then is a fault of its own.

        Raises:
            ProtocolError: it is lent.
        """
        if self.reader is Reader.LENT:
            raise ProtocolError("a body that is lent was read")
        if self.reader is Reader.LOST:
            return size
        taken = min(size, self.left)
        self.left -= taken
        return taken

    def lend(self) -> None:
        """The replica reads from now on. Where another had it before, that one has refused the request without reading.

        Raises:
            ProtocolError: it is lost.
        """
        if self.reader is Reader.LOST:
            raise ProtocolError("a body that is lost cannot be lent")
        self.reader = Reader.LENT

    def back(self, taken: int) -> bool:
        """The replica reads no more, and has read so many bytes; False where it had nothing: a late word, without meaning.

        Raises:
            ProtocolError: more than there were; it is lost then.
        """
        if self.reader is not Reader.LENT:
            return False
        if not 0 <= taken <= self.left:
            self.reader = Reader.LOST
            raise ProtocolError(f"{taken} bytes were taken of {self.left}")
        self.left -= taken
        self.reader = Reader.OWN
        return True

    def end(self) -> None:
        """The request is over, or its replica is gone."""
        self.reader = Reader.LOST
