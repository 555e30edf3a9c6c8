"""What waits for descriptors (`epoll`), made before a fork: each replica has its own.

How this works: such a set belongs to what the kernel opened, so that replicas which share one hear of each other's descriptors,
and not of their own: what one adds or takes out is there or gone for all. Each child makes it anew, under the same number, when
all that it waits for has been made anew.
"""

import ctypes
import os
import select
import struct
from collections.abc import Iterator, Set
from contextlib import closing, contextmanager, suppress

from servd.ground.quick_dataclass import dataclass
from servd.replica.native.descriptor_links import link_of
from servd.replica.native.wakers import put_in_place

_LINK = "anon_inode:[eventpoll]"
_ADD = 1
_EVENT = struct.Struct("=IQ" if os.uname().machine == "x86_64" else "@IQ")
"""As the kernel takes it: packed on x86-64 alone."""

_found: list[int] = []


@dataclass(frozen=True, slots=True)
class _Member:
    """Of a set. event: what is waited for, and what the application is told then, as the kernel takes them."""

    fd: int
    event: bytes


def note_waiting_sets(fds: Set[int]) -> None:
    """To be called in a process that replicas are forked from, before the first. fds: that the application has opened."""
    _found[:] = [fd for fd in sorted(fds) if link_of(fd) == _LINK]


@contextmanager
def renewed_waiting_sets() -> Iterator[None]:
    """In a forked child, before any code of the user's, around whatever makes other descriptors anew."""
    members = {fd: _members(fd) for fd in _found if link_of(fd) == _LINK}
    yield
    # no descriptor is left: shared is better than nothing
    with suppress(OSError):
        # sets may wait for one another
        for fd in members:
            with closing(select.epoll()) as own:
                put_in_place(os.dup(own.fileno()), [fd])
        for fd, held in members.items():
            for member in held:
                ctypes.CDLL(None).epoll_ctl(fd, _ADD, member.fd, member.event)


def _members(fd: int) -> list[_Member]:
    found = []
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
            lines = [line.replace(":", " ").split() for line in file if line.startswith("tfd:")]
    except OSError:
        return []
    for line in lines:
        about = dict(zip(line[::2], line[1::2], strict=False))
        member = int(about["tfd"])
        if _is(member, about.get("ino")):
            event = _EVENT.pack(int(about["events"], 16), int(about["data"], 16))
            found.append(_Member(member, event))
    return found


def _is(fd: int, inode: str | None) -> bool:
    """Whether a descriptor leads to the file of that number still: whoever closes a copy leaves the other in the set."""
    try:
        return inode is None or os.fstat(fd).st_ino == int(inode, 16)
    except OSError:
        return False
