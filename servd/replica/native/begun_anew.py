"""A process that has run an application only to know it begins anew, as a fresh interpreter with the same number.

How this works: where an import or a constructor has left what forbids to fork, each replica runs the code itself. What the
process that tried it has left would go on beside theirs: threads that do jobs or take messages away, ports that it listens at,
programs, connections, memory, what it holds on a GPU. `exec` ends all of that at once, however it was made.
"""

import logging
import multiprocessing
import multiprocessing.context
import multiprocessing.spawn
import os
import signal
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from io import BytesIO
from multiprocessing import reduction
from typing import Any

from servd.ground import descendants, entry, forks
from servd.ground.edition import stamp
from servd.ground.quick_dataclass import dataclass
from servd.replica.native import written

_SAFE_DIR = "/"
"""Where no module of the application's lies: an interpreter of a command looks for its own in the current directory first."""
# a debugger puts one of its own in that place
_execve = os.execve

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where code was run: the import path, and the current directory."""

    path: tuple[str, ...]
    cwd: str


def go_back(place: Place) -> None:
    """Let what is started from here find modules and files as where the application was run."""
    # the directory may have gone
    with suppress(OSError):
        os.chdir(place.cwd)
    sys.path[:] = place.path


def begin_anew(target: str, *args: Any, path: Sequence[str], kept: Collection[int]) -> None:
    """Be a fresh interpreter that calls `target` ("module:function"); back only where the host lets no program be started.

    What user code has made is cleaned up, and what it has started is ended. To be called on the main thread.

    Args:
        args: what can be pickled; the place where this is called comes last. The environment and all else that belongs to a
            process stay as they are.
        path: on which servd is found. kept: descriptors that stay open, beside the standard ones.
    """
    try:
        place = Place(tuple(sys.path), os.getcwd())
        fd = _written_down(path, target, *args, place)
    except OSError as error:
        logger.warning("not_begun_anew reason=%s", error)
        return
    # children that end leave nothing behind from now on
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    written.flush()
    forks.flush_streams()

    def begin() -> None:
        descendants.end_others()
        for one in {int(name) for name in os.listdir("/proc/self/fd")}:
            # that with which the list was read is closed
            with suppress(OSError):
                os.set_inheritable(one, one <= 2 or one == fd or one in kept)
        os.chdir(_SAFE_DIR)
        command = multiprocessing.spawn.get_command_line(pipe_handle=fd)
        _execve(multiprocessing.spawn.get_executable(), command, dict(os.environ))

    try:
        # without a thread to watch over it, what cleans up might take for ever
        with suppress(RuntimeError):
            forks.run_finalizers(begin)
        begin()
    except OSError as error:
        logger.warning("not_begun_anew reason=%s", error)
        os.close(fd)
        go_back(place)


def _written_down(path: Sequence[str], target: str, *args: Any) -> int:
    """Descriptor of what the interpreter that multiprocessing starts reads: what to prepare, then the process."""
    process = multiprocessing.get_context("spawn").Process(target=entry.call, args=(stamp(), target, *args))
    buffer = BytesIO()
    context: Any = multiprocessing.context
    context.set_spawning_popen(process)
    try:
        reduction.dump({"name": process.name, "sys_path": list(path), "sys_argv": sys.argv}, buffer)
        reduction.dump(process, buffer)
    finally:
        context.set_spawning_popen(None)
    fd = os.memfd_create("servd")
    with open(fd, "wb", closefd=False) as file:
        file.write(buffer.getvalue())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
