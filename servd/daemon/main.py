"""The daemon: tiny, without user input, so it does not fail.

It owns what must outlive the others: the lock of the state directory, the listening sockets, the write end of the lifetime
pipe. It starts the controller again when it dies, and is the parent of orphans. Every spawned process imports this
module as its main module, so it loads little.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.resource_tracker
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from servd.daemon.directories import empty_socket_dir, make_directories, say
from servd.daemon.keepsake import Keepsake
from servd.daemon.listeners import Listeners
from servd.daemon.printed import PrintedLog
from servd.daemon.service_notice import ServiceNotice
from servd.daemon.spawned_controller import spawned_controller
from servd.daemon.start_check import check_host
from servd.daemon.state_lock import listening_daemon, lock_state_dir
from servd.daemon.unix_sockets import UnixSockets
from servd.exceptions import AlreadyRunningError, HostLimitError, ListenError, ServdError
from servd.ground.clock import SystemClock
from servd.ground.pidfd import exit_code_of
from servd.ground.settings import TIED_OPTION, Settings
from servd.wire.codec import RecordReader, record
from servd.wire.daemon_messages import (
    EXIT_REFUSED,
    CloseListeners,
    InstanceServing,
    ListenersOpened,
    OpenListeners,
    OrphanExited,
    Reload,
    Reloaded,
    SocketsMoved,
    StopController,
)

STOP_TIMEOUT_S = 60.0
LEFTOVER_DRAIN_S = 4.5
CRASH_PATIENCE_S = 5.0
SETTLED_AFTER_S = 10.0
START_AGAIN_S = 1.0
"""After a controller could not even be started."""
LOOK_S = 1.0
"""How often to look whether the Unix sockets are still there."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)


class Daemon:
    """Keeps a controller running until it is told to stop.

    Args:
        unix: the sockets in the socket directory.
        ports: sockets of the admin port and of the metrics port.
    """

    def __init__(
        self, settings: Settings, listeners: Listeners, unix: UnixSockets, ports: tuple[Any, ...], tied_to: int | None
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._unix = unix
        self._look_at = 0.0
        self._ports = ports
        self._tied_to = tied_to
        self._clock = SystemClock()
        self._poll = select.poll()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._lifetime_reader, self._lifetime_writer = multiprocessing.Pipe(duplex=False)
        self._controller: Any = None
        self._channel: socket.socket | None = None
        self._records = RecordReader()
        self._orphans: list[OrphanExited] = []
        self._starts = 0
        self._quick_deaths = 0
        self._started_at = 0.0
        self._start_at: float | None = 0.0
        self._start_trouble = ""
        self._stop_by: float | None = None
        self._result: int | None = None
        self._notice = ServiceNotice()
        self._printed = PrintedLog(settings.log_dir)
        self._keepsake = Keepsake()
        # a terminal that is closed ends what runs in it; without one the signal means: read your files again
        self._hang_up_ends = os.isatty(0)

    def run(self) -> int:
        """Serve until a signal; gives the exit code."""
        self._watch_signals()
        self._tell(*self._settings.places())
        if self._tied_to is not None:
            self._poll.register(self._tied_to, select.POLLIN)
        while self._result is None:
            now = self._clock.now()
            if self._start_at is not None and self._start_at <= now:
                self._start_controller()
            if self._look_at <= now:
                self._look_at = now + LOOK_S
                self._tend_sockets()
                self._printed.tend()
            for fd, _ in self._poll.poll(self._timeout_ms(now)):
                self._handle(fd)
            if self._stop_by is not None and self._clock.now() >= self._stop_by and self._controller is not None:
                self._controller.kill()
        self._end_leftovers()
        return self._result

    def _tell(self, *lines: str) -> None:
        """Say where things are, unless it is the business of the command that this daemon belongs to."""
        if self._tied_to is None:
            for line in lines:
                say(line)

    def _watch_signals(self) -> None:
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                signal.signal(number, _note)
        self._poll.register(self._wake_reader, select.POLLIN)

    def _timeout_ms(self, now: float) -> float:
        moments = [moment for moment in (self._start_at, self._stop_by, self._look_at) if moment is not None]
        return max(0.0, min(moments) - now) * 1000 + 1

    def _tend_sockets(self) -> None:
        before = self._unix.trouble
        if self._unix.tend():
            say(f"the sockets in {self._settings.socket_dir} were gone; they are bound anew")
            self._send(SocketsMoved(), [listener.fileno() for listener in self._unix.sockets])
        elif self._unix.trouble and self._unix.trouble != before:
            say(f"the sockets in {self._settings.socket_dir} are gone and cannot be bound anew: {self._unix.trouble}")

    def _handle(self, fd: int) -> None:
        if fd == self._wake_reader.fileno():
            numbers = self._wake_reader.recv(4096)
            self._reap()
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                self._stop()
            if signal.SIGHUP in numbers:
                self._hang_up()
        elif fd == self._tied_to:
            self._poll.unregister(fd)
            self._stop()
        elif self._channel is not None and fd == self._channel.fileno():
            self._receive(self._channel)

    def _start_controller(self) -> None:
        kept = (*self._unix.sockets, *self._ports, self._keepsake)
        try:
            self._controller, ours = spawned_controller(self._settings, self._lifetime_reader, *kept)
        except HostLimitError as error:
            if self._starts == 0:
                raise
            # who serves goes on, and there may be a process and a descriptor in a moment
            self._start_at = self._clock.now() + START_AGAIN_S
            if str(error) != self._start_trouble:
                self._start_trouble = str(error)
                say(f"{error}; it is tried again every second")
            return
        self._start_trouble = ""
        self._channel = ours
        self._records = RecordReader()
        self._poll.register(ours, select.POLLIN)
        self._starts += 1
        self._started_at = self._clock.now()
        self._start_at = None
        for orphan in self._orphans:
            self._send(orphan)
        self._orphans.clear()

    def _controller_exited(self, exit_code: int) -> None:
        self._controller = None
        self._drop_channel()
        if self._stop_by is not None:
            self._result = 0
            return
        if exit_code == EXIT_REFUSED and self._starts == 1:
            self._result = 1
            return
        now = self._clock.now()
        self._quick_deaths = 0 if now - self._started_at > SETTLED_AFTER_S else self._quick_deaths + 1
        delay_s = 0.0 if self._quick_deaths <= 1 else min(0.1 * 2**self._quick_deaths, 5.0)
        self._start_at = now + delay_s
        say(f"the controller exited with {exit_code}; starting it again in {delay_s:.1f} s")

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self._poll.unregister(self._channel)
            self._channel.close()
            self._channel = None

    def _receive(self, channel: socket.socket) -> None:
        try:
            data = channel.recv(65536, socket.MSG_DONTWAIT)
            messages = self._records.feed(data) if data else []
        except (OSError, ServdError):
            data, messages = b"", []
        if not data:
            # it is dying, or speaks nonsense: its exit brings the next one
            self._drop_channel()
            if self._controller is not None:
                self._controller.kill()
        for message in messages:
            match message:
                case OpenListeners():
                    self._open(message)
                case CloseListeners():
                    self._listeners.close(message.host, message.port)
                case InstanceServing():
                    self._notice.ready(message.status)
                case Reloaded():
                    self._notice.ready(f"nothing was reloaded: {message.error}" if message.error else "reloaded")

    def _hang_up(self) -> None:
        if self._hang_up_ends:
            self._stop()
        elif self._channel is not None:
            self._notice.reloading(self._clock.now())
            self._send(Reload())

    def _open(self, wish: OpenListeners) -> None:
        answer = ListenersOpened(wish.request_id, wish.host, wish.port)
        is_new = not self._listeners.has(wish.host, wish.port)
        try:
            found = self._listeners.open(wish.host, wish.port, wish.slots)
        except ListenError as error:
            self._send(replace(answer, error=error.reason))
        else:
            self._send(answer, [listener.fileno() for listener in found])
            if is_new:
                self._tell(self._settings.http_place(wish.host, wish.port))

    def _send(self, message: Any, fds: list[int] | None = None) -> None:
        if self._channel is None:
            return
        try:
            if fds:
                socket.send_fds(self._channel, [record(message)], fds)
            else:
                self._channel.sendall(record(message))
        except OSError as error:
            say(f"the controller does not listen: {error}")

    def _reap(self) -> None:
        while True:
            try:
                # look before reaping: the controller's status belongs to multiprocessing
                status = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if status is None:
                return
            if self._controller is not None and status.si_pid == self._controller.pid:
                self._controller.join()
                self._controller_exited(exit_code_of(status))
                continue
            os.waitpid(status.si_pid, 0)
            orphan = OrphanExited(status.si_pid, exit_code_of(status))
            if self._channel is not None:
                self._send(orphan)
            else:
                self._orphans.append(orphan)

    def _stop(self) -> None:
        self._notice.stopping()
        now = self._clock.now()
        if self._controller is None:
            self._start_at = None
            self._result = 0
        elif self._stop_by is None:
            self._stop_by = now + STOP_TIMEOUT_S + LEFTOVER_DRAIN_S
            self._send(StopController(STOP_TIMEOUT_S))
        else:
            # asked twice: now
            self._controller.kill()

    def _end_leftovers(self) -> None:
        """No process outlives the daemon: end of file on the lifetime pipe first, then SIGKILL."""
        self._lifetime_writer.close()
        kill_at = self._clock.now() + (LEFTOVER_DRAIN_S if self._result == 0 else 0.5)
        give_up_at = kill_at + 2.0
        while left := list(_children()):
            now = self._clock.now()
            if now >= give_up_at:
                say(f"processes still alive: {left}")
                return
            if now >= kill_at:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self._poll.poll(50)
            with contextlib.suppress(BlockingIOError):
                self._wake_reader.recv(4096)
            self._reap()


def _note(_number: int, _frame: object) -> None:
    """The wake-up descriptor carries the number; a handler does nothing."""


def _forgo_tracker() -> None:
    """Spare the process that multiprocessing starts beside the first spawned one.

    It cleans up after semaphores and shared memory, and servd has none. What is set here is what every spawned process
    has: a descriptor to write to. Processes with code of the user's forget it, and get a tracker when they need one.
    """
    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    tracker._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _children() -> Iterator[int]:
    """Living processes whose parent this one is; zombies count until they are reaped."""
    own = str(os.getpid()).encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1] == own:
                    yield int(name)


def _become_subreaper() -> None:
    # loaded here only: every spawned process imports this module
    import ctypes

    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def parse_settings(text: str) -> Settings:
    """The settings behind the JSON text that `servd start` hands over."""
    values = json.loads(text)
    values["admin_allowed_hosts"] = tuple(values.get("admin_allowed_hosts", ()))
    return Settings(**values)


def serve(settings: Settings, tied_to: int | None) -> int:
    """Be the daemon of a state directory until told to stop; gives the exit code.

    Raises:
        ServdError: it cannot start, and why.
    """
    check_host(settings.proxies)
    make_directories(settings)
    lock, was_unclean = lock_state_dir(settings.state_dir)
    if (pid := listening_daemon(settings.socket_dir)) is not None:
        # its state directory was deleted, or its lock would be taken; its sockets are not ours to remove
        raise AlreadyRunningError(settings.state_dir, pid)
    empty_socket_dir(settings.socket_dir)
    unix = UnixSockets(settings.socket_dir)
    listeners = Listeners(CRASH_PATIENCE_S if was_unclean else 0.0)
    try:
        admin = listeners.bind_admin(settings.admin_host, settings.admin_port)
        metrics = None if settings.metrics_port is None else listeners.bind_metrics(settings.metrics_port)
        settings = replace(settings, admin_port=admin.getsockname()[1])
        setproctitle(f"servd: daemon {settings.state_dir}")
        _become_subreaper()
        _forgo_tracker()
        # loaded here only: every spawned process imports this module
        from servd.daemon.program import settle

        settle(settings.state_dir)
        return Daemon(settings, listeners, unix, (admin, metrics), tied_to).run()
    finally:
        empty_socket_dir(settings.socket_dir)
        with contextlib.suppress(OSError):
            os.rmdir(settings.socket_dir)
        # where it cannot be done the next start takes this end for a crash, and waits for ports a little
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)


def main(arguments: list[str]) -> int:
    """`python -m servd.daemon.main SETTINGS_JSON [--tied-to=FD]`."""
    tied_to = next((int(argument.removeprefix(TIED_OPTION)) for argument in arguments[1:]), None)
    try:
        return serve(parse_settings(arguments[0]), tied_to)
    except ServdError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
