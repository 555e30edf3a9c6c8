"""The daemon's Unix sockets: bound once, handed to each controller in turn, and bound anew where somebody removed them.

A killed controller leaves a socket that still listens: who connects meanwhile waits for the next one. That holds also
where nothing can be bound any more, as in a directory that became read-only.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Sequence

from servd.exceptions import StateError
from servd.ground.host_limits import told
from servd.ground.settings import admin_socket, control_socket, make_private_dir

_BACKLOG = 1024


def bind_unix(path: str) -> socket.socket:
    """A listening Unix socket of mode 0600; a stale one of the same name is replaced.

    Raises:
        StateError: something else lies there, the path is too long, or the directory takes no file.
    """
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise StateError(f"cannot listen on {path}: {told(error)}") from error
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise StateError(f"{path} exists and is no socket")
            os.unlink(path)
        # the directory is private: nobody can connect before the mode is set
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StateError(f"cannot listen on {path}: {error}") from error
    except StateError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def place_of(path: str) -> tuple[int, int] | None:
    """Device and inode of what lies there; None if nothing does."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class UnixSockets:
    """The control endpoint and the admin API's socket in a socket directory.

    Args:
        kept: of each, the socket that is bound already, with device and inode of its place.

    Raises:
        StateError: one of them cannot be bound.
    """

    def __init__(self, socket_dir: str, kept: Sequence[tuple[socket.socket, tuple[int, int]]] | None = None) -> None:
        self._directory = socket_dir
        self._paths = (control_socket(socket_dir), admin_socket(socket_dir))
        self._sockets = [bind_unix(path) for path in self._paths] if kept is None else [bound for bound, _ in kept]
        kept_places = [] if kept is None else [place for _, place in kept]
        self._places: list[tuple[int, int] | None] = [*kept_places] or [place_of(path) for path in self._paths]
        self.trouble = ""

    def __repr__(self) -> str:
        return f"UnixSockets({self._directory}{', ' if self.trouble else ''}{self.trouble})"

    @property
    def sockets(self) -> tuple[socket.socket, socket.socket]:
        """The control endpoint's and the admin API's."""
        control, admin = self._sockets
        return control, admin

    def places(self) -> tuple[tuple[int, int, int], ...]:
        """Of each, its descriptor, and device and inode of its place, -1 where it has none."""
        pairs = zip(self._sockets, self._places, strict=True)
        return tuple((bound.fileno(), *(place or (-1, -1))) for bound, place in pairs)

    def tend(self) -> bool:
        """Bind anew what is no longer where it was bound; whether anything was. `trouble` says why it could not be."""
        missing = [number for number, path in enumerate(self._paths) if place_of(path) != self._places[number]]
        self.trouble = ""
        if not missing:
            return False
        try:
            make_private_dir(self._directory)
            for number in missing:
                fresh = bind_unix(self._paths[number])
                self._sockets[number].close()
                self._sockets[number] = fresh
                self._places[number] = place_of(self._paths[number])
        except StateError as error:
            self.trouble = str(error)
            return False
        return True
