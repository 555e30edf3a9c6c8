"""Forks of processes of servd, which leave nothing behind where the host gives no process."""

import atexit
import gc
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from servd.ground import descendants, process
from servd.ground.host_limits import descriptor_limit, no_descriptor, told

_CHILD_FDS = 8
"""Descriptors that a fork takes at most, and one for whoever connects."""


class Child(Protocol):
    """A process that is yet to be forked."""

    def start(self) -> None:
        """Fork it."""
        ...


def start(child: Child) -> str:
    """Fork `child`; gives why the host lets no process be made, "" if it lives."""
    flush_streams()
    try:
        before = process.open_fds()
    except OSError as error:
        return told(error)
    if descriptor_limit() - len(before) < _CHILD_FDS:
        return no_descriptor()
    try:
        with warnings.catch_warnings(), descendants.own_fork(), _exit_handlers_kept(), process.stdin_kept():
            # the kernel's thread count is not what matters: fork_safety has judged it
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
    except OSError as error:
        # multiprocessing forgets the pipes of a child that it could not make, but not its tracker's, which a spawn starts first
        for fd in process.open_fds() - before - {process.tracker_fd()}:
            process.close_fd(fd)
        return told(error, at_fork=True)
    return ""


def freeze() -> None:
    """Let children share what is in memory now, as far as that goes.

    To be called before a fork, in a process that makes no garbage: their collectors leave alone what is frozen. And Python
    remembers where it has found attributes, together with their names; a child that put others in their places would count
    references of names all over the memory.
    """
    gc.freeze()
    # from Python 3.13 on it has a name of wider meaning
    forget: Any = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache
    forget()


def flush_streams() -> None:
    """Write what was printed, if that goes: an application may have put anything in the place of its streams, or nothing."""
    for stream in (sys.stdout, sys.stderr):
        # closed, its reader gone, no `flush`, or whatever a class of the application's raises
        with suppress(Exception):
            stream.flush()


@contextmanager
def _exit_handlers_kept() -> Iterator[None]:
    """What an application registers while it is imported is run by each replica: with later releases of Python 3.13, and from
    3.14 on, multiprocessing forgets it in the child.
    """
    clear = atexit._clear

    def keep() -> None:
        # in the child, which never comes back to the end of this context
        atexit._clear = clear

    atexit._clear = keep
    try:
        yield
    finally:
        atexit._clear = clear
