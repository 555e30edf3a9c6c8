"""By what a process wakes itself up, made before a fork: pipes and pairs of sockets with both ends here, and counters (eventfd).

How this works: an event loop that an application has made waits for the end of such a line, and a thread writes to it when
there is news for the loop. Of replicas that share one, whichever looks first takes the news, and the one whose news it was waits
for ever. So each child makes them anew, under the same numbers, with what was in them. What a program that the application
has started holds too leads to that program, and stays.
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Sequence, Set

from servd.ground.quick_dataclass import dataclass
from servd.replica.native.descriptor_links import held_by_children, info_of, link_of

COUNTER = "anon_inode:[eventfd]"
_PIPE, _SOCKET = "pipe:[", "socket:["
_MOST_BYTES = 1 << 20
_NONBLOCK = 2
"""SPLICE_F_NONBLOCK."""
_LARGEST_COUNT = (1 << 32) - 1
_NETLINK_SOCK_DIAG, _BY_FAMILY, _SHOW_PEER, _ATTRIBUTE_PEER = 4, 20, 4, 2
_ANY = 0xFFFFFFFF
_ANSWER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ABOUT_BYTES = 16
"""Of a Unix socket, in the kernel's answer before its attributes."""
# an application may put a class of its own in that place
_Socket, _socketpair = socket.socket, socket.socketpair


@dataclass(frozen=True, slots=True)
class _End:
    """link: as the kernel names what is behind these descriptors."""

    fds: tuple[int, ...]
    link: str

    def still_open(self) -> list[int]:
        """Those that are what they were: the parent may have closed one since, and opened something else."""
        return [fd for fd in self.fds if link_of(fd) == self.link]


_pipes: list[tuple[_End, _End]] = []
"""What is read from, what is written to."""
_pairs: list[tuple[_End, _End]] = []
_counters: list[_End] = []


def note_wakers(fds: Set[int]) -> None:
    """To be called in a process that replicas are forked from, before the first. fds: that the application has opened."""
    links: dict[str, list[int]] = {}
    for fd in sorted(fds):
        if (link := link_of(fd)).startswith((_PIPE, _SOCKET, COUNTER)):
            links.setdefault(link, []).append(fd)
    if links:
        for link in held_by_children() - {COUNTER}:
            links.pop(link, None)
    _pipes[:] = [ends for link, found in links.items() if link.startswith(_PIPE) and (ends := _pipe(link, found))]
    _pairs[:] = _socket_pairs({link: found for link, found in links.items() if link.startswith(_SOCKET)})
    counters: dict[str, list[int]] = {}
    for fd in links.get(COUNTER, ()):
        counters.setdefault(info_of(fd).get("eventfd-id", str(fd)), []).append(fd)
    _counters[:] = [_End(tuple(same), COUNTER) for same in counters.values()]


def renew_wakers() -> None:
    """In a forked child, before any code of the user's: what `note_wakers` found is this process's own."""
    # no descriptor is left: shared is better than nothing
    for reads, writes in _pipes:
        with contextlib.suppress(OSError):
            _renew_pipe(reads.still_open(), writes.still_open())
    for one, other in _pairs:
        with contextlib.suppress(OSError):
            _renew_pair(one.still_open(), other.still_open())
    for counter in _counters:
        with contextlib.suppress(OSError):
            _renew_counter(counter.still_open())


def put_in_place(new: int, fds: Sequence[int]) -> None:
    """Let these descriptors lead to what `new` leads to, with the flags that they have; `new` is closed."""
    try:
        if fds:
            fcntl.fcntl(new, fcntl.F_SETFL, fcntl.fcntl(fds[0], fcntl.F_GETFL))
        for fd in fds:
            os.dup2(new, fd, inheritable=os.get_inheritable(fd))
    finally:
        os.close(new)


def _pipe(link: str, fds: Sequence[int]) -> tuple[_End, _End] | None:
    modes = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for fd in fds}
    reads, writes = (tuple(fd for fd in fds if modes[fd] == mode) for mode in (os.O_RDONLY, os.O_WRONLY))
    # opened for both by way of /proc: whatever that is, it is no line from here to here
    is_whole = reads and writes and len(reads) + len(writes) == len(fds)
    return (_End(reads, link), _End(writes, link)) if is_whole else None


def _socket_pairs(links: dict[str, list[int]]) -> list[tuple[_End, _End]]:
    unnamed = {int(link[len(_SOCKET) : -1]): link for link, fds in links.items() if _is_unnamed(fds[0])}
    if len(unnamed) < 2:
        return []
    peers = _peers(list(unnamed))
    return [
        (_End(tuple(links[unnamed[one]]), unnamed[one]), _End(tuple(links[unnamed[other]]), unnamed[other]))
        for one, other in peers.items()
        if one < other and peers.get(other) == one
    ]


def _is_unnamed(fd: int) -> bool:
    """Whether it is a connected stream to a Unix socket, and neither end has an address."""
    try:
        with _Socket(fileno=os.dup(fd)) as sock:
            is_stream = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
            return is_stream and not sock.getpeername() and not sock.getsockname()
    except OSError:
        return False


def _peers(inodes: Sequence[int]) -> dict[int, int]:
    """Numbers of Unix sockets and of those at their other ends; empty where the kernel does not say."""
    found: dict[int, int] = {}
    try:
        with _Socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(0.5)
            for inode in inodes:
                body = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _ANY, inode, _SHOW_PEER, _ANY, _ANY)
                kernel.sendto(_ANSWER.pack(_ANSWER.size + len(body), _BY_FAMILY, 1, 0, 0) + body, (0, 0))
                if peer := _peer_in(kernel.recv(4096)):
                    found[inode] = peer
    except OSError:
        return {}
    return found


def _peer_in(answer: bytes) -> int:
    """0 if it is not said."""
    length, kind, *_ = _ANSWER.unpack_from(answer)
    place = _ANSWER.size + _ABOUT_BYTES
    while kind == _BY_FAMILY and place + _ATTRIBUTE.size < length:
        size, attribute = _ATTRIBUTE.unpack_from(answer, place)
        if attribute == _ATTRIBUTE_PEER:
            return int.from_bytes(answer[place + _ATTRIBUTE.size : place + size], "little")
        place += max(_ATTRIBUTE.size, (size + 3) & ~3)
    return 0


def _renew_pipe(reads: list[int], writes: list[int]) -> None:
    if not reads or not writes:
        return
    there, here = os.pipe()
    with contextlib.suppress(AttributeError):
        # copies; where the C library has no such call, what was in it is lost
        ctypes.CDLL(None).tee(reads[0], here, _MOST_BYTES, _NONBLOCK)
    put_in_place(there, reads)
    put_in_place(here, writes)


def _renew_pair(ones: list[int], others: list[int]) -> None:
    if not ones or not others:
        return
    one, other = _socketpair()
    for fd, far_end in ((ones[0], other), (others[0], one)):
        with contextlib.suppress(BlockingIOError), _Socket(fileno=os.dup(fd)) as old:
            far_end.send(old.recv(_MOST_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT), socket.MSG_DONTWAIT)
    put_in_place(one.detach(), ones)
    put_in_place(other.detach(), others)


def _renew_counter(fds: list[int]) -> None:
    about = info_of(fds[0]) if fds else {}
    count = int(about.get("eventfd-count", "0"), 16)
    if not fds or count > _LARGEST_COUNT:
        return
    is_semaphore = about.get("eventfd-semaphore", "0") != "0"
    put_in_place(os.eventfd(count, os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if is_semaphore else 0)), fds)
