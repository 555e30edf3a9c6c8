"""Which servd a process is: a protocol number, a version and a digest of the package's files; carried by every greeting.

A daemon runs from a copy of its package (`servd.daemon.program`), so that an update of the files changes nothing of what runs.
Where there could be no copy, or somebody removed it, a process that is started after an update is of another edition than
who starts it. It serves all the same as long as the protocol is the same, and says who it is; it refuses otherwise.
"""

import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import NoReturn

from servd.ground.package import PACKAGE_DIR, PROTOCOL, VERSION
from servd.ground.quick_dataclass import dataclass

EXIT_OTHER_PROTOCOL = 79
"""Exit code of a process whose protocol is another than that of the one that started it; it has said so on stderr."""
WAY_OUT = "`servd stop && servd start` ends this"
COMPILED = "__pycache__"
"""Name of the directories of what the interpreter compiles."""
SUFFIXES = (".py", ".html", ".css", ".js", ".svg")
"""What a package is made of: modules, and what the page that shows an instance is made of."""


@dataclass(frozen=True, slots=True)
class Edition:
    """digest: 8 hex digits over the package's files; they tell one update from another, not who wrote it."""

    protocol: int
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.version}+{self.digest} (protocol {self.protocol})"

    @property
    def text(self) -> str:
        """How a greeting carries it; see `edition_of`."""
        return f"{self.protocol} {self.version} {self.digest}"


UNMARKED = Edition(1, "0.1.0", "unmarked")
"""What speaks without saying which it is: a servd of before editions."""


def edition_of(text: str) -> Edition:
    """The edition that a greeting carries; one that cannot be read is of protocol 0, which nobody speaks."""
    if not text:
        return UNMARKED
    protocol, _, rest = text.partition(" ")
    version, _, digest = rest.partition(" ")
    return Edition(int(protocol) if protocol.isdecimal() else 0, version, digest)


class Stamp:
    """What a process is told of the one that starts it, before anything else; unpickling it is being told.

    edition: of the one that starts it. code_dir: where the package lies that processes shall run from.
    home: the directory that this is a copy of, or `code_dir` itself.
    """

    def __init__(self, edition: Edition, code_dir: str, home: str) -> None:
        self.edition, self.code_dir, self.home = edition, code_dir, home

    def __repr__(self) -> str:
        return f"Stamp({self.edition}, {self.code_dir}, {self.home})"

    def __reduce__(self) -> tuple[object, ...]:
        return _told, (self.edition.text, self.code_dir, self.home)


_stamps: list[Stamp] = []


def stamp() -> Stamp:
    """What this process tells those that it starts."""
    if not _stamps:
        _stamps.append(Stamp(_edition_here(), PACKAGE_DIR, PACKAGE_DIR))
    return _stamps[0]


def is_told() -> bool:
    """Whether somebody has said who starts this process; before the first `stamp()`."""
    return bool(_stamps)


def own_edition() -> Edition:
    """Which servd this process is; read from the package's files where nobody has told it."""
    return stamp().edition


def be(found: Stamp) -> None:
    """Tell this from now on."""
    _stamps[:] = [found]


_read: dict[str, tuple[dict[str, tuple[int, int]], Edition]] = {}


def edition_at(package_dir: str) -> Edition:
    """The edition of a package's files, whatever this process runs; they are read when they have changed only.

    Raises:
        OSError: they cannot be read.
    """
    files = files_at(package_dir)
    known = _read.get(package_dir)
    if known is None or known[0] != files:
        known = _read[package_dir] = (files, _edition_of_files(package_dir, sorted(files)))
    return known[1]


def _edition_of_files(package_dir: str, names: Iterable[str]) -> Edition:
    digest = 0
    version, protocol = "?", 1
    for name in names:
        content = content_of(f"{package_dir}/{name}")
        digest = zlib.crc32(content, zlib.crc32(f"{name}\0{len(content)}\0".encode(), digest))
        if name == "ground/package.py":
            version, protocol = _named(content.decode("utf-8", "replace"))
    return Edition(protocol, version, f"{digest:08x}")


def content_of(path: str) -> bytes:
    """What a file holds. A file object would take thrice the time, at each start for each module."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def files_at(package_dir: str) -> dict[str, tuple[int, int]]:
    """A package's files: name below its directory -> size (bytes), time of change (ns).

    Raises:
        OSError: they cannot be looked at.
    """
    found = {}
    folders = [""]
    for folder in folders:
        with os.scandir(f"{package_dir}/{folder}") as entries:
            for entry in entries:
                # what editors put beside a file is none of them
                if entry.name.endswith(SUFFIXES) and entry.name[0] != ".":
                    about = entry.stat()
                    found[f"{folder}{entry.name}"] = (about.st_size, about.st_mtime_ns)
                elif entry.name != COMPILED and entry.is_dir():
                    folders.append(f"{folder}{entry.name}/")
    return found


def difference(theirs: Edition) -> str:
    """Why a process of that edition is not understood; "" if it is."""
    if theirs.protocol == PROTOCOL:
        return ""
    return f"it is servd {theirs}, this is servd {Edition(PROTOCOL, VERSION, own_edition().digest)}: {WAY_OUT}"


def _named(text: str) -> tuple[str, int]:
    """Version and protocol that a `package.py` names; "?" and 1 where it does not."""
    found = {}
    for line in text.splitlines():
        name, mark, value = line.partition(" = ")
        if mark:
            found[name] = value.strip().strip('"')
    protocol = found.get("PROTOCOL", "1")
    return found.get("VERSION", "?"), int(protocol) if protocol.isdecimal() else 0


def _edition_here() -> Edition:
    # version and protocol of what is loaded: the files may be others by now
    return Edition(PROTOCOL, VERSION, edition_at(PACKAGE_DIR).digest)


def _told(text: str, code_dir: str, home: str) -> Stamp:
    """A process takes in who starts it; it ends here if they would not understand each other."""
    theirs = edition_of(text)
    if theirs.protocol != PROTOCOL:
        _refuse(theirs, home)
    is_copy = code_dir != home and code_dir == PACKAGE_DIR
    found = Stamp(theirs if is_copy else _edition_here(), code_dir, home)
    be(found)
    if is_copy:
        sys.meta_path.append(_HomeFinder(home))
    return found


class _HomeFinder:
    """Finds modules of servd in the directory that the copy was made of, once the copy is gone: the state directory was removed,
    say, and what this process has not loaded yet is nowhere else."""

    def __init__(self, home: str) -> None:
        self._home = home

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,  # noqa: ARG002 - the protocol's
    ) -> ModuleSpec | None:
        folder, _, _ = name.rpartition(".")
        if path is None or os.path.exists(PACKAGE_DIR) or not f"{folder}.".startswith("servd."):
            return None
        return PathFinder.find_spec(name, [os.path.join(self._home, *folder.split(".")[1:])])


def _refuse(theirs: Edition, home: str) -> NoReturn:
    print(
        f"Error: the files of servd in {PACKAGE_DIR} are of {VERSION} (protocol {PROTOCOL}), the daemon runs servd {theirs}, "
        f"which was in {home}: {WAY_OUT}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_OTHER_PROTOCOL)
