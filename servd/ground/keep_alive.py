"""Keep-alive probes: the kernel asks clients that are silent whether their host is still there."""

import socket
from typing import Self

from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import variable

_MOST_S = 32_767
_MOST_PROBES = 127


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """after_s: a client's host has been silent for so long when the first probe is sent; 0 = none is, and nobody looks. every_s:
    between two. probes: as many without an answer end the connection. Whole seconds.
    """

    after_s: int = 30
    every_s: int = 10
    probes: int = 3

    @classmethod
    def from_environment(cls) -> Self:
        """`SERVD_HTTP_PROBE_AFTER_S`, `..._PROBE_EVERY_S` and `..._PROBES`.

        Raises:
            ValueError: one of them is no whole number, or none that Linux takes.
        """
        found = cls(
            after_s=int(variable("HTTP_PROBE_AFTER_S", "30")),
            every_s=int(variable("HTTP_PROBE_EVERY_S", "10")),
            probes=int(variable("HTTP_PROBES", "3")),
        )
        shown = (
            f"SERVD_HTTP_PROBE_AFTER_S={found.after_s}, SERVD_HTTP_PROBE_EVERY_S={found.every_s}, "
            f"SERVD_HTTP_PROBES={found.probes}"
        )
        if found.after_s < 0 or min(found.every_s, found.probes) < 1:
            raise ValueError(f"keep-alive probes need at least one, a second apart: {shown}")
        if max(found.after_s, found.every_s) > _MOST_S or found.probes > _MOST_PROBES:
            raise ValueError(f"Linux takes {_MOST_S} s and {_MOST_PROBES} keep-alive probes at most: {shown}")
        return found

    @property
    def last_probe_s(self) -> int:
        """How long a host has been silent when it is asked for the last time."""
        return self.after_s + self.every_s * (self.probes - 1)

    def put_on(self, sock: socket.socket) -> None:
        """Let the kernel send them. What a listening socket is told before a client comes, its accepted sockets know."""
        if self.after_s:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self.after_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, self.every_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, self.probes)
