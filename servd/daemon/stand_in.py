"""What the admin sockets answer while no controller can be started: 503 with the reason, to everybody and at once."""

import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servd.daemon.directories import say
from servd.exceptions import StateError
from servd.ground.clock import Clock

if TYPE_CHECKING:
    from ssl import SSLContext

    from servd.daemon.tls import PolledTls

LIMIT_S = 5.0
"""How long somebody may stay who connects, from then to the end of a request that nobody reads."""
MOST_GUESTS = 32
"""Further ones wait in the kernel's queue."""


@dataclass(slots=True)
class _Guest:
    sock: "socket.socket | PolledTls"
    until: float
    is_answered: bool = False


class StandIn:
    """Answers in the place of a controller. Whatever is asked: it looks at no request.

    Args:
        poll: of the daemon's loop, which tells `handle` what is readable.
        sockets: gives the listening sockets of the admin API; those of today, somebody may have removed the ones before.
        certificate: file of the certificate with which all but Unix sockets speak TLS, and of its key, "" where none does.
    """

    def __init__(
        self,
        poll: select.poll,
        clock: Clock,
        sockets: Callable[[], Sequence[socket.socket]],
        certificate: tuple[str, str] = ("", ""),
    ) -> None:
        self._poll = poll
        self._clock = clock
        self._sockets = sockets
        self._certificate = certificate
        self._tls: SSLContext | None = None
        self._trouble = ""
        self._reason = ""
        self._listening: dict[int, socket.socket] = {}
        self._guests: dict[int, _Guest] = {}

    def __repr__(self) -> str:
        return f"StandIn({self._listening or 'away'}, {len(self._guests)} guests)"

    def begin(self, reason: str) -> None:
        """Tell everybody this from now on, and whoever started the daemon once."""
        if reason != self._reason:
            say(reason)
        self._reason = reason
        self._listen()

    def end(self) -> None:
        """Accept nobody any more: a controller does. Those who are there are answered."""
        self._reason = self._trouble = ""
        # read anew the next time
        self._tls = None
        self._pause()

    def tend(self) -> None:
        """To be called once a second: who stays too long goes, and what failed is tried again."""
        now = self._clock.now()
        for fd, guest in list(self._guests.items()):
            if guest.until <= now:
                self._close(fd)
        if self._reason:
            # others may be there by now, under the same numbers
            self._pause()
            self._listen()

    def handle(self, fd: int) -> None:
        """Something can be read there; nothing is done for a descriptor of somebody else."""
        if (listener := self._listening.get(fd)) is not None:
            self._accept(listener)
        elif (guest := self._guests.get(fd)) is not None:
            self._read(fd, guest)

    def _listen(self) -> None:
        if self._reason and not self._listening and len(self._guests) < MOST_GUESTS:
            for listener in self._sockets():
                if self._speaks_tls(listener) and not self._can_speak_tls():
                    continue
                listener.setblocking(False)
                self._listening[listener.fileno()] = listener
                self._poll.register(listener, select.POLLIN)

    def _speaks_tls(self, listener: socket.socket) -> bool:
        return bool(self._certificate[0]) and listener.family != socket.AF_UNIX

    def _can_speak_tls(self) -> bool:
        if self._tls is None:
            try:
                # here: the daemon needs it for nothing else
                from servd.daemon.tls import server_context

                self._tls = server_context(*self._certificate, "--admin-tls")
            except (ImportError, OSError, StateError) as error:
                # no descriptor is left to read a file, say: `tend` tries it again, and who asks there waits meanwhile
                if str(error) != self._trouble:
                    say(f"nobody is answered over TLS: {error}")
                self._trouble = str(error)
        return self._tls is not None

    def _pause(self) -> None:
        for fd in self._listening:
            # those that were closed meanwhile too: it goes by their numbers
            self._poll.unregister(fd)
        self._listening = {}

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            # no descriptor is left, say: whoever waits is tried again by `tend`, not at once and for ever
            self._pause()
            return
        sock.setblocking(False)
        guest = _Guest(sock, self._clock.now() + LIMIT_S)
        if self._speaks_tls(listener) and self._tls is not None:
            from servd.daemon.tls import PolledTls

            try:
                guest.sock = PolledTls(sock, self._tls)
            except OSError:
                sock.close()
                return
        self._guests[guest.sock.fileno()] = guest
        self._poll.register(guest.sock, select.POLLIN)
        if len(self._guests) >= MOST_GUESTS:
            self._pause()

    def _read(self, fd: int, guest: _Guest) -> None:
        is_over = False
        try:
            # to its end, or the answer would be lost with what was not read
            is_over = not guest.sock.recv(65536)
            if not guest.is_answered and not is_over:
                # not before: some clients take what comes ahead of their request for nonsense
                guest.is_answered = True
                guest.sock.send(_answer(self._reason))
                guest.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            is_over = True
        if is_over:
            self._close(fd)

    def _close(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._guests.pop(fd).sock.close()
        self._listen()


def _answer(reason: str) -> bytes:
    body = f"{reason}, and what runs goes on".encode() if reason else b"a controller is there again: ask once more"
    return (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 1\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
