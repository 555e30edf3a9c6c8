"""The applications' own copies of their code, in `work/` of the state directory: gone with the processes that used them."""

import os
import shutil
from collections.abc import Collection, Iterable


def unused(home: str, needed: Collection[str]) -> list[str]:
    """Directories of fork servers that are gone, with all their replicas.

    Args:
        home: `settings.work_dir`; may be missing.
        needed: ids of fork servers that live, or whose replicas do.
    """
    try:
        return [os.path.join(home, name) for name in os.listdir(home) if name not in needed]
    except OSError:
        return []


def remove(directories: Iterable[str]) -> None:
    """Remove them; blocks. What cannot be removed now is tried again at the next death."""
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
