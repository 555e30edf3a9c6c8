"""Whether a directory takes files, asked without writing one."""

import asyncio
import contextlib
import os
from collections.abc import Mapping

from servd.ground.settings import Settings

NEEDED_BYTES = 64 * 1024
"""Less is no room: what one replica needs beside its socket, and then some."""


def trouble_of(what: str, directory: str) -> str:
    """Why nothing can be written in a directory, for people: "the socket directory /x is full"; "" if something can.

    Quotas and broken disks are not seen.

    Args:
        what: what it is, e.g. "socket directory".
    """
    try:
        found = os.statvfs(directory)
    except OSError as error:
        return f"the {what} {directory} cannot be used: {error.strerror}"
    free_bytes = found.f_frsize * (found.f_bfree if os.geteuid() == 0 else found.f_bavail)
    if found.f_flag & os.ST_RDONLY:
        return f"the {what} {directory} is read-only"
    if free_bytes < NEEDED_BYTES:
        return f"the {what} {directory} is full"
    # some file systems have no number of inodes
    if found.f_files and not found.f_ffree:
        return f"the {what} {directory} is full: it has no inode left"
    return ""


class Places:
    """The daemon's own directories that must take files, and others: what is wrong with them, for people."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings) -> None:
        self._loop = loop
        self._own = (("state", settings.state_dir), ("log", settings.log_dir), ("socket", settings.socket_dir))
        self._looking: asyncio.Future[list[str]] | None = None
        self._found: list[str] = []

    def __repr__(self) -> str:
        return f"Places({self._own}, {self._found})"

    def look(self, chosen: Mapping[str, str]) -> list[str]:
        """What is wrong now with the daemon's own, and with others as of the look before. To be called every second.

        chosen: directories that applications have chosen, and what each is called.
        """
        self._look_at_chosen(chosen)
        own = [text for name, path in self._own if (text := trouble_of(f"{name} directory", path))]
        return [*own, *self._found]

    def _look_at_chosen(self, wanted: Mapping[str, str]) -> None:
        if self._looking is not None and self._looking.done():
            self._found, self._looking = self._looking.result(), None
        if not wanted:
            self._found = []
        if not wanted or self._looking is not None:
            return
        # elsewhere: one may lie on a host that does not answer. No thread may be left: the next look tries again
        with contextlib.suppress(RuntimeError):
            self._looking = self._loop.run_in_executor(None, _troubles, wanted)


def _troubles(wanted: Mapping[str, str]) -> list[str]:
    # one that is not there will be made
    there = ((name, directory) for directory, name in wanted.items() if os.path.isdir(directory))
    return [text for name, directory in there if (text := trouble_of(name, directory))]
