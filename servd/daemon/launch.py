"""Find the running daemon of a state directory, start one, stop one."""

import contextlib
import http.client
import json
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from servd.daemon.admin_client import UnixConnection
from servd.daemon.directories import make_log_dir
from servd.daemon.printed import LOG_NAME
from servd.daemon.state_lock import running_pid
from servd.exceptions import AlreadyRunningError, DeployError, StateError
from servd.ground.clock import SystemClock, block_for
from servd.ground.settings import (
    DEFAULT_ADMIN_HOST,
    DEFAULT_ADMIN_PORT,
    SPEAKER,
    TIED_OPTION,
    Settings,
    admin_socket,
    make_private_dir,
    variable,
)

READY_LIMIT_S = 60.0
TROUBLE_LIMIT_S = 4.0
"""A daemon that does not serve, and has said why for so long, is given up."""
LINGER = "/var/lib/systemd/linger"
_POLL_S = 0.02


def daemon_command(settings: Settings) -> list[str]:
    """Command line of a daemon with these settings, for `os.execv` or a subprocess."""
    # -P: the current directory is the user's, nothing in it may replace a module of the daemon
    return [sys.executable, "-P", "-m", "servd.daemon.main", json.dumps(asdict(settings))]


def is_answering(socket_dir: str) -> bool:
    """Whether an admin server answers on the Unix socket of that directory."""
    return _status(socket_dir) is not None


def log_out_notice(socket_dir: str, *, runtime_root: str = "/run/user", linger_dir: str = LINGER) -> str:
    """What a log-out does to a daemon in the background, and how to avoid it; "" if it does nothing.

    Args:
        runtime_root: where the system keeps one folder a user, by uid, from the first log-in to the last log-out.
        linger_dir: has a file by the name of each user whose folder stays.
    """
    folder = f"{runtime_root}/{os.getuid()}"
    if not socket_dir.startswith(f"{folder}/") or os.path.exists(f"{linger_dir}/{_user_name()}"):
        return ""
    return (
        f"the sockets lie in {folder}, which the system removes when you log out: what serves goes on, unless the system ends "
        "it too, but nothing that dies is replaced and no command finds the daemon until you log in again. To avoid it: "
        "`loginctl enable-linger`, or run it as a service (`servd systemd-unit`)."
    )


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@dataclass(frozen=True, slots=True)
class DetachedDaemon:
    """A daemon in the background. places: lines for people, where it answers and keeps things."""

    pid: int
    places: tuple[str, ...]


def free_admin_port() -> int:
    """The default port, or any other when that is taken: for daemons that are asked over their Unix sockets anyway."""
    for port in (DEFAULT_ADMIN_PORT, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((DEFAULT_ADMIN_HOST, port))
            return int(probe.getsockname()[1])
    return DEFAULT_ADMIN_PORT


def start_detached(
    settings: Settings, limit_s: float = READY_LIMIT_S, *, log_to_stderr: bool = False
) -> DetachedDaemon:
    """Start a daemon in the background; returns once both planes answer (one with `open_http` off).

    Args:
        log_to_stderr: log lines go to `daemon.log` too.

    Raises:
        AlreadyRunningError: one runs on that state directory; its files are not touched.
        ServdError: it ended at once, with what it said; or it does not answer in time.
    """
    if (pid := running_pid(settings.state_dir)) is not None:
        raise AlreadyRunningError(settings.state_dir, pid)
    make_private_dir(settings.state_dir)
    make_log_dir(settings.log_dir)
    path = Path(settings.log_dir) / LOG_NAME
    with _log_at(path) as log:
        begin = log.tell()
        process = subprocess.Popen(
            daemon_command(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # what servd logs goes to the rotating files; this one gets what is printed
            env={**os.environ, "SERVD_LOG_TO_STDERR": str(int(log_to_stderr))},
        )
    _await_ready(settings, process, limit_s, lambda: _said(path, begin))
    # it is nobody's child from now on: no warning about a running subprocess
    process.returncode = 0
    return DetachedDaemon(process.pid, _places(path, begin))


def _log_at(path: Path) -> BinaryIO:
    """What a daemon in the background prints to; logs are expendable."""
    try:
        return open(path, "ab")
    except OSError:
        return open(os.devnull, "ab")


class TiedDaemon:
    """A daemon that lives as long as this process, or until `close()`."""

    def __init__(self, process: subprocess.Popen[bytes], tie: int) -> None:
        self._process = process
        self._tie = tie

    @property
    def pid(self) -> int:
        """The daemon's pid."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """It has not ended yet, whoever might end it."""
        return self._process.poll() is None

    def close(self) -> None:
        """Stop it as SIGTERM does and wait until it is gone."""
        if self._tie >= 0:
            os.close(self._tie)
            self._tie = -1
        self._process.wait()

    def __enter__(self) -> "TiedDaemon":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_tied(settings: Settings, limit_s: float = READY_LIMIT_S, *, log_to_stderr: bool = False) -> TiedDaemon:
    """Start a daemon that ends with the calling process, however that ends.

    Its output goes where the caller's goes. A forked child of the caller that lives on keeps the daemon alive.

    Args:
        log_to_stderr: all log lines too, and not only what the caller has to be told.

    Raises:
        ServdError: it ended at once (it said why on stderr), or does not answer in time.
    """
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            [*daemon_command(settings), f"{TIED_OPTION}{reader}"],
            stdin=subprocess.DEVNULL,
            pass_fds=(reader,),
            # the command speaks for itself; what it has to be told is a warning
            env={**os.environ, "SERVD_LOG_TO_STDERR": "1" if log_to_stderr else variable("LOG_TO_STDERR", "WARNING")},
            # Ctrl-C is the caller's: the daemon ends when the caller does
            start_new_session=True,
        )
    except BaseException:
        os.close(writer)
        raise
    finally:
        os.close(reader)
    daemon = TiedDaemon(process, writer)
    try:
        _await_ready(settings, process, limit_s, lambda: "see the lines above")
    except BaseException:
        daemon.close()
        raise
    return daemon


def stop(state_dir: str) -> bool:
    """Stop the daemon of a state directory as SIGTERM does, wait until it is gone; False when none ran.

    Raises:
        StateError: the daemon is somebody else's.
    """
    pid = running_pid(state_dir)
    if pid is None:
        return False
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # the handle came after the question, so ask again: only the holder of the lock is meant
        if running_pid(state_dir) == pid:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.poll()
        return True
    except PermissionError as error:
        raise StateError(f"the daemon on {state_dir}, pid {pid}, belongs to another user") from error
    finally:
        os.close(handle)


def _await_ready(settings: Settings, process: subprocess.Popen[bytes], limit_s: float, said: Callable[[], str]) -> None:
    clock = SystemClock()
    deadline = clock.now() + limit_s
    well_at = clock.now()
    while True:
        if process.poll() is not None:
            raise DeployError(f"the daemon did not start (exit {process.returncode}): {said()}")
        status = _status(settings.socket_dir) if running_pid(settings.state_dir) == process.pid else None
        if status is not None and _is_ready(status, settings):
            return
        trouble = "" if status is None else status["notice"]
        well_at = well_at if trouble else clock.now()
        is_hopeless = clock.now() - well_at > TROUBLE_LIMIT_S
        if is_hopeless or clock.now() > deadline:
            process.terminate()
            process.wait()
            why = "cannot serve" if is_hopeless else f"did not answer within {limit_s:.0f} s"
            raise DeployError(f"the daemon {why}: {trouble or said()}")
        block_for(_POLL_S)


def _is_ready(status: dict[str, Any], settings: Settings) -> bool:
    data_plane = status["http"]
    return not settings.open_http or data_plane["listening"] or data_plane.get("location") == "NoServer"


def _written(path: Path, begin: int) -> str:
    try:
        with open(path, "rb") as log:
            log.seek(begin)
            return log.read(65536).decode(errors="replace").strip()
    except OSError:
        return ""


def _places(path: Path, begin: int) -> tuple[str, ...]:
    """What the daemon told of itself."""
    lines = _written(path, begin).splitlines()
    return tuple(line.removeprefix(SPEAKER) for line in lines if line.startswith(SPEAKER))


def _said(path: Path, begin: int) -> str:
    """What the daemon wrote, without the mark of an error line."""
    text = _written(path, begin)
    lines = [line.removeprefix("Error: ") for line in text.splitlines() if line.startswith("Error: ")]
    return "\n".join(lines) or text or f"nothing of what it said is in {path}; `servd start` without --detach shows it"


def _status(socket_dir: str) -> dict[str, Any] | None:
    connection = UnixConnection(admin_socket(socket_dir), 5.0)
    try:
        connection.request("GET", "/api/servd/v1/status")
        response = connection.getresponse()
        body = response.read()
        return dict(json.loads(body)) if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
