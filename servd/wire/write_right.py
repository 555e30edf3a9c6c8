"""A client's connection that goes to the replica with the request, and who answers on it: whoever takes the right to it first.

What is asked for when the answer is there (`wire/lending.py`) costs a way there and back. Where the last answers were large the
caller gives the connection at once. But it may have to answer itself: the time limit has passed, the client seems to have gone,
the replica is frozen and the request goes to another. In the same moment the replica may begin to write. So the kernel decides:
the right is a counter of one that both have open, and only one of them gets to read it.

Both descriptors come with the packet of the request's envelope (`wire/packet_line.py`), to a replica that has said INVITED. Where
they do not arrive the replica answers as ever; so it does where the answer is small, or the right was taken. It has let go of the
connection then, before it says anything. Once it has written head and body, or a beginning of it, it says WROTE.
"""

import contextlib
import errno
import os
from collections.abc import Iterable

from servd.ground.descendants import hide, show
from servd.ground.host_limits import is_one_of_the_last

_forks = 0
"""How many forks lie between this process and the one that began."""


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)

_MOST = 64
"""Requests with connections in an envelope: the kernel takes 253 descriptors with a packet."""


def new_right() -> int:
    """Descriptor of a right that nobody has taken.

    Raises:
        OSError: none is left for it, or one of the last.
    """
    right = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    if is_one_of_the_last(right):
        os.close(right)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return right


def take_right(right: int) -> bool:
    """Whether this process has it now, and nobody else can get it."""
    try:
        os.eventfd_read(right)
    except OSError:
        return False
    return True


class GivenConnection:
    """A connection that came with its request, and the right to write to it, until one of both calls."""

    __slots__ = ("_connection", "_right")

    def __init__(self, connection: int, right: int) -> None:
        self._connection = connection
        self._right = right

    def __repr__(self) -> str:
        return f"GivenConnection({self._connection})"

    def take(self) -> int | None:
        """The connection's descriptor, to be closed by who calls; None: somebody else answers."""
        is_own = take_right(self._right)
        _close(self._right)
        if not is_own:
            _close(self._connection)
            return None
        show(self._connection)
        return self._connection

    def close(self) -> None:
        """Leave both."""
        _close(self._right)
        _close(self._connection)


class Given:
    """What goes with an envelope: for some of its requests connection and right. What nobody has taken is closed with it."""

    __slots__ = ("_forks", "_pairs")

    def __init__(self) -> None:
        self._pairs: dict[int, tuple[int, int]] = {}
        self._forks = _forks

    def __repr__(self) -> str:
        return f"Given({list(self._pairs)})"

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def call_ids(self) -> tuple[int, ...]:
        """Of the requests."""
        return tuple(self._pairs)

    @property
    def descriptors(self) -> list[int]:
        """Connection and right for each of them."""
        return [descriptor for pair in self._pairs.values() for descriptor in pair]

    def add(self, call_id: int, connection: int, right: int) -> None:
        """Give both with the request."""
        # forked children shall have neither
        hide(connection)
        hide(right)
        self._pairs[call_id] = connection, right

    def add_copies(self, call_id: int, connection: int, right: int) -> bool:
        """As `add`, with copies: both may be closed before this is sent. False: there is no room for them."""
        if len(self._pairs) >= _MOST:
            return False
        copies = []
        try:
            for descriptor in (connection, right):
                copies.append(os.dup(descriptor))
        except OSError:
            close_all(copies)
            return False
        self.add(call_id, copies[0], copies[1])
        return True

    def take(self, call_id: int) -> GivenConnection | None:
        """What came with a request."""
        pair = self._pairs.pop(call_id, None)
        return None if pair is None else GivenConnection(*pair)

    def __del__(self) -> None:
        # in a forked child the numbers mean something else
        if self._forks == _forks:
            close_all(self.descriptors)


def given_with(call_ids: Iterable[int], descriptors: list[int]) -> Given:
    """What came with an envelope for these requests: nothing where there are not two descriptors for each, as when there was no
    room for all of them, or when one of the last is among them."""
    given, ids = Given(), list(call_ids)
    if len(descriptors) != 2 * len(ids) or is_one_of_the_last(max(descriptors, default=0)):
        close_all(descriptors)
        return given
    for index, call_id in enumerate(ids):
        given.add(call_id, descriptors[2 * index], descriptors[2 * index + 1])
    return given


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody has taken."""
    for descriptor in descriptors:
        _close(descriptor)


def _close(descriptor: int) -> None:
    show(descriptor)
    with contextlib.suppress(OSError):
        os.close(descriptor)
