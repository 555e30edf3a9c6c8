"""Connections that an application has opened before a fork: replicas that share one read each other's answers from it.

How this works: a client of HTTP opens another connection where it finds the one that it has kept at its end, so that is what
each child finds. What others make of an end nobody knows: theirs forbid to fork.
"""

import os
import select
import socket
import stat
from collections.abc import Iterable, Set
from contextlib import closing

from servd.ground.quick_dataclass import dataclass

HTTP_PORTS = (80, 443)

_STREAMS = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
_ENDED = select.POLLRDHUP | select.POLLHUP | select.POLLERR
# an application may put a class of its own in that place
_Socket = socket.socket
_poll = select.poll

_of_http: list[tuple[int, int]] = []
"""Descriptors, and the kernel's numbers of the sockets behind them."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One that is open at both ends. peer: where it leads, for people. inode: the kernel's number of the socket."""

    fd: int
    inode: int
    peer: str
    is_http: bool = False


def open_connections(fds: Set[int]) -> list[Connection]:
    """Those of these descriptors that lead to an address, in order.

    Raises:
        OSError: there is no descriptor left to look with.
    """
    return [one for fd in sorted(fds) if (one := _connection(fd)) is not None]


def let_end_in_children(connections: Iterable[Connection]) -> None:
    """To be called in a process that replicas are forked from, before the first."""
    _of_http[:] = [(one.fd, one.inode) for one in connections if one.is_http]


def end_inherited() -> None:
    """In a forked child, before any code of the user's: whoever reads what `let_end_in_children` was told of finds its end."""
    for fd, inode in _of_http:
        # the parent may have closed it since, and opened something else
        if _inode(fd) != inode:
            continue
        own, other = socket.socketpair()
        other.close()
        with own:
            os.dup2(own.fileno(), fd, inheritable=False)


def _connection(fd: int) -> Connection | None:
    inode = _inode(fd)
    if inode is None:
        return None
    with closing(_Socket(fileno=os.dup(fd))) as sock:
        if sock.family not in _FAMILIES or sock.type not in _STREAMS:
            return None
        try:
            address = sock.getpeername()
        except OSError:
            # it listens, or is none yet
            return None
        poller = _poll()
        poller.register(sock, select.POLLRDHUP)
        if any(events & _ENDED for _, events in poller.poll(0)):
            return None
    if sock.family != socket.AF_UNIX:
        host, port = address[:2]
        return Connection(fd, inode, f"{host}:{port}", port in HTTP_PORTS)
    path = os.fsdecode(address)
    # without one it was made or accepted by this process
    return Connection(fd, inode, path.replace("\0", "@", 1)) if path else None


def _inode(fd: int) -> int | None:
    """Of a socket; None of whatever else it is."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else None
