"""The lock of a state directory: one daemon each, with its pid in it."""

import contextlib
import fcntl
import os

from servd.exceptions import AlreadyRunningError, StateError
from servd.ground.clock import block_for
from servd.ground.pidfd import is_called, parent_of
from servd.ground.settings import admin_socket, socket_dir_of
from servd.wire.credentials import listener_of

LOCK_NAME = "daemon.lock"


def lock_state_dir(state_dir: str) -> tuple[int, bool]:
    """Take the lock of a state directory and write this pid into it.

    Returns:
        The descriptor, close-on-exec, and whether the daemon before did not end cleanly.

    Raises:
        AlreadyRunningError: somebody holds it.
        StateError: the file cannot be used.
    """
    path = f"{state_dir}/{LOCK_NAME}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StateError(f"cannot use {path}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder_of(fd)
        os.close(fd)
        raise AlreadyRunningError(state_dir, int(holder or b"0")) from None
    was_unclean = os.fstat(fd).st_size > 0
    try:
        # over the one before, whatever it was: what is emptied first may find no room again
        os.pwrite(fd, b"%-10d" % os.getpid(), 0)
    except OSError:
        # a disk without room for it is no reason not to serve: its sockets say who runs
        os.ftruncate(fd, 0)
    return fd, was_unclean


def _holder_of(fd: int) -> bytes:
    """Pid in a lock file that somebody holds; it is written a moment after the lock is taken."""
    for _ in range(50):
        holder = os.pread(fd, 32, 0).strip()
        if holder:
            return holder
        block_for(0.02)
    return b""


def running_pid(state_dir: str) -> int | None:
    """Pid of the daemon that runs on a state directory, also if that was deleted since; None when none does."""
    try:
        fd = os.open(f"{state_dir}/{LOCK_NAME}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return listening_daemon(socket_dir_of(state_dir))
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError):
            return int(os.read(fd, 32))
    finally:
        os.close(fd)
    return listening_daemon(socket_dir_of(state_dir))


def listening_daemon(socket_dir: str) -> int | None:
    """Pid of the daemon whose sockets lie there, None without one."""
    # a controller that takes the socket over listens in its turn
    pid = listener_of(admin_socket(socket_dir)) or 0
    return next((found for found in (pid, parent_of(pid)) if is_called(found, ("daemon",))), None)
