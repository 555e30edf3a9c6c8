"""A log file: it rotates by size and by the hand of others, and what cannot be written is lost and holds nothing up."""

import contextlib
import fcntl
import glob
import itertools
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path

from servd.ground.clock import SystemClock

MAX_FILE_BYTES = 512 * 1024 * 1024
BACKUP_FILES = 5
RETRY_S = 1.0
"""Between two tries to open a file that is away."""
DEAD_FILES_KEPT = 100
"""Log files of replicas that are gone, of all deployments together."""
DEAD_BYTES_KEPT = 2 * 1024 * 1024 * 1024
"""What they may hold together; the newest one stays whatever it holds."""


_SET_ASIDE = re.compile(r"\.before-\d+$")


class LogFile:
    """A log file that several processes may append to and that rotates by size, or by the hand of somebody who renames it.

    Logs are expendable: where the file cannot be opened, is removed or takes nothing, lines are lost, and it is tried again.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES, backups: int = BACKUP_FILES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._clock = SystemClock()
        self._is_away = self._is_torn = False
        self._look_at = 0.0
        self._end = 0
        self._stood_in: tuple[int, ...] = ()
        self._link: Path | None = None
        self._fd = self._open_or_none()

    def __repr__(self) -> str:
        return f"LogFile({self._path})"

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._path

    def write(self, data: bytes) -> None:
        """Append whole lines; a full or broken disk loses them silently."""
        try:
            size = self._make_room(len(data))
            if self._is_torn or (self._stood_in and size != self._end and self._has_open_end(size)):
                # what the disk had room for of an earlier line, or somebody printed, must not become the begin of this one
                data = b"\n" + data
            written = os.write(self._fd, data)
        except OSError:
            return
        self._end = size + written
        if written < len(data) or self._is_torn:
            self._is_torn = data[written - 1 : written] != b"\n"

    def tend(self) -> None:
        """Rotate it and find it again as `write` does, where others write to it without a look."""
        with contextlib.suppress(OSError):
            self._make_room(0)

    def stand_in_for(self, *fds: int) -> None:
        """Be these descriptors too, for this process and those that it starts."""
        for fd in fds:
            os.dup2(self._fd, fd)
        self._stood_in = fds

    def move(self, path: Path, linked_from: Path | None = None) -> None:
        """Go on elsewhere.

        Args:
            linked_from: a name in another directory under which it can be found too, and so can those that it rotates to; None =
                none. What has that name, or `path`, and what it rotated to, is called NAME.before-1.log from now on, or by the
                first number that is free.
        """
        if linked_from is not None and _is_one(path.parent, linked_from.parent):
            # the usual place by another name: a link would lead to itself
            path, linked_from = linked_from, None
        if path == self._path:
            return
        with contextlib.suppress(OSError):
            self._set_aside(linked_from or path)
        self._path, self._link = path, linked_from
        self._replace(self._open_or_none())

    def fileno(self) -> int:
        """Its descriptor; the same number for ever."""
        return self._fd

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _make_room(self, size: int) -> int:
        """Gives how long the file is."""
        status = os.fstat(self._fd)
        if self._is_away or not self._is_in_place(status):
            self._find_again()
        elif status.st_size and status.st_size + size > self._max_bytes:
            self._rotate()
        else:
            return status.st_size
        return os.fstat(self._fd).st_size

    def _has_open_end(self, size: int) -> bool:
        """Whether the line at the end of the file, written by whoever, has no end yet."""
        if not size:
            return False
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, 1, size - 1) != b"\n"
        finally:
            os.close(fd)

    def _open_or_none(self) -> int:
        """The file, else what swallows everything."""
        try:
            fd = self._open_in_directory()
        except OSError:
            self._is_away = True
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._is_away = False
        return fd

    def _open_in_directory(self) -> int:
        try:
            return self._open()
        except FileNotFoundError:
            self._make_directories()
            return self._open()

    def _make_directories(self) -> None:
        # no more than the log root and its one directory: a state directory that is gone must be seen to be gone
        for directory in (self._path.parent.parent, self._path.parent):
            directory.mkdir(mode=0o700, exist_ok=True)

    def _find_again(self) -> None:
        now = self._clock.now()
        if self._is_away and now < self._look_at:
            return
        self._look_at = now + RETRY_S
        directory = self._path.parent
        if self._link is not None and directory.is_dir() and (trouble := _openness(str(directory))):
            self.move(self._link)
            # as what is printed: a line of the log would be written from within a line of it
            os.write(self._fd, f"logs_dir_not_used reason={trouble} instead={self._path.parent}\n".encode())
            return
        self._replace(self._open_or_none())

    def _replace(self, successor: int) -> None:
        # under the same number: others write to it as well
        self._is_torn = False
        os.dup2(successor, self._fd, inheritable=False)
        os.close(successor)
        for fd in self._stood_in:
            os.dup2(self._fd, fd)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        if self._link is None:
            return os.open(self._path, flags, 0o600)
        # a directory that is not ours alone: no link of somebody's may lead us on, no pipe hold us up
        if trouble := _openness(str(self._path.parent)):
            raise PermissionError(trouble)
        fd = os.open(self._path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileExistsError(f"{self._path} is no file")
        with contextlib.suppress(OSError):
            self._keep_links(self._link)
        return fd

    def _set_aside(self, usual: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(usual)
            if stat.S_ISREG(status.st_mode) and not status.st_size:
                os.unlink(usual)
        family = [suffix for suffix in self._suffixes() if os.path.lexists(f"{usual}{suffix}")]
        for number in itertools.count(1):
            name = usual.with_suffix(f".before-{number}.log")
            if not any(os.path.lexists(f"{name}{suffix}") for suffix in self._suffixes()):
                for suffix in family:
                    os.rename(f"{usual}{suffix}", f"{name}{suffix}")
                return

    def _suffixes(self) -> tuple[str, ...]:
        return ("", *(f".{number}" for number in range(1, self._backups + 1)))

    def _keep_links(self, link: Path) -> None:
        for directory in (link.parent.parent, link.parent):
            directory.mkdir(mode=0o700, exist_ok=True)
        aside = glob.glob(f"{glob.escape(str(link.with_suffix('')))}.before-*.log*")
        for suffix in self._suffixes():
            target, name = f"{self._path}{suffix}", f"{link}{suffix}"
            lead = _lead(name)
            if os.path.exists(target) and lead != target and (lead or not os.path.lexists(name)):
                if lead:
                    os.unlink(name)
                os.symlink(target, name)
            # back where it was: one name of each file is enough
            for other in aside:
                if _lead(other) == target:
                    os.unlink(other)

    def _rotate(self) -> None:
        # whoever comes second finds another file under the name and only opens it
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        if self._is_in_place(os.fstat(self._fd)):
            for number in range(self._backups - 1, 0, -1):
                backup = Path(f"{self._path}.{number}")
                if backup.exists():
                    backup.replace(f"{self._path}.{number + 1}")
            self._path.replace(f"{self._path}.1")
        self._replace(self._open())

    def _is_in_place(self, status: os.stat_result) -> bool:
        try:
            return os.path.samestat(status, os.stat(self._path))
        except OSError:
            return False


def directory_trouble(logs_dir: str) -> str:
    """Why log files cannot be written there, as far as a look can tell, "" if they can; one that is not there could be made."""
    there = Path(logs_dir)
    while not os.path.lexists(there):
        there = there.parent
    if not os.path.isdir(there):
        return f"cannot make the directory {logs_dir}: {there} is no directory"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"cannot write in the directory {there}"
    return _openness(logs_dir) if there == Path(logs_dir) else ""


def make_directory(logs_dir: str) -> str:
    """Make it if it is not there; gives why log files cannot be written there, "" if they can."""
    try:
        os.makedirs(logs_dir, mode=0o700, exist_ok=True)
    except OSError as error:
        return f"cannot make the directory {logs_dir}: {error.strerror}"
    return directory_trouble(logs_dir)


def _openness(directory: str) -> str:
    """Who else could put a link or a pipe in the place of a log file there, for people; "" = nobody."""
    try:
        status = os.stat(directory)
    except OSError as error:
        return f"cannot look at the directory {directory}: {error.strerror}"
    if status.st_uid not in (0, os.getuid()):
        return f"does not write in the directory {directory}: it belongs to uid {status.st_uid}; give one of its own user's"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        return f"does not write in the directory {directory}: others may (mode {mode:o}); chmod go-w {directory}"
    return ""


def forget_dead(
    log_dir: str, living: Collection[str], kept: int = DEAD_FILES_KEPT, kept_bytes: int = DEAD_BYTES_KEPT
) -> None:
    """Remove the log files of replicas that are gone, with those they rotated to, all but the newest.

    Args:
        living: names as `replica_file` gives them.
        kept, kept_bytes: how many stay, and how much they hold together; the newest one stays in any case.
    """
    dead = []
    try:
        for entry in os.scandir(Path(log_dir) / "serve"):
            if entry.name.startswith("deployment_") and f"{_stem(entry.name)}.log" not in living:
                # one that leads to a file that is gone is a dead one too
                status = entry.stat(follow_symlinks=os.path.exists(entry.path))
                dead.append((status.st_mtime, entry.path, status.st_size))
        held = 0
        for number, (_, path, size) in enumerate(sorted(dead, reverse=True)):
            held += size
            if number >= kept or (number and held > kept_bytes):
                _remove_log(path)
    except OSError:
        # the directory is gone or read-only, or somebody else cleans up: logs are expendable, also to us
        pass


def _stem(name: str) -> str:
    """The name of a replica's log file before `.log`, also of what it rotated to and what was set aside."""
    return _SET_ASIDE.sub("", name.rpartition(".log")[0])


def _is_one(directory: Path, other: Path) -> bool:
    try:
        return os.path.samefile(directory, other)
    except OSError:
        return False


def _lead(path: str) -> str:
    """Where a link leads to, "" where there is none."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _remove_log(path: str) -> None:
    """Remove a log file, and the one in a `logs_dir` if it is a link to that."""
    target = _lead(path)
    if os.path.basename(target).startswith(f"{_stem(os.path.basename(path))}.log"):
        with contextlib.suppress(OSError):
            os.unlink(target)
    os.unlink(path)
