"""Who is at the other end of a Unix socket, as the kernel knows it. Standard library only."""

import socket
import struct

_CREDENTIALS = struct.Struct("3i")


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """pid and uid of the process that connected (for a socket pair: that made it); true also after it has gone."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def listener_of(path: str) -> int | None:
    """pid of the process that listens at a path, as it was when it began to; 0 if it cannot be told, None if none does."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
            knock.setblocking(False)
            knock.connect(path)
            return peer_credentials(knock)[0]
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except OSError:
        return 0
