"""The sockets of the admin plane, light enough to have before the server that answers on them."""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Sequence

from servd.exceptions import StateError


def bind_unix(path: str) -> socket.socket:
    """A listening Unix socket of mode 0600; a stale one of the same name is replaced.

    Raises:
        StateError: something else lies there, or the path is too long.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StateError(f"{path} exists and is no socket")
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # the directory is private: nobody can connect before the mode is set
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise StateError(f"cannot listen on {path}: {error}") from error
    listener.setblocking(False)
    return listener


async def first_connection(sockets: Sequence[socket.socket], wanted: asyncio.Event) -> None:
    """Wait until a client waits on one of these listening sockets, who is left to be accepted, or `wanted` is set."""
    loop = asyncio.get_running_loop()
    for listener in sockets:
        loop.add_reader(listener.fileno(), wanted.set)
    try:
        await wanted.wait()
    finally:
        for listener in sockets:
            loop.remove_reader(listener.fileno())
