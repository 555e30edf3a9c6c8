"""A daemon begins: from its settings, or where another edition of servd left off in the same process."""

import contextlib
import ctypes
import json
import multiprocessing
import multiprocessing.resource_tracker
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from setproctitle import setproctitle

from servd.daemon.directories import empty_socket_dir, make_directories, say, tell_socket_dir
from servd.daemon.keepsake import Keepsake
from servd.daemon.life import Daemon
from servd.daemon.listeners import Listeners
from servd.daemon.program import settle
from servd.daemon.start_check import check_host, check_python
from servd.daemon.state_lock import listening_daemon, lock_state_dir
from servd.daemon.takeover import Belongings, close_left, parse_handover, received
from servd.daemon.unix_sockets import UnixSockets
from servd.exceptions import AlreadyRunningError, ConfigError, ListenError, ServdError
from servd.ground.edition import Stamp, be, own_edition
from servd.ground.keep_alive import KeepAlive
from servd.ground.package import PACKAGE_DIR
from servd.ground.settings import DEFAULT_HTTP_HOST, TIED_OPTION, Settings
from servd.ground.states import ProxyLocation
from servd.wire.daemon_messages import OrphanExited, Upgraded

CRASH_PATIENCE_S = 5.0


def begin(arguments: Sequence[str]) -> int:
    """Be the daemon of a state directory until told to stop; gives the exit code.

    Args:
        arguments: settings as JSON, then perhaps `--tied-to=FD`.
    """
    tied_to = None
    for argument in arguments[1:]:
        tied_to = int(argument.removeprefix(TIED_OPTION))
    try:
        return _started(parse_settings(arguments[0]), tied_to).run()
    except ServdError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def parse_settings(text: str) -> Settings:
    """The settings behind the JSON text that `servd start` hands over."""
    return _settings_of(json.loads(text))


def _settings_of(values: dict[str, Any]) -> Settings:
    return Settings(**{**values, "admin_allowed_hosts": tuple(values.get("admin_allowed_hosts", ()))})


def _dashboard(settings: Settings, listeners: Listeners) -> socket.socket | None:
    """The socket for clients of today's Ray Serve; None where none is wanted, or somebody else has the port."""
    if settings.dashboard_port is None:
        return None
    try:
        return listeners.bind_dashboard(settings.admin_host, settings.dashboard_port)
    except ListenError as error:
        say(
            f"{error}, or 0 for none. All else works: ?dialect=today on the admin port answers as today's Ray Serve does"
        )
        return None


def _started(settings: Settings, tied_to: int | None) -> Daemon:
    check_python()
    check_host(settings.proxies)
    keep_alive = _keep_alive()
    make_directories(settings)
    lock, was_unclean = lock_state_dir(settings.state_dir)
    if (pid := listening_daemon(settings.socket_dir)) is not None:
        # its state directory was deleted, or its lock would be taken; its sockets are not ours to remove
        raise AlreadyRunningError(settings.state_dir, pid)
    empty_socket_dir(settings.socket_dir)
    try:
        unix = UnixSockets(settings.socket_dir)
        listeners = Listeners(CRASH_PATIENCE_S if was_unclean else 0.0, keep_alive=keep_alive)
        admin = listeners.bind_admin(settings.admin_host, settings.admin_port)
        metrics = None if settings.metrics_port is None else listeners.bind_metrics(settings.metrics_port)
        if settings.grpc_port and settings.open_http and settings.http_location != ProxyLocation.NO_SERVER:
            listeners.check_grpc(settings.http_host or DEFAULT_HTTP_HOST, settings.grpc_port)
    except ServdError:
        empty_socket_dir(settings.socket_dir)
        with contextlib.suppress(OSError):
            os.rmdir(settings.socket_dir)
        os.ftruncate(lock, 0)
        raise
    dashboard = _dashboard(settings, listeners)
    settings = replace(
        settings,
        admin_port=admin.getsockname()[1],
        dashboard_port=None if dashboard is None else settings.dashboard_port,
    )
    tell_socket_dir(settings)
    _be_called(settings)
    settle(settings.state_dir)
    lifetime = multiprocessing.Pipe(duplex=False)
    has = Belongings(lock, listeners, unix, (admin, metrics), *lifetime, Keepsake(), tied_to, dashboard)
    return Daemon(settings, has)


def resumed(handover: str, back: Sequence[str]) -> Daemon:
    """The daemon that goes on where another edition left off. Other editions know this function by its name.

    Args:
        handover: what it left, as JSON.
        back: command line of that edition, which takes over again if this one does not come up; empty on its own way back.
    """
    left = parse_handover(handover)
    settings = replace(_settings_of(left.settings), dashboard_port=left.dashboard_port)
    has = received(left, settings)
    # not handed over: an edition that does not know the port would keep it, and let its clients wait for ever
    has.dashboard = _dashboard(settings, has.listeners)
    tell_socket_dir(settings)
    _be_called(settings)
    # every process that is spawned gets these words
    del sys.argv[1:]
    # this package is the copy already
    be(Stamp(own_edition(), PACKAGE_DIR, left.home))
    told = Upgraded(left.edition, left.before, left.error)
    orphans = [OrphanExited(pid, exit_code) for pid, exit_code in left.orphans]
    daemon = Daemon(settings, has, told, back, orphans)
    close_left(left)
    return daemon


def _keep_alive() -> KeepAlive:
    try:
        return KeepAlive.from_environment()
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _be_called(settings: Settings) -> None:
    setproctitle(f"servd: daemon {settings.state_dir}")
    _become_subreaper()
    _forgo_tracker()


def _become_subreaper() -> None:
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _forgo_tracker() -> None:
    """Spare the process that multiprocessing starts beside the first spawned one.

    It cleans up after semaphores and shared memory, and servd has none. What is set here is what every spawned process
    has: a descriptor to write to. Processes with code of the user's forget it, and get a tracker when they need one.
    """
    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    tracker._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
