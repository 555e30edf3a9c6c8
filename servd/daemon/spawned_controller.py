"""Start a controller."""

import multiprocessing
import signal
import socket
from typing import Any

from servd.exceptions import HostLimitError
from servd.ground import entry
from servd.ground.edition import stamp
from servd.ground.host_limits import told
from servd.ground.settings import Settings


def spawned_controller(settings: Settings, lifetime: Any, *kept: Any) -> tuple[Any, socket.socket]:
    """The process of a controller, and the daemon's end of the line to it.

    Args:
        lifetime: the pipe that ends with the daemon.
        kept: sockets of the socket directory, those of the admin and the metrics port, what the controller before has left, the
            socket for clients of today's Ray Serve.

    Raises:
        HostLimitError: no process or no descriptor is left. Nothing was begun then.
    """
    try:
        return _spawned(settings, lifetime, kept)
    except OSError as error:
        raise HostLimitError(f"the controller cannot be started: {told(error, at_fork=True)}") from error


def _spawned(settings: Settings, lifetime: Any, kept: tuple[Any, ...]) -> tuple[Any, socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        context = multiprocessing.get_context("spawn")
        arguments = (stamp(), "servd.controller.main:run", settings, lifetime, theirs, *kept)
        process = context.Process(target=entry.call, args=arguments, name="controller")
        # an ignored signal stays ignored in the child: Ctrl-C must not end it before its first line
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        except OSError:
            ours.close()
            raise
        finally:
            signal.signal(signal.SIGINT, handler)
    ours.settimeout(5.0)
    return process, ours
