"""What belongs to the code in a local directory: everything below it but what is excluded."""

import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence

from servd.ground.quick_dataclass import dataclass

ALWAYS_EXCLUDED = ("__pycache__", ".git")
"""Names left out everywhere: running the code changes the first, committing it the second."""
VIRTUAL_ENVIRONMENT = "pyvenv.cfg"
"""What makes a directory a virtual environment: left out, for it is large and no code of the user's."""


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """path relative to the directory; target: of a link that stays one, else ""."""

    path: str
    is_directory: bool = False
    is_executable: bool = False
    target: str = ""


def code_entries(
    directory: str, excludes: Sequence[str], *, beside: str = "", left_out: str = "", keeps_links: bool = True
) -> Iterator[CodeEntry]:
    """Everything below a directory in one order; links that lead out of it are replaced by what they show.

    Args:
        excludes: patterns as `fnmatch` has them, for a name or for a path relative to `directory`.
        beside: real path of a directory that is never entered; "" = none.
        left_out: path of one more file that is excluded; "" = none.
        keeps_links: whether links that stay inside remain links; else they too are replaced by what they show.

    Raises:
        OSError: a directory cannot be read.
    """
    parents = frozenset({beside}) if beside else frozenset()
    return _entries(_Walk(directory, tuple(excludes), _status(left_out), keeps_links), "", parents)


@dataclass(frozen=True, slots=True)
class _Walk:
    root: str
    excludes: tuple[str, ...]
    left_out: os.stat_result | None
    keeps_links: bool


def _status(path: str) -> os.stat_result | None:
    """Of a file that may be somewhere else, or nowhere."""
    try:
        return os.stat(path)
    except OSError:
        return None


def _entries(walk: _Walk, relative: str, parents: frozenset[str]) -> Iterator[CodeEntry]:
    here = os.path.join(walk.root, relative)
    real = os.path.realpath(here)
    if real in parents:
        return  # a link to a directory above: it would never end; or the state directory
    for name in sorted(os.listdir(here)):
        path = os.path.join(relative, name)
        if name in ALWAYS_EXCLUDED or _is_excluded(path, name, walk.excludes):
            continue
        full = os.path.join(walk.root, path)
        if walk.keeps_links and os.path.islink(full) and _stays_inside(full, walk.root):
            yield CodeEntry(path, target=os.readlink(full))
            continue
        try:
            status = os.stat(full)
        except FileNotFoundError:
            continue  # a link to nothing, or removed just now
        if walk.left_out is not None and os.path.samestat(status, walk.left_out):
            continue
        if stat.S_ISDIR(status.st_mode):
            if os.path.exists(os.path.join(full, VIRTUAL_ENVIRONMENT)):
                continue
            yield CodeEntry(path, is_directory=True)
            yield from _entries(walk, path, parents | {real})
        elif stat.S_ISREG(status.st_mode):
            yield CodeEntry(path, is_executable=bool(status.st_mode & stat.S_IXUSR))


def _is_excluded(path: str, name: str, excludes: Sequence[str]) -> bool:
    patterns = [pattern.strip("/") for pattern in excludes]
    return any(fnmatch.fnmatchcase(path, p) or fnmatch.fnmatchcase(name, p) for p in patterns)


def _stays_inside(link: str, root: str) -> bool:
    if os.path.isabs(os.readlink(link)):
        return False
    inside = os.path.realpath(root)
    return os.path.realpath(link).startswith(inside + os.sep)
