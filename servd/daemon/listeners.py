"""The daemon's listening TCP sockets: they outlive proxies and controllers, so no connection is lost between two."""

import errno
import socket

from servd.exceptions import ConfigError, ListenError
from servd.ground.clock import Clock, SystemClock, block_for
from servd.ground.extras import GRPC_MISSING, is_there
from servd.ground.keep_alive import KeepAlive
from servd.ground.settings import DEFAULT_HTTP_HOST

BACKLOG = 4096
METRICS_HOST = "127.0.0.1"
_RETRY_S = 0.05


class Listeners:
    """Reuse-port sockets of the data plane, one per proxy slot, by address.

    patience_s: how long to wait for a taken port, counted from now; for the time after a crash, in which the proxies of
    the daemon before finish. kept: sockets that are open already. keep_alive: for clients of all of them, from the first on.
    """

    def __init__(
        self,
        patience_s: float = 0.0,
        clock: Clock | None = None,
        kept: dict[tuple[str, int], list[socket.socket]] | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._keep_alive = keep_alive or KeepAlive()
        self._patient_until = self._clock.now() + patience_s
        self._sockets = kept or {}
        for listener in (one for slots in self._sockets.values() for one in slots):
            # an older servd left it to the proxies
            self._keep_alive.put_on(listener)

    def __repr__(self) -> str:
        return f"Listeners({ {f'{h}:{p}': len(slots) for (h, p), slots in self._sockets.items()} })"

    def bind_admin(self, host: str, port: int) -> socket.socket:
        """The listening socket of the admin port.

        Raises:
            ListenError: names the address and the option.
        """
        return self._bind(host, port, "--admin-port", reuse_port=False)

    def bind_dashboard(self, host: str, port: int) -> socket.socket:
        """The listening socket for clients of today's Ray Serve; never waits: that the port is taken is ordinary.

        Raises:
            ListenError: names the address and the option.
        """
        try:
            return _listen(host, port, self._keep_alive, reuse_port=False)
        except OSError as error:
            raise ListenError(host, port, (error.strerror or str(error)).lower(), "--dashboard-port") from error

    def bind_metrics(self, port: int) -> socket.socket:
        """The listening socket of the metrics port.

        Raises:
            ListenError: names the address and the option.
        """
        return self._bind(METRICS_HOST, port, "--metrics-port", reuse_port=False)

    def check_grpc(self, host: str, port: int) -> None:
        """See that proxies could take calls of gRPC at an address: they share it by reuse-port, also with a stranger.

        Raises:
            ListenError: names the address and the option.
        """
        self._bind(host, port, "--grpc-port", reuse_port=False).close()

    def open(self, host: str, port: int, slots: int) -> list[socket.socket]:
        """Sockets of an address in slot order: those that are open already, and new ones for further slots.

        Raises:
            ListenError: names the address and the option; nothing was opened then.
        """
        open_already = self._sockets.get((host, port), [])
        found = list(open_already)
        if not found:
            # reuse-port would share the port with a stranger of the same user; a plain bind tells
            self._bind(host, port, "--http-port", reuse_port=False).close()
        try:
            while len(found) < slots:
                found.append(self._bind(host, port, "--http-port", reuse_port=True))
        except ListenError:
            for listener in found[len(open_already) :]:
                listener.close()
            raise
        self._sockets[(host, port)] = found
        return found[:slots]

    def has(self, host: str, port: int) -> bool:
        """Whether sockets of that address are open."""
        return (host, port) in self._sockets

    def places(self) -> tuple[tuple[str, int, tuple[int, ...]], ...]:
        """Host, port and descriptors of every address."""
        found = self._sockets.items()
        return tuple((host, port, tuple(one.fileno() for one in slots)) for (host, port), slots in found)

    def close(self, host: str, port: int) -> None:
        """Close the daemon's copies of an address; proxies may have theirs still."""
        for listener in self._sockets.pop((host, port), []):
            listener.close()

    def _bind(self, host: str, port: int, option: str, *, reuse_port: bool) -> socket.socket:
        if not 0 <= port <= 65535:
            raise ListenError(host, port, "a port is a number from 0 to 65535", option)
        while True:
            try:
                return _listen(host, port, self._keep_alive, reuse_port=reuse_port)
            except OSError as error:
                if self._clock.now() < self._patient_until:
                    block_for(_RETRY_S)
                    continue
                if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                    option = option.replace("-port", "-host")
                raise ListenError(host, port, (error.strerror or str(error)).lower(), option) from error


def check_grpc(host: str, port: int) -> None:
    """See that proxies could take calls of gRPC at an address: they share it by reuse-port, also with a stranger.

    Raises:
        ConfigError: the library is missing.
        ListenError: somebody else listens there.
    """
    if not is_there("grpc"):
        raise ConfigError(f"grpc_options: {GRPC_MISSING}")
    try:
        _listen(host, port, KeepAlive(), reuse_port=False).close()
    except OSError as error:
        raise ListenError(host, port, (error.strerror or str(error)).lower(), "grpc_options.port") from error


def _listen(host: str, port: int, keep_alive: KeepAlive, *, reuse_port: bool) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # before anybody can come: what is told later, those who wait in the queue do not know
        keep_alive.put_on(listener)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def concrete_port(host: str | None, port: int) -> int:
    """`port`, or for 0 one that is free now: each proxy would find another one for itself."""
    if port != 0:
        return port
    host = host or DEFAULT_HTTP_HOST
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ListenError(host, port, (error.strerror or str(error)).lower()) from error
