"""Whether a daemon is still there, for programs and commands that stay as long as it does."""

from servd.daemon.admin_client import AdminClient, RefusedError, UnreachableError
from servd.exceptions import TransportError
from servd.ground.clock import block_for

LOOK_EVERY_S = 0.5
LOOKS = 4
"""So many in a row without an answer mean that a daemon has stopped."""


class StoppedError(TransportError):
    """The daemon that was there has stopped."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address, self.reason = address, reason

    def __str__(self) -> str:
        return (
            f"the daemon at {self.address} has stopped ({self.reason}), and the applications with it: the next `servd start` on "
            "its state directory serves them again"
        )


class Presence:
    """Whether a daemon that was there still is."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self._misses = 0

    def look(self) -> None:
        """To be called every `LOOK_EVERY_S`.

        Raises:
            StoppedError: the daemon has stopped. One that only does not answer at the moment, as while its controller is
                replaced, has not.
        """
        try:
            self._client.probe()
        except UnreachableError as error:
            self._misses += 1
            if self._misses >= LOOKS:
                raise StoppedError(self._client.address, error.reason) from error
            return
        except RefusedError:
            # somebody is there
            pass
        self._misses = 0


def stay(admin: AdminClient | None) -> None:
    """Block until Ctrl-C.

    Args:
        admin: of the daemon that serves; None = this process does.

    Raises:
        ServdError: the daemon has stopped.
    """
    presence = None if admin is None else Presence(admin)
    try:
        while True:
            block_for(LOOK_EVERY_S)
            if presence is not None:
                presence.look()
    except KeyboardInterrupt:
        return
