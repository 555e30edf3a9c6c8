"""The sockets of a server of gRPC, which the library keeps to itself: closed to new clients, and counted.

How this works: all of the process's descriptors are looked at. The library has no call that ends listening alone.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

_LOOK_S = 0.002
_LOOKS = 250
_LISTEN = "0A"
_TCP_INFO_BYTES = 28
"""Up to the count of connections that nobody has accepted yet, which is what a listening socket has in the place of `unacked`."""


async def stop_listening(port: int) -> None:
    """Take no further connection at a port, once those that wait are accepted; those that there are go on."""
    for _ in range(_LOOKS):
        # what waits when a socket ends is reset
        if not sum(_end_if_empty(sock) for sock in _sockets(port) if _listens(sock)):
            return
        await asyncio.sleep(_LOOK_S)


def others_listen(port: int) -> bool:
    """Whether another process has a listening socket at a port, as far as this one can see."""
    found: set[str] = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with contextlib.suppress(OSError):
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            found |= {row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port}
    own = {str(os.fstat(sock.fileno()).st_ino) for sock in _sockets(port)}
    return bool(found - own)


def connections(port: int) -> int:
    """How many there are at a port."""
    return sum(_is_connected(sock) for sock in _sockets(port))


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _end_if_empty(sock: socket.socket) -> bool:
    """Whether connections wait at a listening socket; it ends if none does."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if int.from_bytes(info[-4:], sys.byteorder):
        return True
    # of the socket itself, whoever else has a descriptor of it
    sock.shutdown(socket.SHUT_RDWR)
    return False


def _sockets(port: int) -> Iterator[socket.socket]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == port:
                    yield sock
