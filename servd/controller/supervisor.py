"""Processes: started with multiprocessing, watched through pidfds, killed."""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from servd.exceptions import HostLimitError
from servd.ground import entry
from servd.ground.descendants import end_families
from servd.ground.edition import stamp
from servd.ground.host_limits import descriptors_left, host_limit_in, no_descriptor, told
from servd.ground.pidfd import open_process, start_ticks
from servd.ground.quick_dataclass import dataclass

SPARE_DESCRIPTORS = 16
"""So many a process is not started for: its line, admin requests and files need some, and those that live must be tended."""
LOOK_S = 0.5
"""How often to look for a process of which there is no handle."""
NO_HANDLE = -1
_STATUS_WAIT_S = 0.25
_EXPANDED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LD_PRELOAD")

logger = logging.getLogger(__name__)

Key = tuple[str, str]
"""(kind, id) of a process: ("replica", its tag), ("proxy", its id), ("fork_server", its id)."""


class Supervisor:
    """Knows the living processes of servd, own children and adopted ones.

    Args:
        lifetime: read end of the lifetime pipe, the last argument of every process.
        on_exit: called once for each process that is gone, with its key, pid and exit code (negative = killed by that
            signal, None = unknown).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lifetime: Connection,
        on_exit: Callable[[Key, int, int | None], None],
    ) -> None:
        self._loop = loop
        self._lifetime = lifetime
        self._on_exit = on_exit
        self._context = multiprocessing.get_context("spawn")
        self._watched: dict[Key, _Watched] = {}
        self._by_pid: dict[int, _Watched] = {}
        self._left_behind: set[tuple[int, int]] = set()
        self._ending: asyncio.Task[None] | None = None
        self._none_left = asyncio.Event()
        self._none_left.set()

    def __repr__(self) -> str:
        return f"Supervisor({ {f'{kind} {name}': w.pid for (kind, name), w in self._watched.items()} })"

    def start(self, key: Key, target: str, arguments: tuple[Any, ...], variables: Mapping[str, str]) -> tuple[int, int]:
        """Start a process that calls `target` ("module:function"); gives its pid and start time in ticks.

        Args:
            variables: environment variables that shall hold before its interpreter starts, over those of this process.

        Raises:
            HostLimitError: no process or no descriptor is left for it. Nothing was begun then.
        """
        self.check_room()
        process = self._context.Process(
            target=entry.call, args=(stamp(), target, *arguments, self._lifetime), name=f"{key[0]} {key[1]}"
        )
        try:
            with _environment(variables):
                process.start()
        except OSError as error:
            if host_limit_in(error, at_fork=True):
                raise HostLimitError(told(error, at_fork=True)) from error
            raise
        pid = process.pid or 0
        try:
            # nobody else reaps a child, so the number is still its own
            ticks, fd = start_ticks(pid), os.pidfd_open(pid)
        except OSError as error:
            process.kill()
            process.join()
            raise HostLimitError(told(error)) from error
        self._watch(_Watched(key, pid, ticks, fd, process))
        return pid, ticks

    def check_room(self) -> None:
        """Check that another process can be watched and heard.

        Raises:
            HostLimitError: this one has too few descriptors left.
        """
        if descriptors_left(self._lifetime.fileno()) < SPARE_DESCRIPTORS:
            raise HostLimitError(f"the controller cannot tend another one: {no_descriptor()}")

    def adopt(self, key: Key, pid: int, ticks: int) -> bool:
        """Watch a process that somebody else started; False when it is gone already, and what it had started is ended."""
        if key in self._watched:
            return True
        try:
            fd = open_process(pid, ticks)
        except OSError as error:
            # one that lives must not be taken for dead: another would be started in its place, again and again
            logger.warning("watched_without_handle kind=%s id=%s pid=%d reason=%s", *key, pid, told(error))
            fd = NO_HANDLE
        if fd is None:
            self._end_family(pid, ticks)
            return False
        self._watch(_Watched(key, pid, ticks, fd, None))
        return True

    def is_watched(self, key: Key) -> bool:
        """Whether the process is known and has not exited."""
        return key in self._watched

    def kill(self, key: Key) -> bool:
        """SIGKILL; False when no such process is known."""
        watched = self._watched.get(key)
        if watched is None:
            return False
        if watched.fd == NO_HANDLE:
            watched.is_to_be_killed = True
            self._look(watched)
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(watched.fd, signal.SIGKILL)
        return True

    def kill_all(self) -> None:
        """SIGKILL to every process that is known."""
        for key in list(self._watched):
            self.kill(key)

    def living(self) -> list[Key]:
        """Every process that is known."""
        return list(self._watched)

    async def wait_until_none_lives(self, limit_s: float) -> bool:
        """Wait until every process is gone, and what they had started; False when some are left after `limit_s`.

        It asks nobody who could have forgotten one of them, as facts may have.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._none_left.wait(), max(limit_s, 0.0))
        return self._none_left.is_set()

    def note_status(self, pid: int, exit_code: int) -> None:
        """Take the exit code of somebody else's child from the process that reaped it."""
        watched = self._by_pid.get(pid)
        if watched is not None and watched.process is None:
            self._gone(watched, exit_code)

    def _watch(self, watched: "_Watched") -> None:
        self._none_left.clear()
        self._watched[watched.key] = watched
        self._by_pid[watched.pid] = watched
        if watched.fd == NO_HANDLE:
            watched.timer = self._loop.call_later(LOOK_S, self._look, watched)
        else:
            self._loop.add_reader(watched.fd, self._exited, watched)

    def _look(self, watched: "_Watched") -> None:
        """Get a handle of a process for which there was no descriptor, or see that it is gone."""
        if watched.timer is not None:
            watched.timer.cancel()
        try:
            fd = open_process(watched.pid, watched.ticks)
        except OSError:
            watched.timer = self._loop.call_later(LOOK_S, self._look, watched)
            return
        watched.timer = None
        if fd is None:
            self._exited(watched)
            return
        watched.fd = fd
        self._loop.add_reader(fd, self._exited, watched)
        if watched.is_to_be_killed:
            self.kill(watched.key)

    def _exited(self, watched: "_Watched") -> None:
        if watched.fd != NO_HANDLE:
            self._loop.remove_reader(watched.fd)
        if watched.process is not None:
            exit_code = watched.process.exitcode
            if exit_code is not None:
                watched.process.close()
            self._gone(watched, exit_code)
        else:
            # only its parent can tell the status, and does so in a moment
            watched.timer = self._loop.call_later(_STATUS_WAIT_S, self._gone, watched, None)

    def _gone(self, watched: "_Watched", exit_code: int | None) -> None:
        if self._watched.get(watched.key) is not watched:
            return
        del self._watched[watched.key]
        self._by_pid.pop(watched.pid, None)
        if watched.timer is not None:
            watched.timer.cancel()
        if watched.fd != NO_HANDLE:
            self._loop.remove_reader(watched.fd)
            os.close(watched.fd)
        self._end_family(watched.pid, watched.ticks)
        self._on_exit(watched.key, watched.pid, exit_code)

    def _end_family(self, pid: int, ticks: int) -> None:
        """End what user code had started in a process that is gone; many deaths at a time cost one look at all processes."""
        self._left_behind.add((pid, ticks))
        self._none_left.clear()
        if self._ending is None:
            self._ending = self._loop.create_task(self._end_families())

    async def _end_families(self) -> None:
        while self._left_behind:
            leaders, self._left_behind = self._left_behind, set()
            try:
                await asyncio.to_thread(end_families, leaders, frozenset(self._by_pid))
            except (OSError, RuntimeError) as error:
                if not host_limit_in(error):
                    raise
                # no thread, or no descriptor to look around with: again in a moment
                self._left_behind |= leaders
                await asyncio.sleep(LOOK_S)
        self._ending = None
        if not self._watched:
            self._none_left.set()


@dataclass(slots=True, eq=False)
class _Watched:
    key: Key
    pid: int
    ticks: int
    fd: int
    process: BaseProcess | None
    timer: asyncio.TimerHandle | None = None
    is_to_be_killed: bool = False


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """`os.environ` with these variables, as it was afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: expanded(name, value, before[name] or "") for name, value in variables.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def expanded(name: str, value: str, old: str) -> str:
    """A variable's new value: `${NAME}` in it stands for the old value, for search paths only.

    A new PYTHONPATH goes before the old one: servd itself may have been found there.
    """
    if name == "PYTHONPATH" and old:
        return f"{value}{os.pathsep}{old}"
    return value.replace(f"${{{name}}}", old) if name in _EXPANDED else value
