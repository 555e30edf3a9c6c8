"""Who is at the other end of a Unix socket, as the kernel knows it. Standard library only."""

import socket
import struct

_CREDENTIALS = struct.Struct("3i")


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """pid and uid of the process that connected (for a socket pair: that made it); true also after it has gone."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid
