"""A client's connection while a replica writes the body of one answer to it (`wire/lending.py`)."""

import asyncio
import socket
from collections.abc import Callable

from servd.ground.descendants import hide, show

_Socket = socket.socket
"""User code may put another class in its place, which takes no descriptors, say."""
_NO_SIGNAL = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_MOST_AT_ONCE = 4 * 1024 * 1024
"""A reader that is as fast as its writer must not keep the loop for itself for longer than a millisecond or two."""


def _beginning(pieces: list[memoryview]) -> list[memoryview]:
    """As much of them as may be written at once, from the first byte on without a gap."""
    some, room = [], _MOST_AT_ONCE
    for piece in pieces:
        some.append(piece[:room])
        room -= len(piece)
        if room <= 0:
            break
    return some


class LentSocket:
    """A client's connection while it is lent: where the body of one answer goes.

    written: bytes of the body so far, without what frames them. left: bytes that it still has; None = it goes in chunks.
    """

    __slots__ = ("_is_watched", "_loop", "_socket", "left", "written")

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int, left: int | None) -> None:
        self._loop = loop
        # family and kind are said, not looked up: that would cost three calls. A default time limit of the user's is not for it
        self._socket = _Socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0, descriptor)
        hide(descriptor)
        self._is_watched = False
        self.left = left
        self.written = 0

    def __repr__(self) -> str:
        return f"LentSocket({self.written} bytes written)"

    def frame(self, body: memoryview) -> list[memoryview]:
        """What is to be written for a piece of the body.

        Raises:
            ValueError: the body is longer than was said.
        """
        if self.left is None:
            return [memoryview(b"%x\r\n" % len(body)), body, memoryview(b"\r\n")]
        if len(body) > self.left:
            raise ValueError("the body of the response is longer than its content-length")
        return [body]

    def write_some(self, pieces: list[memoryview]) -> None:
        """Write of a frame what the kernel takes now, and take it off the list.

        Raises:
            OSError: the client is gone.
        """
        try:
            size = self._socket.sendmsg(_beginning(pieces), (), _NO_SIGNAL)
        except BlockingIOError:
            return
        while pieces and size >= len(pieces[0]):
            size -= len(pieces.pop(0))
        if size:
            pieces[0] = pieces[0][size:]

    def count(self, size: int) -> None:
        """A piece of so many bytes is written."""
        self.written += size
        if self.left is not None:
            self.left -= size

    def watch(self, on_ready: Callable[[], None]) -> None:
        """Call when more can be written."""
        self._is_watched = True
        self._loop.add_writer(self._socket, on_ready)

    def unwatch(self) -> None:
        """Call no more."""
        if self._is_watched:
            self._is_watched = False
            self._loop.remove_writer(self._socket)

    def close(self) -> None:
        """Let go of it; the connection stays its owner's. Calling it again does nothing."""
        # before the close: the kernel goes on watching what somebody else has open too
        self.unwatch()
        descriptor = self._socket.fileno()
        if descriptor >= 0:
            show(descriptor)
            self._socket.close()
