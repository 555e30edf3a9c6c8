"""This process's connection to a running daemon: its admin API, and the line that handles use."""

import logging
import os
from collections.abc import Callable
from typing import Any

from servd.calls.driver_line import DriverLine
from servd.calls.process import Process, installed_process
from servd.calls.replica_context import refuse_in_template
from servd.daemon.admin_client import ADDRESS_VARIABLES, AdminClient, UnreachableError, find_address
from servd.daemon.launch import TiedDaemon
from servd.exceptions import ServdError
from servd.ground.settings import admin_socket, default_state_dir, socket_dir_of

NOT_RUNNING = "Serve is not running; start it with `servd.start()`, `servd.run(...)` or `servd start`"

logger = logging.getLogger(__name__)


class Connection:
    """One per process; made by `find`, or by whoever started the daemon and gives it to `install`.

    Args:
        admin: of the daemon.
        daemon: the one that this process started, if it did.
    """

    def __init__(self, admin: AdminClient, daemon: TiedDaemon | None = None) -> None:
        self.admin = admin
        self._daemon = daemon
        self._pid = os.getpid()
        self._line: DriverLine | None = None
        self.is_closed = False
        self.after_shutdown: Callable[[], None] | None = None
        """Called in the place of `close` when `servd.shutdown()` has deleted everything: makes Serve run again."""

    def __repr__(self) -> str:
        return f"Connection({self.admin.address}{', closed' if self.is_closed else ''})"

    @property
    def owns_daemon(self) -> bool:
        """Whether this process started the daemon, and ends it."""
        return self._daemon is not None and not self.is_closed and self.is_of_this_process

    @property
    def is_of_this_process(self) -> bool:
        """Whether it was made here, not in the process that this one was forked from."""
        return self._pid == os.getpid()

    def status(self, seen: int | None = None, timeout_s: float = 0.0) -> dict[str, Any]:
        """The daemon's status as `/api/servd/v1/status` gives it.

        Raises:
            ServdError: after `close`, or the daemon is gone.
        """
        if self.is_closed:
            raise ServdError("this client was shut down; get another with `get_global_client()`")
        return self.admin.status(seen, timeout_s)

    def open_line(self) -> None:
        """Let the handles of this process reach deployments."""
        if installed_process() is not None and (self._line is None or self._line.is_running):
            return
        if not self.admin.is_unix:
            raise ServdError(f"handles need the daemon on this host: {self.admin.address} is not its Unix socket")
        self._line = DriverLine(os.path.dirname(self.admin.address.removeprefix("unix://")))

    def close(self) -> None:
        """End the line, and the daemon if this process started it; the applications of other daemons stay."""
        global _connection
        self.is_closed = True
        if _connection is self:
            _connection = None
        if self._line is not None:
            self._line.close()
        if self._daemon is not None:
            self._daemon.close()


_connection: Connection | None = None


def install(connection: Connection) -> None:
    """Make this the process's connection."""
    global _connection
    _connection = connection


def current() -> Connection | None:
    """The connection that this process has, without looking for a daemon; None where it has none."""
    return _connection


def leave() -> None:
    """End this process's connection to a daemon that others started, if it has one; that goes on.

    Raises:
        ServdError: this process has started one itself, or is a replica.
    """
    if _connection is None and installed_process() is not None:
        raise ServdError("code in a replica belongs to its own daemon: no other can be started for it")
    if _connection is not None and _connection.owns_daemon:
        raise ServdError("this process has started a daemon already: `servd.shutdown()` ends it")
    if _connection is not None:
        _connection.close()


def find() -> Connection | None:
    """This process's connection to a daemon that answers; None when there is no daemon.

    Raises:
        ServdError: this process makes the instance of a deployment that preloads.
    """
    refuse_in_template("calling a handle or using the client")
    if _connection is not None and not _connection.is_closed:
        try:
            _connection.status()
            return _connection
        except UnreachableError:
            _connection.close()
    admin = AdminClient(_address())
    try:
        admin.probe()
    except UnreachableError:
        return None
    install(Connection(admin))
    return _connection


def _address() -> str:
    """Where this process looks for a daemon: never at the default port, where somebody else's may be."""
    here = installed_process()
    if here is not None and here.socket_dir:
        return f"unix://{admin_socket(here.socket_dir)}"
    if any(os.environ.get(name) for name in ADDRESS_VARIABLES):
        return find_address()
    return f"unix://{admin_socket(socket_dir_of(default_state_dir()))}"


def connect() -> Connection:
    """This process's connection, ready for handles.

    Raises:
        ServdError: Serve is not running, or this process makes the instance of a deployment that preloads.
    """
    connection = find()
    if connection is None or not connection.status()["running"]:
        raise ServdError(NOT_RUNNING)
    connection.open_line()
    return connection


def connected_process() -> Process:
    """How handles of this process reach deployments, after `connect`.

    Raises:
        ServdError: Serve is not running.
    """
    connect()
    process = installed_process()
    if process is None:
        raise ServdError("this process has no connection to servd")
    return process
