"""The sockets of the admin plane before the server that answers on them is there."""

import asyncio
import socket
from collections.abc import Sequence


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
