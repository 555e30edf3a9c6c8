"""What an HTTP/1.1 connection does with its socket while a replica writes a body to the client itself (`wire/lending.py`)."""

import contextlib
import os
import socket
from typing import Any

from servd.proxy.http1_answer import HttpAnswering
from servd.proxy.http1_rules import outlives_client
from servd.proxy.listener import Listener
from servd.wire.records import LENDS


class HttpLending(HttpAnswering):
    """Lends the connection to the replica that answers, for one body at a time.

    The connection stays here: reading goes on, limits hold, and whoever has left is noticed. Nothing is written meanwhile, since
    only what a replica sends is, and it sends nothing until it has given back.
    """

    __slots__ = ("_is_asked", "_is_lent", "_lends", "_tail")

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._is_asked = self._is_lent = False
        self._lends = 0
        self._tail: tuple[Any, ...] = ()

    def _allow_lending(self) -> None:
        # a replica cannot speak TLS to a client
        self._lends = 0 if self._transport.get_extra_info("sslcontext") is not None else LENDS

    def on_head(self, status: int, block: bytes) -> None:
        self._is_asked = self._is_lent = False
        super().on_head(status, block)

    def on_ask(self) -> None:
        is_framed = (self._is_chunked or self._body_left is not None) and not self._is_mute
        if is_framed and not self._transport.is_closing() and not outlives_client(self._tail[3]):
            self._is_asked = True
            # what this turn writes leaves at its end
            self._loop.call_soon(self._lend, self.call_id)
        elif self.peer is not None:
            self.peer.keep(self)

    def on_back(self, size: int) -> None:
        self._is_asked = self._is_lent = False
        self._sent_bytes += size
        if self._body_left is not None:
            self._body_left -= size

    def on_end(self, error: str | None) -> None:
        # a replica gives back before it ends: what it goes on to write would be read as the next answer
        super().on_end("the connection was not given back" if error is None and self._is_lent else error)

    def _lend(self, call_id: int) -> None:
        peer = self.peer
        if peer is None or not self._is_asked or self.call_id != call_id or self._transport.is_closing():
            return
        self._is_asked = False
        # a client that has not taken the head yet reads slowly: the body would wait behind it here
        is_free = not self._transport.get_write_buffer_size()
        if is_free and peer.lend(self, self._transport.get_extra_info("socket").fileno(), self._body_left):
            self._is_lent = True
        else:
            peer.keep(self)

    def _cut(self) -> None:
        if self._is_lent:
            # whoever has it too may not know yet; this ends it for all
            self._is_lent = False
            with contextlib.suppress(OSError):
                with socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as shared:
                    shared.shutdown(socket.SHUT_RDWR)
        super()._cut()
