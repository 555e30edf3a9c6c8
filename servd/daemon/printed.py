"""What a detached daemon and all its children print: `daemon.log`, kept within bounds."""

import os
from pathlib import Path

LOG_NAME = "daemon.log"
MAX_BYTES = 64 * 1024 * 1024
"""From this size on the file begins anew; the newest of it is kept as `daemon.log.1`."""

_CHUNK_BYTES = 1024 * 1024
_STREAMS = (1, 2)


class PrintedLog:
    """The file behind this process's standard streams, if that is `daemon.log`. Children share it: it keeps its place."""

    def __init__(self, log_dir: str, max_bytes: int = MAX_BYTES) -> None:
        self._path = Path(log_dir) / LOG_NAME
        self._max_bytes = max_bytes
        self._is_ours = self._is_in_place()

    def __repr__(self) -> str:
        return f"PrintedLog({self._path}, {'ours' if self._is_ours else 'not ours'})"

    def tend(self) -> None:
        """Begin a file anew that is too long, and one at its place where it was renamed or removed."""
        if not self._is_ours:
            return
        try:
            if not self._is_in_place():
                self._reopen()
            size = os.fstat(_STREAMS[-1]).st_size
            if size > self._max_bytes:
                self._begin_anew(size)
        except OSError:
            # without room or directory nothing can be kept: the next look tries again
            pass

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(_STREAMS[-1]), os.stat(self._path))
        except OSError:
            return False

    def _reopen(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for stream in _STREAMS:
            os.dup2(fd, stream)
        os.close(fd)

    def _begin_anew(self, size: int) -> None:
        # not by another name: children write through descriptors of their own, at the end of this very file
        backup = f"{self._path}.1"
        try:
            with open(self._path, "rb") as source, open(backup, "wb", opener=_private) as target:
                source.seek(max(size - self._max_bytes, 0))
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)
        except OSError:
            # no room for the old lines is a reason the more to give up theirs
            Path(backup).unlink(missing_ok=True)
        os.truncate(self._path, 0)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
