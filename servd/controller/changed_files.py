"""What differs between two snapshots, file by file."""

import filecmp
import os
from collections.abc import Iterator, Mapping

CHANGED, ADDED, REMOVED = "changed", "added", "removed"


def changed_files(before: str, after: str) -> Mapping[str, str]:
    """Relative path -> "changed", "added" or "removed" of each file, by path; empty if `before` is gone. Blocks.

    A link counts as its target's name, a file also by whether it may be executed.
    """
    if not os.path.isdir(before):
        return {}
    old, new = set(_files(before)), set(_files(after))
    found = dict.fromkeys(new - old, ADDED) | dict.fromkeys(old - new, REMOVED)
    for path in old & new:
        if not _is_same(os.path.join(before, path), os.path.join(after, path)):
            found[path] = CHANGED
    return dict(sorted(found.items()))


def _files(root: str) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            yield os.path.relpath(os.path.join(folder, name), root)


def _is_same(old: str, new: str) -> bool:
    if os.path.islink(old) or os.path.islink(new):
        return os.path.islink(old) and os.path.islink(new) and os.readlink(old) == os.readlink(new)
    was, now = os.stat(old), os.stat(new)
    if os.path.samestat(was, now):
        return True
    return was.st_mode == now.st_mode and filecmp.cmp(old, new, shallow=False)
