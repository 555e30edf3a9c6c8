"""Archives of code: fetched once, unpacked once, kept by their URI in `<state>/code`."""

import fcntl
import glob
import hashlib
import hmac
import os
import shutil
import tempfile
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException

from servd.documents import runtime_env
from servd.exceptions import DeployError
from servd.ground.clock import Clock, SystemClock, block_for
from servd.ground.durable import sync_directory, sync_tree
from servd.replica.code.archives import unpack
from servd.replica.code.downloads import fetch

_LOCK_POLL_S = 0.02


def cache_dir(state_dir: str) -> str:
    """Directory of the cache; snapshots and applications by value lie there too."""
    return os.path.join(state_dir, "code")


def unpacked_archive(uri: str, state_dir: str, *, deadline: float, clock: Clock | None = None) -> str:
    """Directory with the content of the archive behind `uri`, fetched and unpacked if it is not in the cache.

    Args:
        uri: a valid `https:`, `http:` (loopback) or `file:` URI, or an absolute path; `#sha256=` pins its content.
        deadline: monotonic seconds; waiting for another process that fetches the same URI counts.

    Raises:
        DeployError: cannot be fetched, is too large or no safe zip file, or the deadline passed. Nothing
            stays behind.
    """
    clock = clock or SystemClock()
    pin = runtime_env.pin_of(uri)
    # what is pinned is known by its content, wherever it comes from
    key = f"p-{pin}" if pin else "z-" + hashlib.sha256(uri.encode()).hexdigest()[:40]

    def make(part: str, content: str) -> None:
        archive = _local_archive(uri, part, deadline, clock)
        if pin is not None:
            _check_pin(archive, pin)
        unpack(archive, content)
        # a cache that lost its data in a power cut would be taken for whole
        sync_tree(content)

    try:
        return cached_directory(key, state_dir, make, deadline=deadline, clock=clock)
    except DeployError as error:
        raise DeployError(f"{uri}: {error}") from error


def _check_pin(archive: str, pin: str) -> None:
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not hmac.compare_digest(found, pin):
        raise DeployError(f"has SHA-256 {found}, which is not the pinned one")


def cached_directory(
    key: str, state_dir: str, make: Callable[[str, str], None], *, deadline: float, clock: Clock
) -> str:
    """The cached directory of that name, made if it is not there; one process at a time makes it.

    Args:
        make: called with a scratch directory and the path of the directory to make (inside it).

    Raises:
        DeployError: `make` raised it, or somebody else is still making it at the deadline (monotonic
            seconds).
    """
    home = cache_dir(state_dir)
    os.makedirs(home, 0o700, exist_ok=True)
    final = os.path.join(home, key)
    if os.path.isdir(final):
        return final
    with locked(os.path.join(home, key + ".lock"), deadline, clock):
        if os.path.isdir(final):
            return final
        for leftover in glob.glob(os.path.join(glob.escape(home), key + ".part*")):
            shutil.rmtree(leftover, ignore_errors=True)
        part = tempfile.mkdtemp(prefix=key + ".part", dir=home)
        try:
            content = os.path.join(part, "content")
            make(part, content)
            # the name appears only with everything in it, so whoever sees it needs no lock
            os.rename(content, final)
            sync_directory(home)
        except OSError as error:
            raise DeployError(f"{error.filename or part}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return final


@contextmanager
def locked(path: str, deadline: float, clock: Clock) -> Iterator[int]:
    """Be the one process that holds this lock; gives its descriptor. A child that inherits that holds the lock on.

    Raises:
        DeployError: somebody else holds it at the deadline (monotonic seconds).
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock.now() > deadline:
                    raise DeployError("another process is still preparing it") from None
                block_for(_LOCK_POLL_S)
        yield fd
    finally:
        os.close(fd)


def _local_archive(uri: str, part: str, deadline: float, clock: Clock) -> str:
    if not runtime_env.is_remote(uri):
        path = runtime_env.local_path(uri)
        if not os.path.isfile(path):
            raise DeployError(f"there is no file {path}")
        return path
    path = os.path.join(part, "archive.zip")
    try:
        fetch(uri, path, lambda: deadline - clock.now())
    except urllib.error.HTTPError as error:
        # it is the answer too
        error.close()
        raise DeployError(f"cannot be fetched: {error}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DeployError(f"cannot be fetched: {reason}") from error
    return path
