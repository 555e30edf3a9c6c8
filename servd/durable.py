"""Files that survive a power cut: their data, and the directories that name them. Standard library only."""

import os
import stat


def sync_directory(path: str) -> None:
    """Put on disk which names a directory has."""
    _sync(path, os.O_DIRECTORY)


def sync_tree(path: str) -> None:
    """Put every file and directory below `path` on disk, and `path` itself; links are only names."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            full = os.path.join(folder, name)
            if stat.S_ISREG(os.lstat(full).st_mode):
                _sync(full)
        sync_directory(folder)


def _sync(path: str, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
