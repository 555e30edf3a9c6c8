"""Processes that user code starts inside a process of servd: what they inherit, and that they end with it.

A replica and a fork server *lead*: each has a session of its own and a mark in the environment. Whatever they start is found
by session, by mark or as a child, however it was started. A forked child gets the signals of a fresh process and no socket of
servd's.
"""

import asyncio
import os
import resource
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from servd.ground.clock import SystemClock, block_for
from servd.ground.host_limits import host_limit_in
from servd.ground.pidfd import start_ticks
from servd.ground.process import show_title
from servd.ground.quick_dataclass import dataclass

MARK = "SERVD_PROCESS"
"""Environment variable that names the leader: its pid and its start time."""

_LEADERS_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
_TRACKER = b"resource_tracker"
_TRACKER_PATIENCE_S = 1.0
"""For so long trackers of shared memory may clean up after the others are gone."""
_END_LIMIT_S = 5.0
_LOOK_AGAIN_S = 0.01
_LOOKS = 5


@dataclass(slots=True)
class _Leader:
    """known_fds: open when it began; what came between that and its first user code is servd's own."""

    pid: int
    name: str
    mark: str
    socket_dir: str
    known_fds: frozenset[int]
    own_sockets: frozenset[int] = frozenset()


_leader: _Leader | None = None
_masks = threading.local()
_is_hooked = False
_own_child: Callable[[], object] | None = None
"""What a child of servd's own does first, while one is being forked."""
_hidden: set[int] = set()
"""Descriptors that belong to others, for a while."""


def lead(title: str, state_dir: str, socket_dir: str) -> None:
    """Make this process the leader of whatever user code will start in it. On its main thread, before user code runs.

    Args:
        title: as `process.begin` has it.
        socket_dir: sockets below it are servd's; forked children do not get them.
    """
    global _leader, _is_hooked
    try:
        os.setsid()
    except PermissionError:
        # it is a session's first process already
        pass
    pid = os.getpid()
    mark = mark_of(pid, start_ticks(pid))
    _leader = _Leader(pid, f"{title} {state_dir}", mark, socket_dir, frozenset(_open_fds()))
    os.environ[MARK] = mark
    # not SIG_IGN: what is ignored stays ignored in the programs that a process starts
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, _ignore)
    if not _is_hooked:
        _is_hooked = True
        os.register_at_fork(before=_before_fork, after_in_parent=_unblock, after_in_child=_begin_child)


def mark_of(pid: int, ticks: int) -> str:
    """The mark of a leader, given its pid and its start time in ticks."""
    return f"{pid}-{ticks}"


def hide_own_sockets() -> None:
    """Keep the sockets from forked children that were opened since `lead`; before the first code of the user's."""
    if _leader is not None:
        opened = _open_fds() - _leader.known_fds
        _leader.own_sockets = frozenset(inode for _, inode in _sockets(opened))


@contextmanager
def own_fork(in_child: Callable[[], object]) -> Iterator[None]:
    """A fork in here makes a process of servd's, which sees to its signals and descriptors itself.

    Args:
        in_child: called there first, before what user code has told `os.register_at_fork`: that may open and start anew.
    """
    global _own_child
    _own_child = in_child
    try:
        yield
    finally:
        _own_child = None


def leave(code: int, *, with_children: bool = True) -> NoReturn:
    """End this process at once, after all that user code started in it.

    Args:
        with_children: children count too that are neither in the session nor marked; a fork server's are replicas.
    """
    # hundreds of replicas may end in one moment, and each look at all processes is one at all the others
    if _leader is not None and has_started_others():
        try:
            _kill_own(_leader, with_children)
        except OSError:
            # no descriptor is left to look around with: that of the standard input is one
            with suppress(OSError):
                os.close(0)
                _kill_own(_leader, with_children)
    os._exit(code)


def end_others() -> None:
    """End all that user code started in this process, which goes on without it."""
    if _leader is None or not has_started_others():
        return
    # no descriptor is left to look around with: they end with this process
    with suppress(OSError):
        _kill_own(_leader, True)
    # those that have ended before anybody asked after them
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def has_started_others() -> bool:
    """Whether this process has ever started another one; True where nobody can tell. Costs a file for each thread.

    One whose children all left for another parent has had at least one that ended.
    """
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN or any(resource.getrusage(resource.RUSAGE_CHILDREN)):
        return True
    for _ in range(_LOOKS):
        with suppress(OSError):
            # those that nobody has asked after are here also when they have ended
            return any(_read("self", f"task/{thread}/children") for thread in os.listdir("/proc/self/task"))
        # a thread has ended meanwhile: another one has its children now
    # the kernel keeps no such list, or no descriptor is left
    return True


def end_families(leaders: Collection[tuple[int, int]], known: Collection[int] = ()) -> None:
    """End all that these leaders' user code started; blocks until it is gone, for 5 s at most.

    Args:
        leaders: pid and start time in ticks of processes that are gone.
        known: pids of living processes of servd's own, which belong to nobody's family. There may be hundreds.

    Raises:
        OSError: no descriptor is left to look for them with; some may live.
    """
    marks = {mark_of(pid, ticks).encode() for pid, ticks in leaders}
    # a number that somebody else has got by now names no session of ours
    sessions = {pid for pid, ticks in leaders if start_ticks(pid) in (0, ticks)}
    clock = SystemClock()
    began = clock.now()
    while clock.now() - began < _END_LIMIT_S:
        left = [p for p in _processes(known) if p.session in sessions or _is_marked(p.pid, marks)]
        if not left:
            return
        is_late = clock.now() - began > _TRACKER_PATIENCE_S
        _kill(p.pid for p in left if is_late or not _is_tracker(p.pid))
        block_for(_LOOK_AGAIN_S)


def kill_tree(pid: int) -> None:
    """Kill a child of this process that is not waited for yet, and all that is below it.

    Raises:
        OSError: there is no descriptor left to look with; nothing was killed.
    """
    _kill(_descendants(pid, list(_processes())))


@dataclass(slots=True)
class _Process:
    pid: int
    parent: int
    session: int


def _kill_own(leader: _Leader, with_children: bool) -> None:
    marks = {leader.mark.encode()}
    killed: set[int] = set()
    while True:
        processes = list(_processes())
        family = {p.pid for p in processes if p.session == leader.pid or _is_marked(p.pid, marks)}
        if with_children:
            family |= _descendants(leader.pid, processes)
        # trackers end when nobody is left to look after, the last of whom is this process
        found = {pid for pid in family - killed - {leader.pid} if not _is_tracker(pid)}
        if not found:
            return
        _kill(found)
        killed |= found


def _descendants(pid: int, processes: Collection[_Process]) -> set[int]:
    found = {pid}
    while more := {p.pid for p in processes if p.parent in found} - found:
        found |= more
    return found


def _kill(pids: "Collection[int] | Iterator[int]") -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            # gone meanwhile, or of another user since
            pass


def _processes(known: Collection[int] = ()) -> Iterator[_Process]:
    """Living processes of this user, but for those that are known."""
    uid = os.getuid()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in known:
            continue
        try:
            if os.stat(f"/proc/{name}").st_uid != uid:
                continue
            state, parent, _, session = _read(name, "stat").rpartition(b")")[2].split()[:4]
        except (OSError, ValueError) as error:
            if host_limit_in(error):
                raise
            continue
        if state not in (b"Z", b"X"):
            yield _Process(int(name), int(parent), int(session))


def _is_marked(pid: int, marks: Collection[bytes]) -> bool:
    """Whether its environment has such a mark (it was started as a program) or its title (it was forked)."""
    try:
        environment, title = _read(pid, "environ"), _read(pid, "cmdline")
    except OSError as error:
        if host_limit_in(error):
            raise
        return False
    begin = MARK.encode() + b"="
    if any(item.startswith(begin) and item[len(begin) :] in marks for item in environment.split(b"\0")):
        return True
    words = title.split(b" ", 4)
    return words[:2] == [b"servd:", b"child"] and len(words) > 2 and words[2] in marks


def _is_tracker(pid: int) -> bool:
    try:
        return _TRACKER in _read(pid, "cmdline")
    except OSError:
        return False


def _read(pid: int | str, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()


# --- forks that user code makes ----------------------------------------------------------------------------------------


def _ignore(_number: int, _frame: object) -> None:
    """A handler that does nothing; unlike an ignored signal it is not passed on to programs."""


def _before_fork() -> None:
    # a signal that came before the child has its own handlers would reach the loop of its parent
    _masks.old = signal.pthread_sigmask(signal.SIG_BLOCK, _LEADERS_SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.old)


def _begin_child() -> None:
    global _leader, _own_child
    leader, _leader = _leader, None
    in_child, _own_child = _own_child, None
    if in_child is not None:
        try:
            in_child()
        finally:
            _unblock()
        return
    if leader is not None:
        _forget_signals()
        _close_own_sockets(leader)
        if sys.version_info < (3, 12):
            # newer ones do it themselves: the loop of the parent is not the child's
            asyncio.set_event_loop_policy(None)
        show_title(f"child {leader.mark} of {leader.name}")
    _unblock()


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number in _LEADERS_SIGNALS or _is_loops(signal.getsignal(number)):
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)


def _is_loops(handler: "Callable[..., object] | int | None") -> bool:
    """Whether it belongs to an event loop, which does not run in the child."""
    owner = getattr(handler, "__self__", None)
    name = getattr(handler, "__module__", None) or ""
    return isinstance(owner, asyncio.AbstractEventLoop) or name == "asyncio.unix_events"


def _close_own_sockets(leader: _Leader) -> None:
    for fd in _hidden:
        with suppress(OSError):
            os.close(fd)
    for fd, inode in list(_sockets(_open_fds())):
        if inode in leader.own_sockets or _is_below(fd, leader.socket_dir):
            os.close(fd)


def hide(fd: int) -> None:
    """Keep this descriptor from forked children, until it is shown again or closed."""
    _hidden.add(fd)


def show(fd: int) -> None:
    """The number may belong to something else from now on."""
    _hidden.discard(fd)


def _is_below(fd: int, directory: str) -> bool:
    """Whether one end of the socket has its name below the directory."""
    here = socket.socket(fileno=fd)
    try:
        if here.family != socket.AF_UNIX:
            return False
        names = [here.getsockname()]
        try:
            names.append(here.getpeername())
        except OSError:
            # it listens, or the other end is gone
            pass
        return any(isinstance(name, str) and name.startswith(directory + os.sep) for name in names)
    finally:
        here.detach()


def _open_fds() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}


def _sockets(fds: Collection[int]) -> Iterator[tuple[int, int]]:
    """Those of the descriptors that are sockets, with their inodes."""
    for fd in fds:
        try:
            status = os.fstat(fd)
        except OSError:
            # the descriptor with which the list was read is closed already
            continue
        if stat.S_ISSOCK(status.st_mode):
            yield fd, status.st_ino
