"""The copy of servd's package that a daemon's processes run from: an update of the files changes nothing of what runs.

It lies in the state directory, named by the digest of the files, and comes first on the import path of every process that the
daemon starts. Where it cannot be made, or somebody removed it, they load the files themselves.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterable

from servd.daemon.directories import say
from servd.ground.edition import COMPILED, Stamp, be, content_of, edition_at, files_at, own_edition
from servd.ground.package import PACKAGE_DIR

DIR_NAME = "program"


def settle(state_dir: str) -> None:
    """Let every process that this one starts run from a copy of the package, and be told so."""
    try:
        code_dir = copy_in(state_dir, PACKAGE_DIR)
    except OSError as error:
        say(f"no copy of {PACKAGE_DIR} in {state_dir}: {error}; an update of its files will meet what runs already")
        be(Stamp(own_edition(), PACKAGE_DIR, PACKAGE_DIR))
        return
    remove_other_copies(code_dir)
    sys.path.insert(0, os.path.dirname(code_dir))
    be(Stamp(own_edition(), code_dir, PACKAGE_DIR))


def copy_in(state_dir: str, home: str) -> str:
    """Directory of a copy of the package in `home`; it is made unless there is one that is whole.

    Raises:
        OSError: it cannot be made; nothing of it stays.
    """
    edition = edition_at(home)
    folder = os.path.join(state_dir, DIR_NAME, edition.digest)
    code_dir = os.path.join(folder, "servd")
    names = files_at(home)
    if _is_whole(code_dir, names):
        return code_dir
    _remove(folder)
    try:
        _copy(home, code_dir, names)
        if edition_at(home) != edition:
            raise OSError(f"{home} changed meanwhile")
    except OSError:
        # a disk that is full shall not be so for this
        _remove(folder)
        raise
    return code_dir


def remove_other_copies(code_dir: str) -> None:
    """Remove every copy beside that one, as far as that can be done."""
    folder = os.path.dirname(code_dir)
    place = os.path.dirname(folder)
    for name in os.listdir(place):
        if name != os.path.basename(folder):
            _remove(os.path.join(place, name))


def _is_whole(code_dir: str, names: dict[str, tuple[int, int]]) -> bool:
    """Whether it has these files, each of its size: one that was being made when the power went has not."""
    try:
        found = files_at(code_dir)
    except OSError:
        return False
    return {name: size for name, (size, _) in found.items()} == {name: size for name, (size, _) in names.items()}


def _copy(home: str, code_dir: str, names: Iterable[str]) -> None:
    for folder in {os.path.dirname(name) for name in names}:
        compiled = os.path.join(code_dir, folder, COMPILED)
        os.makedirs(compiled, mode=0o700)
        _share(os.path.join(home, folder, COMPILED), compiled)
    for name in names:
        _copy_file(os.path.join(home, name), os.path.join(code_dir, name))


def _share(source: str, target: str) -> None:
    """The same compiled files in both folders, for the interpreter never writes into one; what lacks is compiled anew."""
    with contextlib.suppress(OSError):
        for name in os.listdir(source):
            origin, place = os.path.join(source, name), os.path.join(target, name)
            try:
                os.link(origin, place)
            except OSError:
                # another disk, or another user's
                _copy_file(origin, place)


def _copy_file(origin: str, place: str) -> None:
    about = os.stat(origin)
    content = content_of(origin)
    writer = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if os.write(writer, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
        # what is compiled is valid for a time of change
        os.utime(writer, ns=(about.st_atime_ns, about.st_mtime_ns))
    finally:
        os.close(writer)


def _remove(directory: str) -> None:
    """Remove it with all that is in it, as far as that can be done. `shutil` would cost the daemon a megabyte."""
    with contextlib.suppress(OSError):
        for folder, below, names in os.walk(directory, topdown=False):
            for path in (os.path.join(folder, name) for name in names):
                os.unlink(path)
            for path in (os.path.join(folder, name) for name in below):
                os.rmdir(path)
        os.rmdir(directory)
