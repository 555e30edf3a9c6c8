"""The sockets of a server of gRPC, which the library keeps to itself: closed to new clients, and counted.

How this works: all of the process's descriptors are looked at, once for each question. The library has no call that ends
listening alone.
"""

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import stat
import sys
from collections.abc import Iterator

_LOOK_S = 0.002
_LOOKS = 250
_LISTEN = "0A"
_TCP_INFO_BYTES = 28
"""Up to the count of connections that nobody has accepted yet, which is what a listening socket has in the place of `unacked`."""


async def stop_listening(port: int) -> None:
    """Take no further connection at a port, once those that wait are accepted; those that there are go on.

    Raises:
        OSError: no descriptor is left to look with.
    """
    with contextlib.ExitStack() as held:
        # `sock.dup` would let the library wait in it, which shares all but the number
        listening = (os.dup(sock.fileno()) for sock in _sockets(port) if _listens(sock))
        waiting = [held.enter_context(socket.socket(fileno=fd)) for fd in listening]
        for _ in range(_LOOKS):
            # what waits when a socket ends is reset
            waiting = [sock for sock in waiting if not _ended(sock)]
            if not waiting:
                return
            await asyncio.sleep(_LOOK_S)


def listeners(port: int) -> set[str]:
    """Listening sockets that this process has at a port, as the kernel numbers them.

    Raises:
        OSError: no descriptor is left to look with.
    """
    return {str(os.fstat(sock.fileno()).st_ino) for sock in _sockets(port) if _listens(sock)}


def others_listen(port: int, own: set[str]) -> bool:
    """Whether another process has a listening socket at a port, as far as this one can see. own: its `listeners`."""
    found: set[str] = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with contextlib.suppress(OSError), open(table, encoding="ascii") as file:
            next(file, "")
            # the kernel names those that listen first, and thousands of others after them
            rows = itertools.takewhile(lambda row: row[3] == _LISTEN, map(str.split, file))
            found |= {row[9] for row in rows if int(row[1].rpartition(":")[2], 16) == port}
    return bool(found - own)


class Connections:
    """The connections at a port when this was made: looking at all descriptors again and again would take most of a core.

    Raises:
        OSError: no descriptor is left to look with.
    """

    def __init__(self, port: int) -> None:
        self._inodes = {fd: os.fstat(sock.fileno()).st_ino for fd, sock in _numbered(port) if _is_connected(sock)}

    def __repr__(self) -> str:
        return f"Connections({len(self._inodes)})"

    def left(self) -> int:
        """How many of them are still there."""
        self._inodes = {fd: inode for fd, inode in self._inodes.items() if _inode(fd) == inode}
        return len(self._inodes)


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _ended(sock: socket.socket) -> bool:
    """Whether no connection waits at a listening socket, which has ended then."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if int.from_bytes(info[-4:], sys.byteorder):
        return False
    # of the socket itself, whoever else has a descriptor of it
    sock.shutdown(socket.SHUT_RDWR)
    return True


def _sockets(port: int) -> Iterator[socket.socket]:
    return (sock for _, sock in _numbered(port))


def _numbered(port: int) -> Iterator[tuple[int, socket.socket]]:
    """Descriptors that are sockets at a port, each with one that holds it while it is looked at."""
    for name in os.listdir("/proc/self/fd"):
        if (sock := _held(int(name))) is not None:
            with sock:
                if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == port:
                    yield int(name), sock


def _held(fd: int) -> socket.socket | None:
    """A second descriptor of what is a socket. Others open and close meanwhile."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return None
        copy = os.dup(fd)
    except OSError as error:
        if error.errno == errno.EBADF:
            return None
        raise
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
