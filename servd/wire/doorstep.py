"""Where callers come to a fork server, and to a replica: this one is open while it has descriptors for them."""

import logging
import os
import socket
from contextlib import suppress

from servd.ground.host_limits import count_descriptors_left, no_descriptor
from servd.ground.settings import is_private_dir
from servd.wire.began import closed_path

SPARE_DESCRIPTORS = 8
"""While no more are left, new callers wait."""
_BACKLOG = 8

logger = logging.getLogger(__name__)


class Doorstep:
    """A replica's address, which bears another name while user code has taken nearly all descriptors.

    ZeroMQ ends the process that has none for one who connects. Those who are connected are served on; others try again.
    """

    def __init__(self, address: str) -> None:
        self._path = address.removeprefix("ipc://")
        self._is_path = self._path != address
        self._away = closed_path(address)
        self._was_closed = False

    def __repr__(self) -> str:
        return f"Doorstep({self._path}{', closed' if self.is_closed else ''})"

    @property
    def is_closed(self) -> bool:
        """Nobody can come."""
        # somebody may have removed it meanwhile; that it is closed is nobody else's doing
        return self._was_closed and os.path.lexists(self._away)

    @property
    def is_gone(self) -> bool:
        """Somebody has removed it, and its directory can take another."""
        is_there = not self._is_path or self.is_closed or os.path.lexists(self._path)
        return not is_there and is_private_dir(os.path.dirname(self._path))

    def look(self) -> None:
        """Close or open it as the number of free descriptors is now."""
        is_closed = self.is_closed
        is_short = count_descriptors_left() <= SPARE_DESCRIPTORS * (2 if is_closed else 1)
        if is_short == is_closed:
            return
        try:
            os.rename(*((self._path, self._away) if is_short else (self._away, self._path)))
        except OSError:
            # not bound yet, or removed by somebody
            return
        self._was_closed = is_short
        logger.warning("descriptors_%s", f"short reason={no_descriptor()}" if is_short else "free_again")


def listen(path: str) -> socket.socket:
    """A Unix socket that listens there, in the place of one that is left.

    Raises:
        OSError: there is no descriptor, or no room, for it.
    """
    # first of all: where there is no descriptor for a new one, the old one stays
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        unlink(path)
        listener.bind(path)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def unlink(path: str) -> None:
    """Remove the socket there, if there is one."""
    with suppress(FileNotFoundError):
        os.unlink(path)
