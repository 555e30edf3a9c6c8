"""A replica reads the rest of a request's body from the client itself (`wire/lending.py`), as its handler takes it."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Protocol

from servd.ground.descendants import hide, show
from servd.wire.lending import LendingDoor
from servd.wire.records import CREDIT, CREDIT_BYTES, TAKEN

_PIECE_BYTES = 256 * 1024
"""Pieces of a body that does not come at once."""


class Lender(Protocol):
    """What is asked of the caller's peer."""

    door: LendingDoor
    key: int

    def send(self, record: tuple[Any, ...]) -> None:
        """Send one record at the end of this turn."""
        ...


class Uploading:
    """One body, whose beginning came with the request.

    At most 1 MiB of it waits for the handler; the rest waits in the kernel, and the client with it. Nothing is read before
    `start`, so that the request can still go elsewhere. What the connection says of its end the caller sees too, and says what
    becomes of the request: whoever finds it here gives back.

    Args:
        descriptor: of the client's connection; closed in the end.
        left: bytes that the body still has. waiting: bytes of its beginning.
        feed: told each piece, and whether more follows.
    """

    __slots__ = ("_call_id", "_feed", "_is_watched", "_left", "_lender", "_loop", "_socket", "_taken", "_waiting")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lender: Lender,
        call_id: int,
        descriptor: int,
        left: int,
        waiting: int,
        feed: Callable[[bytes, bool], None],
    ) -> None:
        self._loop = loop
        self._lender = lender
        self._call_id = call_id
        # family and kind are said, not looked up: that would cost three calls. A default time limit of the user's is not for it
        self._socket: socket.socket | None = socket.socket(
            socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0, descriptor
        )
        hide(descriptor)
        self._left = left
        self._waiting = waiting
        self._feed = feed
        self._taken = 0
        self._is_watched = False

    def __repr__(self) -> str:
        return f"Uploading({self._taken} bytes taken, {self._left} left{'' if self._socket else ', given back'})"

    def start(self) -> None:
        """The handler begins: take what has come."""
        self._read()

    def took(self, size: int) -> bool:
        """The handler took so many bytes; False where the rest comes through the caller, which is to be told instead."""
        self._waiting -= size
        if self._socket is None:
            return not self._left
        if not self._is_watched and self._waiting <= CREDIT_BYTES // 2:
            self._watch()
        return True

    def give_back(self) -> None:
        """Read no more. The caller is told, and reads what is left. Calling it again does nothing."""
        if self._socket is not None:
            self.end()
            self._lender.send((TAKEN, self._call_id, self._taken))

    def end(self) -> None:
        """The caller knows that the request is over: read no more, tell nothing. Calling it again does nothing."""
        if self._socket is not None:
            # before the close: the kernel goes on watching what somebody else has open too
            self._unwatch()
            show(self._socket.fileno())
            self._socket.close()
            self._socket = None
            # see `CallerLink.close`
            self._feed = _nobody_eats

    def _read(self) -> None:
        feed = self._feed
        while self._socket is not None and (room := CREDIT_BYTES - self._waiting) > 0:
            try:
                data = self._socket.recv(min(self._left, room, _PIECE_BYTES), socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._watch()
                return
            except OSError:
                data = b""
            size = len(data)
            if not size:
                self.give_back()
                self._lender.send((CREDIT, self._call_id, CREDIT_BYTES))
                return
            self._taken += size
            self._left -= size
            self._waiting += size
            if not self._left:
                self.give_back()
            feed(data, self._left > 0)
            if self._is_watched:
                # others have their turn before the next piece
                return
        self._unwatch()

    def _watch(self) -> None:
        if not self._is_watched and self._socket is not None:
            self._is_watched = True
            self._loop.add_reader(self._socket, self._read)

    def _unwatch(self) -> None:
        if self._is_watched and self._socket is not None:
            self._is_watched = False
            self._loop.remove_reader(self._socket)


def borrow_body(lender: Lender, call_id: int, waiting: int, feed: Callable[[bytes, bool], None]) -> Uploading | None:
    """What reads the body that was lent with a request; None = it did not arrive, and the caller is told to send it.

    Args:
        waiting: bytes of the body that came with the request.
    """
    lent = lender.door.body(lender.key, call_id)
    if lent is not None:
        return Uploading(asyncio.get_running_loop(), lender, call_id, *lent, waiting, feed)
    lender.send((TAKEN, call_id, 0))
    lender.send((CREDIT, call_id, CREDIT_BYTES - waiting))
    return None


def _nobody_eats(_data: bytes, _more: bool) -> None:
    pass
