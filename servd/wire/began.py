"""Which requests a replica had begun when it died, in a small file that outlives it.

"Accepted" rides in an envelope that a replica sends after its handlers took their first step. A handler that never gives the loop
back is therefore unknown to its caller; if the replica is killed then, the caller looks here before it sends a POST elsewhere.
Writing costs one store into mapped memory.
"""

import ctypes
import errno
import mmap
import os
import struct
from collections import deque

from servd.exceptions import TransportError

_SLOTS = 2048
_SLOT = struct.Struct("<QQ")
_BYTES = _SLOTS * _SLOT.size
_PREFIX = "ipc://"
SUFFIX = ".began"
LENDING_SUFFIX = ".lend"
CLOSED_SUFFIX = ".closed"
"""End the names of the files, which begin as the socket's."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value


def path_of(address: str) -> str | None:
    """The file that belongs to a replica's address; None when the address is no path."""
    return f"{address[len(_PREFIX) :]}{SUFFIX}" if address.startswith(_PREFIX) else None


def closed_path(address: str) -> str:
    """Where the replica's socket lies while it takes no new callers."""
    return f"{address.removeprefix(_PREFIX)}{CLOSED_SUFFIX}"


def lending_path(address: str) -> str | None:
    """Where callers lend the replica their clients' connections; None when the address is no path."""
    return f"{address[len(_PREFIX) :]}{LENDING_SUFFIX}" if address.startswith(_PREFIX) else None


def socket_path(path: str) -> str:
    """The path of a replica's socket, given that of one of its files."""
    for suffix in (SUFFIX, LENDING_SUFFIX, CLOSED_SUFFIX):
        path = path.removesuffix(suffix)
    return path


def remove_files(address: str) -> None:
    """Remove what a replica leaves in the socket directory: its socket and this file.

    A caller that wants to know what was begun has the file open already.
    """
    path = path_of(address)
    if path is not None:
        for file in (path, closed_path(address), f"{address[len(_PREFIX) :]}{LENDING_SUFFIX}", address[len(_PREFIX) :]):
            _remove(file)


class BeganLog:
    """A replica's side: per caller the id of the request begun last. Slot 0 belongs to nobody.

    Raises:
        TransportError: the file cannot be made, or there is no room for it; names the directory.
    """

    def __init__(self, address: str) -> None:
        self._path = path_of(address)
        # the longest unused one next: a key must not be overwritten while there are places that nobody had
        self._free = deque(range(1, _SLOTS))
        self._words = memoryview(bytearray(_BYTES)).cast("Q")
        if self._path is not None:
            try:
                self._words = memoryview(_mapped(self._path)).cast("Q")
            except OSError as error:
                _remove(self._path)
                directory = os.path.dirname(self._path)
                raise TransportError(
                    f"cannot make a file of {_BYTES // 1024} KiB in the socket directory {directory}: {error.strerror}"
                ) from error

    def __repr__(self) -> str:
        return f"BeganLog({self._path})"

    @property
    def words(self) -> memoryview:
        """Where to write: `words[place] = call_id`, with a place of `open_place`."""
        return self._words

    def open_place(self, key: int) -> int:
        """A place for the caller of this key; the place of nobody when there are too many."""
        if not self._free:
            return 1
        slot = self._free.popleft()
        self._words[2 * slot + 1] = 0
        self._words[2 * slot] = key
        return 2 * slot + 1

    def close_place(self, place: int) -> None:
        """The caller is gone. Its word stays until the place is needed: it may not know yet."""
        if place > 1:
            self._free.append(place // 2)

    def close(self) -> None:
        """Remove the file."""
        if self._path is not None:
            _remove(self._path)


class BeganReader:
    """A caller's side: mapped when it connects, read when the replica died.

    Mapped by hand, because Python's `mmap` keeps a descriptor, and a proxy has one of these for each replica.
    """

    def __init__(self, address: str, key: int) -> None:
        self._key = key
        self._path = path_of(address)
        self._place: int | None = None
        if self._path is not None:
            try:
                self._place = _mapped_to_read(self._path)
            except OSError:
                # gone already, or another kind of replica: then nothing is known
                pass

    def __repr__(self) -> str:
        return f"BeganReader({self._path})"

    def last_begun(self) -> int | None:
        """Id of the request begun last, 0 = none; None = not known, so any may have begun."""
        if self._place is None:
            return None
        data = ctypes.string_at(self._place, _BYTES)
        words = dict(_SLOT.iter_unpack(data[_SLOT.size :]))
        # while some places were never used, every caller that was greeted has one: this one was not, so nothing of it began
        return words.get(self._key, 0 if 0 in words else None)

    def close(self, *, is_dead: bool = False) -> None:
        """Close; the file of a dead replica is removed."""
        if self._place is not None:
            _libc.munmap(self._place, _BYTES)
            self._place = None
            if is_dead and self._path is not None:
                _remove(self._path)


def _mapped(path: str) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        # a hole is filled when it is written to, and the kernel's word for "no room" would be a bus error then
        os.posix_fallocate(fd, 0, _BYTES)
        return mmap.mmap(fd, _BYTES)
    finally:
        os.close(fd)


def _mapped_to_read(path: str) -> int:
    """Where the file is mapped; the mapping outlives file and descriptor."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if os.fstat(fd).st_size != _BYTES:
            # what lies behind the end cannot be read, not even as zeros
            raise OSError(errno.EINVAL, "no file of a replica", path)
        place = _libc.mmap(None, _BYTES, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if place == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), "cannot map", path)
        return int(place)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        # somebody else was faster
        pass
