"""Connections that an application has opened before a fork: replicas that share one read each other's answers from it.

How this works: a client of HTTP opens another connection where it finds the one that it has kept at its end, so that is what
each child finds. What others make of an end nobody knows: theirs forbid to fork. A connection is one of HTTP if its port says so,
or if a client of HTTP has it.
"""

import os
import select
import socket
import stat
import sys
from collections.abc import Iterable, Set
from contextlib import closing, suppress
from dataclasses import replace

from servd.ground.quick_dataclass import dataclass
from servd.replica.native.objects import living

HTTP_PORTS = (80, 443)
_HTTP_CLIENTS = (
    # urllib3 2.8 has those of requests and botocore
    ("urllib3.connection", "HTTPConnection", "sock"),
    # httpcore 1.0 has those of httpx
    ("httpcore._backends.sync", "SyncStream", "_sock"),
)
"""Module, class, and where its instances have their socket; tried: they open another at once. (What has a connection of
`http.client` itself fails once.)
"""

_STREAMS = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
_ENDED = select.POLLRDHUP | select.POLLHUP | select.POLLERR
# an application may put a class of its own in that place
_Socket, _socketpair = socket.socket, socket.socketpair
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
    found = [one for fd in sorted(fds) if (one := _connection(fd)) is not None]
    clients = _fds_of_clients() if any(not one.is_http for one in found) else set()
    return [replace(one, is_http=True) if one.fd in clients else one for one in found]


def let_end_in_children(connections: Iterable[Connection]) -> None:
    """To be called in a process that replicas are forked from, before the first."""
    _of_http[:] = [(one.fd, one.inode) for one in connections if one.is_http]


def end_inherited() -> None:
    """In a forked child, before any code of the user's: whoever reads what `let_end_in_children` was told of finds its end."""
    # the parent may have closed it since, and opened something else
    _end(fd for fd, inode in _of_http if _inode(fd) == inode)


def end(fds: Iterable[int]) -> None:
    """As `end_inherited`, of those of these descriptors that are connections."""
    # no descriptor is left: shared is better than nothing
    with suppress(OSError):
        _end(fd for fd in fds if _connection(fd) is not None)


def _end(fds: Iterable[int]) -> None:
    for fd in fds:
        own, other = _socketpair()
        other.close()
        with own:
            os.dup2(own.fileno(), fd, inheritable=False)


def _fds_of_clients() -> set[int]:
    """Descriptors that clients of HTTP have."""
    found = set()
    for module, name, attribute in _HTTP_CLIENTS:
        kind = getattr(sys.modules.get(module), name, None)
        for client in living(kind) if isinstance(kind, type) else ():
            # none yet, closed, or whatever a class of the application's raises
            with suppress(Exception):
                found.add(getattr(client, attribute).fileno())
    return found


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
