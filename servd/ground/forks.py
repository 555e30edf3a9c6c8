"""Forks of processes of servd, which leave nothing behind where the host gives no process.

How finalizers work here: `weakref.finalize` cleans up as a process ends, and `tempfile.TemporaryDirectory` with it. A forked
child has a copy of each that an application made before, and the first replica that ends would remove what all others use. So
they are left to the process that made them, which runs them once, when nobody is left who uses that. `multiprocessing` and its
own finalizers follow the same rule; handlers of `atexit` cannot be told apart, and are run by each replica.
"""

import atexit
import gc
import select
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from servd.ground import descendants, process
from servd.ground.clock import SystemClock
from servd.ground.host_limits import descriptor_limit, no_descriptor, told

EXIT_LIMIT_S = 2.0
"""How long exit handlers and finalizers may take."""

_finalize: Any = weakref.finalize
_now = SystemClock().now

_CHILD_FDS = 8
"""Descriptors that a fork takes at most, and one for whoever connects."""


class Child(Protocol):
    """A process that is yet to be forked."""

    def start(self) -> None:
        """Fork it."""
        ...


def start(child: Child, in_child: Callable[[], object] = lambda: None) -> str:
    """Fork `child`; gives why the host lets no process be made, "" if it lives. in_child: see `descendants.own_fork`."""
    flush_streams()
    try:
        before = process.open_fds()
    except OSError as error:
        return told(error)
    if descriptor_limit() - len(before) < _CHILD_FDS:
        return no_descriptor()
    try:
        with warnings.catch_warnings(), descendants.own_fork(in_child), _exit_handlers_kept(), process.stdin_kept():
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


def disown_finalizers() -> None:
    """In a forked child: leave what was made so far to the parent. What the child's own code drops is cleaned up all the same."""
    for finalizer in list(_finalize._registry):
        finalizer.atexit = False


def run_finalizers_after(children: Collection[int]) -> None:
    """Clean up what this process made, once these have ended; not where one lives longer than the end of a replica may take.

    Args:
        children: pidfds.
    """
    if not _has_finalizers():
        return
    living = select.poll()
    left = set(children)
    for fd in left:
        living.register(fd, select.POLLIN)
    limit = _now() + process.LIFETIME_DRAIN_S + EXIT_LIMIT_S
    while left and (rest_s := limit - _now()) > 0:
        for fd, _ in living.poll(rest_s * 1000):
            living.unregister(fd)
            left.discard(fd)
    if not left:
        run_finalizers(lambda: descendants.leave(1, with_children=False))


def run_finalizers(at_limit: Callable[[], object]) -> None:
    """Clean up what this process made. at_limit: called, on another thread, where that takes longer than an end may take."""
    if not _has_finalizers():
        return
    # user code: it may take for ever
    timer = threading.Timer(EXIT_LIMIT_S, at_limit)
    timer.daemon = True
    timer.start()
    _finalize._exitfunc()
    timer.cancel()


def _has_finalizers() -> bool:
    return any(finalizer.atexit for finalizer in list(_finalize._registry))


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
