"""Descriptors around a fork: which of its parent's a child closes, and which it leaves to the code that they belong to.

How this works: those of the fork server itself are closed, or a replica would hold the pipes of all others. What libraries have
opened stays, whenever that was: their code in the child has the number, and would close or write to what has got it by then.
Threads that send spans open connections in the parent too, after it was looked for such: a child finds these at their end.
"""

from collections.abc import Set
from contextlib import suppress

from servd.ground import process
from servd.replica.native.connections import end

_known: set[int] = set()
_own: set[int] = set()
_late: set[int] = set()


def note_known() -> None:
    """To be called in a process that replicas are forked from, before it opens anything for itself.

    Raises:
        OSError: there is no descriptor left to look with.
    """
    _known.clear()
    _known.update(process.open_fds())


def note_own(fds: Set[int]) -> None:
    """To be called there before each fork. fds: that it has opened for itself since."""
    _own.clear()
    _own.update(fds)
    _late.clear()
    # no descriptor is left to look with: nor will there be a child
    with suppress(OSError):
        _late.update(process.open_fds() - _known - _own)


def part(needed: Set[int]) -> None:
    """In a forked child, before any code of the user's. needed: of the parent's own, by this child."""
    for fd in _own - needed:
        process.close_fd(fd)
    end(_late)
