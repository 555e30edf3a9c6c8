"""How a daemon becomes another edition of servd without ending: its process executes the other program.

How this works: `execv` keeps the process, its children, its locks and those descriptors that are told to stay. What they are
travels in an argument, as JSON. The program comes from a copy that lies in the state directory (`servd.daemon.program`); what is
executed is `_ENTRY`, a text of the edition that hands over: where the other one does not even get to its loop, that text
executes the edition before again, with the reason. Other editions know `servd.daemon.boot.resumed` and `Handover` by their
names: neither may be renamed, and fields of `Handover` are only added, with defaults.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from servd.daemon.keepsake import Keepsake
from servd.daemon.listeners import Listeners
from servd.daemon.unix_sockets import UnixSockets
from servd.ground.keep_alive import KeepAlive
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import Settings

_ENTRY = """
import json, os, sys
place, back, handover = sys.argv[1:]
sys.path.insert(0, place)
try:
    from servd.daemon.boot import resumed
    daemon = resumed(handover, json.loads(back))
except BaseException as error:
    back = json.loads(back)
    if not back:
        raise
    reason = f"{type(error).__name__}: {error}"
    os.execv(back[0], [*back, json.dumps({**json.loads(handover), "error": reason})])
sys.exit(daemon.run())
"""


@dataclass(frozen=True, slots=True)
class Handover:
    """What a daemon leaves to the program that it executes; numbers are descriptors.

    settings: as `settings.Settings` has them, ports resolved. home: directory of the package that programs are copies of.
    edition: the one that shall run; before: the one that ran. error: why `edition` did not come up, "" on the way there.
    lifetime: both ends of the pipe. unix: of each socket, descriptor, device and inode. ports: of the admin and the metrics
    port. listeners: host, port and descriptors. tied_to: what ends the daemon when it is readable. orphans: pid and exit code
    of each that no controller has heard of. dashboard_port: of the settings, beside them because editions before would not take
    settings that they do not know.
    """

    settings: dict[str, Any]
    home: str
    edition: str
    before: str
    lock: int
    lifetime: tuple[int, int]
    unix: tuple[tuple[int, int, int], ...]
    ports: tuple[int | None, ...]
    listeners: tuple[tuple[str, int, tuple[int, ...]], ...]
    keepsake: tuple[int, int]
    tied_to: int | None = None
    orphans: tuple[tuple[int, int], ...] = ()
    error: str = ""
    dashboard_port: int | None = None

    @property
    def text(self) -> str:
        """As it travels."""
        return json.dumps(asdict(self))

    def descriptors(self) -> Iterator[int]:
        """All of them."""
        yield self.lock
        yield from self.lifetime
        yield from (fd for fd, _, _ in self.unix)
        yield from (fd for fd in self.ports if fd is not None)
        yield from (fd for _, _, fds in self.listeners for fd in fds)
        yield from self.keepsake
        if self.tied_to is not None:
            yield self.tied_to


def parse_handover(text: str) -> Handover:
    """What another edition has left; what it says beyond the fields known here is left out.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    values = json.loads(text)
    known = {field.name for field in fields(Handover)}
    return Handover(**{name: value for name, value in values.items() if name in known})


@dataclass(slots=True, eq=False)
class Belongings:
    """What a daemon owns that outlives controllers, and goes on when it becomes another edition.

    ports: sockets of the admin port and of the metrics port, None without one. dashboard: the one for clients of today's Ray
    Serve, which is bound anew when the daemon becomes another edition. lifetime_reader, lifetime_writer: the pipe that
    ends with the daemon. lock: descriptor of the state directory's.
    """

    lock: int
    listeners: Listeners
    unix: UnixSockets
    ports: tuple[socket.socket | None, ...]
    lifetime_reader: Connection
    lifetime_writer: Connection
    keepsake: Keepsake
    tied_to: int | None = None
    dashboard: socket.socket | None = None

    def admin_sockets(self) -> list[socket.socket]:
        """Where the admin API is asked."""
        return [self.unix.sockets[1], *(port for port in (self.ports[0], self.dashboard) if port is not None)]

    def for_controller(self) -> tuple[Any, ...]:
        """What each controller gets, in the order of `controller.main.run`."""
        return (self.lifetime_reader, *self.unix.sockets, *self.ports, self.keepsake, self.dashboard)

    def handed_over(
        self,
        settings: Settings,
        home: str,
        edition: str,
        before: str,
        orphans: Sequence[tuple[int, int]],
        error: str = "",
    ) -> Handover:
        """The form in which they are left to `edition`; see `Handover`."""
        values = asdict(settings)
        return Handover(
            dashboard_port=values.pop("dashboard_port"),
            settings=values,
            home=home,
            edition=edition,
            before=before,
            lock=self.lock,
            lifetime=(self.lifetime_reader.fileno(), self.lifetime_writer.fileno()),
            unix=self.unix.places(),
            ports=tuple(None if port is None else port.fileno() for port in self.ports),
            listeners=self.listeners.places(),
            keepsake=self.keepsake.descriptors,
            tied_to=self.tied_to,
            orphans=tuple(orphans),
            error=error,
        )


def received(handover: Handover, settings: Settings) -> Belongings:
    """What another edition has left, on descriptors of their own: until `close_left` the way back stays open.

    Raises:
        OSError: there are no descriptors for it.
        ValueError: a variable of the environment is none that this servd takes.
    """
    reader, writer = (os.dup(fd) for fd in handover.lifetime)
    first, second = (os.dup(fd) for fd in handover.keepsake)
    return Belongings(
        lock=os.dup(handover.lock),
        listeners=Listeners(
            kept={(host, port): [_socket(fd) for fd in fds] for host, port, fds in handover.listeners},
            keep_alive=KeepAlive.from_environment(),
        ),
        unix=UnixSockets(settings.socket_dir, [(_socket(fd), (device, inode)) for fd, device, inode in handover.unix]),
        ports=tuple(None if fd is None else _socket(fd) for fd in handover.ports),
        lifetime_reader=Connection(reader, writable=False),
        lifetime_writer=Connection(writer, readable=False),
        keepsake=Keepsake((first, second)),
        tied_to=None if handover.tied_to is None else os.dup(handover.tied_to),
    )


def close_left(handover: Handover) -> None:
    """Close the descriptors by which it came, once nothing can go wrong any more."""
    for fd in handover.descriptors():
        os.close(fd)


def _socket(fd: int) -> socket.socket:
    return socket.socket(fileno=os.dup(fd))


def command(place: str, back: Sequence[str] = ()) -> list[str]:
    """Command line, but for the handover, of the daemon whose package lies in `place`.

    Args:
        back: command line, likewise, of the edition before, to be executed where this one does not come up.
    """
    return [sys.executable, "-P", "-c", _ENTRY, place, json.dumps(list(back))]


def execute(line: Sequence[str], handover: Handover) -> NoReturn:
    """Become that program.

    Raises:
        OSError: it cannot be executed; nothing has changed.
    """
    for fd in handover.descriptors():
        os.set_inheritable(fd, True)
    try:
        os.execv(line[0], [*line, handover.text])
    finally:
        for fd in handover.descriptors():
            os.set_inheritable(fd, False)
