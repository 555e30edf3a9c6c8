"""Unpack an archive that somebody else made: the zip rule, and nothing outside the target.

How this works: all names are judged before a byte is written; sizes are judged as declared and again as
written; links are made last, so nothing is ever written through one.
"""

import os
import stat
import zipfile
import zlib
from typing import Any

from servd.exceptions import DeployError
from servd.ground.quick_dataclass import dataclass

MAX_ENTRIES = 100_000
MAX_LIST_BYTES = 64 * 1024**2
MAX_UNPACKED_BYTES = 8 * 1024**3
MAX_RATIO = 200
RATIO_FREE_BYTES = 64 * 1024**2
"""Below this size the ratio does not matter: a short text may well be compressed to almost nothing."""

_DROPPED_TOP = "__MACOSX"
_CHUNK_BYTES = 1024 * 1024
_MAX_LINK_BYTES = 4096
_ENTRIES_FIELD, _LIST_BYTES_FIELD = 4, 5
"""Places in what zipfile finds at the end of an archive."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A judged entry. parts: path below the target, after lifting. kind: "file", "directory" or "link"."""

    info: zipfile.ZipInfo
    parts: tuple[str, ...]
    kind: str

    @property
    def path(self) -> str:
        """Relative path."""
        return "/".join(self.parts)


def unpack(archive: str, target: str) -> None:
    """Unpack the zip file into the new directory `target`.

    If every entry lies under one top-level directory (beside one named `__MACOSX`, which is dropped), its
    content is lifted.

    Raises:
        DeployError: no zip file, damaged, encrypted, too large, too many entries, compressed beyond reason;
            or an entry that is absolute, holds "..", comes twice, is neither file, directory nor link, or a
            link that leads outside.
    """
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as opened:
            entries = judged(opened.infolist(), os.path.getsize(archive))
            os.mkdir(target, 0o700)
            _write(opened, entries, target)
    except DeployError:
        raise
    except NotImplementedError as error:
        raise DeployError(f"the archive uses a compression that cannot be read here: {error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise DeployError(f"the archive is damaged or no zip file: {error}") from error
    except OSError as error:
        raise DeployError(f"the archive cannot be unpacked: {error}") from error


def _check_directory(archive: str) -> None:
    """Refuse a list of entries that would fill the memory before it can be judged."""
    find_end: Any = getattr(zipfile, "_EndRecData", None)
    with open(archive, "rb") as file:
        end = find_end(file) if find_end is not None else None
    if end is None:
        return
    entries, list_bytes = end[_ENTRIES_FIELD], end[_LIST_BYTES_FIELD]
    if entries > MAX_ENTRIES or list_bytes > MAX_LIST_BYTES:
        raise DeployError(
            f"the archive has {entries} entries in a list of {list_bytes} bytes, "
            f"at most {MAX_ENTRIES} and {MAX_LIST_BYTES} are allowed"
        )


def judged(infos: list[zipfile.ZipInfo], archive_bytes: int) -> list[Entry]:
    """The entries to write, lifted by the zip rule.

    Raises:
        DeployError: as `unpack`, as far as names and declared sizes tell.
    """
    if len(infos) > MAX_ENTRIES:
        raise DeployError(f"the archive has {len(infos)} entries, at most {MAX_ENTRIES} are allowed")
    _check_size(sum(info.file_size for info in infos), archive_bytes)
    entries = [Entry(info, safe_parts(info.filename), _kind(info)) for info in infos]
    return _lifted([entry for entry in entries if entry.parts])


def safe_parts(name: str) -> tuple[str, ...]:
    """Parts of a relative path without "." and empty ones.

    Raises:
        DeployError: it is absolute, has a drive, holds "..", a NUL or nothing.
    """
    # backslashes separate for those who packed on Windows; as a name they would be legal here, and nobody
    # means that
    plain = name.replace("\\", "/")
    parts = tuple(part for part in plain.split("/") if part not in ("", "."))
    if not name or "\0" in name or plain.startswith("/") or ".." in parts or (parts and parts[0][1:2] == ":"):
        raise DeployError(f"the archive holds the unsafe path {name!r}")
    return parts


def _check_size(unpacked_bytes: int, archive_bytes: int) -> None:
    if unpacked_bytes > MAX_UNPACKED_BYTES:
        raise DeployError(f"the archive unpacks to {unpacked_bytes} bytes, at most {MAX_UNPACKED_BYTES} are allowed")
    if unpacked_bytes > max(RATIO_FREE_BYTES, archive_bytes * MAX_RATIO):
        raise DeployError(
            f"the archive of {archive_bytes} bytes unpacks to {unpacked_bytes}: more than {MAX_RATIO} times its size"
        )


def _kind(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        raise DeployError(f"the archive's entry {info.filename!r} is encrypted")
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode == stat.S_IFLNK:
        return "link"
    if info.is_dir() or info.filename.endswith("\\"):
        return "directory"
    if mode not in (0, stat.S_IFREG):
        raise DeployError(f"the archive's entry {info.filename!r} is neither a file, a directory nor a link")
    return "file"


def _lifted(entries: list[Entry]) -> list[Entry]:
    tops = {entry.parts[0] for entry in entries}
    kept = tops - {_DROPPED_TOP} if len(tops) == 2 else tops
    if len(kept) != 1 or any(len(entry.parts) == 1 and entry.kind != "directory" for entry in entries):
        return entries
    return [
        Entry(entry.info, entry.parts[1:], entry.kind)
        for entry in entries
        if entry.parts[0] in kept and len(entry.parts) > 1
    ]


def _write(opened: zipfile.ZipFile, entries: list[Entry], target: str) -> None:
    archive_bytes = os.path.getsize(opened.filename or "")
    written = 0
    links = {entry.parts for entry in entries if entry.kind == "link"}
    for entry in entries:
        if any(entry.parts[:depth] in links for depth in range(1, len(entry.parts))):
            raise DeployError(f"the archive's entry {entry.info.filename!r} lies behind a link")
        path = os.path.join(target, *entry.parts)
        if entry.kind == "directory":
            os.makedirs(path, 0o700, exist_ok=True)
        elif entry.kind == "file":
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            written += _write_file(opened, entry, path)
            _check_size(written, archive_bytes)
    made = [_make_link(opened, entry, target) for entry in entries if entry.kind == "link"]
    root = os.path.realpath(target) + os.sep
    for path in made:
        # one by one they looked fine; a chain of links may still lead outside
        if not (os.path.realpath(path) + os.sep).startswith(root):
            raise DeployError(f"the archive's link {os.path.relpath(path, target)!r} leads outside")


def _write_file(opened: zipfile.ZipFile, entry: Entry, path: str) -> int:
    mode = 0o700 if (entry.info.external_attr >> 16) & 0o100 else 0o600
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError as error:
        raise DeployError(f"the archive holds {entry.path!r} twice") from error
    written = 0
    with os.fdopen(fd, "wb") as file, opened.open(entry.info) as source:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > entry.info.file_size:
                raise DeployError(f"the archive's entry {entry.info.filename!r} is larger than it says")
            file.write(chunk)
    return written


def _make_link(opened: zipfile.ZipFile, entry: Entry, target: str) -> str:
    if entry.info.file_size > _MAX_LINK_BYTES:
        raise DeployError(f"the archive's link {entry.info.filename!r} has no sensible target")
    aim = os.fsdecode(opened.read(entry.info))
    path = os.path.join(target, *entry.parts)
    landing = os.path.normpath(os.path.join(os.path.dirname(path), aim))
    if not aim or "\0" in aim or os.path.isabs(aim) or not (landing + os.sep).startswith(target + os.sep):
        raise DeployError(f"the archive's link {entry.info.filename!r} leads outside: {aim!r}")
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    if os.path.lexists(path):
        raise DeployError(f"the archive holds {entry.path!r} twice")
    os.symlink(aim, path)
    return path
