"""News for the service manager that started this process (systemd's `Type=notify`)."""

import os
import socket

VARIABLE = "NOTIFY_SOCKET"


class ServiceNotice:
    """Tells the service manager; does nothing where there is none. Takes the variable away: children are no main process."""

    def __init__(self) -> None:
        self._address = os.environ.pop(VARIABLE, "")

    def ready(self, status: str) -> None:
        """It serves (again). status: a line for people."""
        self._tell("READY=1", f"STATUS={' '.join(status.split())}")

    def reloading(self, now: float) -> None:
        """It reads its files again; `ready` follows. now: monotonic seconds."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={int(now * 1e6)}")

    def stopping(self) -> None:
        """It ends."""
        self._tell("STOPPING=1")

    def leave_word(self) -> None:
        """Leave the address to the program that this process is about to execute."""
        if self._address:
            os.environ[VARIABLE] = self._address

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        # an abstract name is written with @ for its leading NUL
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notice:
                notice.connect(address)
                notice.sendall("\n".join(lines).encode())
        except OSError:
            # a manager that does not listen is no reason to fail
            pass
