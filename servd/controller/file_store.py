"""Files of snapshots by content: one that many have is on disk once, in `files/` of the state directory, linked into each.

A stored file is never written again. Its time of change is set to a mark, so that one that somebody wrote to all the same is
noticed and replaced by a fresh copy.
"""

import contextlib
import hashlib
import os
import tempfile

from servd.ground.settings import make_private_dir

_MARK_NS = 10**9
_CHUNK_BYTES = 1024 * 1024


class FileStore:
    """The stored files of one state directory. One user at a time."""

    def __init__(self, home: str) -> None:
        self._home = home
        make_private_dir(home, with_parents=False)

    def link(self, source: str, target: str, is_executable: bool, limit: int) -> tuple[bytes, int]:
        """Make `target` a file with the content of `source`.

        Args:
            limit: bytes; a larger file is read to just past it, and is not linked then.

        Returns:
            SHA-256 of the content, and bytes read.
        """
        digest, size = _sum_of(source, limit)
        if size > limit:
            return digest, size
        stored = self._place_of(digest, is_executable)
        if not _is_whole(stored, size):
            digest, size = self._store(source, is_executable)
            stored = self._place_of(digest, is_executable)
        os.link(stored, target)
        return digest, size

    def drop_unused(self) -> int:
        """Remove what no snapshot has any more; gives the bytes."""
        freed = 0
        for entry in os.scandir(self._home):
            about = entry.stat(follow_symlinks=False)
            if about.st_nlink == 1:
                os.unlink(entry.path)
                freed += about.st_size
        return freed

    def _store(self, source: str, is_executable: bool) -> tuple[bytes, int]:
        fd, draft = tempfile.mkstemp(dir=self._home, prefix=".draft-")
        try:
            content, size = hashlib.sha256(), 0
            with open(source, "rb") as reader, open(fd, "wb") as writer:
                while data := reader.read(_CHUNK_BYTES):
                    content.update(data)
                    writer.write(data)
                    size += len(data)
                writer.flush()
                os.fchmod(writer.fileno(), 0o500 if is_executable else 0o400)
                os.utime(writer.fileno(), ns=(_MARK_NS, _MARK_NS))
            os.rename(draft, self._place_of(content.digest(), is_executable))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise
        return content.digest(), size

    def _place_of(self, digest: bytes, is_executable: bool) -> str:
        return os.path.join(self._home, digest.hex() + ("-x" if is_executable else ""))


def _is_whole(path: str, size: int) -> bool:
    try:
        about = os.stat(path)
    except FileNotFoundError:
        return False
    return about.st_size == size and about.st_mtime_ns == _MARK_NS


def _sum_of(path: str, limit: int) -> tuple[bytes, int]:
    content, size = hashlib.sha256(), 0
    with open(path, "rb") as reader:
        while size <= limit and (data := reader.read(_CHUNK_BYTES)):
            content.update(data)
            size += len(data)
    return content.digest(), size
