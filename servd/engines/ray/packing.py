"""A directory as the archive that a Ray cluster unpacks: the same content is always the same archive."""

import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from servd.documents.code_entries import code_entries
from servd.exceptions import ConfigError

MAX_UPLOAD_BYTES = 100 * 1024 * 1024
"""Body that the cluster's head takes."""
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_FILE, _EXECUTABLE = 0o100644 << 16, 0o100755 << 16
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Package:
    """An archive. digest: SHA-256 over what it holds, hexadecimal: compression may differ from host to host."""

    data: bytes
    digest: str


class _Bounded(io.BytesIO):
    """Takes bytes up to a limit; counts all."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any, /) -> int:
        count = super().write(data)
        if self.tell() > self._limit:
            raise _TooLargeError
        return count


class _TooLargeError(Exception):
    pass


def pack(directory: str, excludes: Sequence[str], *, prefix: str = "", left_out: str = "") -> Package:
    """The archive of a directory's code; its files are at the root, or below `prefix`.

    Args:
        excludes: as in a runtime environment. left_out: path of one more file that is excluded; "" = none.

    Raises:
        ConfigError: it is missing, unreadable, or the archive would have more than 100 MiB.
    """
    if not os.path.isdir(directory):
        raise ConfigError(f"there is no directory {directory}")
    buffer = _Bounded(MAX_UPLOAD_BYTES)
    content = hashlib.sha256(prefix.encode())
    try:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry in code_entries(directory, excludes, left_out=left_out, keeps_links=False):
                if not entry.is_directory:
                    info = zipfile.ZipInfo(os.path.join(prefix, entry.path), _LONG_AGO)
                    info.compress_type = zipfile.ZIP_DEFLATED
                    info.external_attr = _EXECUTABLE if entry.is_executable else _FILE
                    content.update(f"\0{entry.path}\0{entry.is_executable:d}\0".encode())
                    with open(os.path.join(directory, entry.path), "rb") as source, archive.open(info, "w") as target:
                        content.update(_copied(source, target))
    except _TooLargeError:
        limit = MAX_UPLOAD_BYTES // 2**20
        raise ConfigError(
            f"{directory} is more than {limit} MiB as an archive, which is all that a Ray cluster takes: leave data out "
            "with `excludes`, or put the code into the image or at an https: URI"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename or directory}: {error.strerror}") from error
    return Package(buffer.getvalue(), content.hexdigest())


def _copied(source: IO[bytes], target: IO[bytes]) -> bytes:
    """Writes all of it; gives its SHA-256."""
    digest = hashlib.sha256()
    while data := source.read(_CHUNK_BYTES):
        digest.update(data)
        target.write(data)
    return digest.digest()


def is_too_large(directory: str, excludes: Sequence[str]) -> bool:
    """Whether its archive would have more than 100 MiB. Compresses only what may be too large."""
    total = 0
    for entry in code_entries(directory, excludes, keeps_links=False):
        if not entry.is_directory:
            total += os.stat(os.path.join(directory, entry.path)).st_size
    if total <= MAX_UPLOAD_BYTES * 0.99:
        return False
    try:
        pack(directory, excludes)
    except ConfigError:
        return True
    return False
