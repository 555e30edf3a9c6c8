"""The daemon: tiny, without user input, so it does not fail.

It owns what must outlive the others: the lock of the state directory, the listening sockets, the write end of the lifetime
pipe. It starts the controller again when it dies, and is the parent of orphans. It can become another edition of servd: see
`servd.daemon.takeover`.
"""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from servd.daemon.directories import empty_socket_dir, say
from servd.daemon.printed import PrintedLog
from servd.daemon.service_notice import ServiceNotice
from servd.daemon.spawned_controller import spawned_controller
from servd.daemon.stand_in import StandIn
from servd.daemon.takeover import Belongings, command, execute
from servd.exceptions import HostLimitError, ListenError, ServdError
from servd.ground.clock import SystemClock
from servd.ground.edition import edition_of, own_edition, stamp
from servd.ground.pidfd import children, exit_code_of
from servd.ground.settings import Settings
from servd.wire.codec import RecordReader, record
from servd.wire.daemon_messages import (
    EXIT_REFUSED,
    CloseListeners,
    ControllerUp,
    InstanceServing,
    ListenersOpened,
    OpenListeners,
    OrphanExited,
    PrepareUpgrade,
    Reload,
    Reloaded,
    SocketsMoved,
    StopController,
    Upgrade,
    Upgraded,
    UpgradePrepared,
)

STOP_TIMEOUT_S = 60.0
LEFTOVER_DRAIN_S = 4.5
SETTLED_AFTER_S = 10.0
START_AGAIN_S = 0.25
"""After a controller could not even be started."""
LOOK_S = 1.0
"""How often to look whether the Unix sockets are still there."""
UP_LIMIT_S = 60.0
"""How long the first controller of another edition may take to do its work."""
_DEATHS_AT_MOST = 3
"""Of such a controller; then the edition before takes over again."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)


class Daemon:
    """Keeps a controller running until it is told to stop.

    Args:
        has: what it owns.
        upgraded: told to each controller, if this process was of another edition before, or was to become one.
        back: command line of the edition before, to be executed if no controller of this one does its work.
        orphans: exits that no controller has heard of yet.
    """

    def __init__(
        self,
        settings: Settings,
        has: Belongings,
        upgraded: Upgraded | None = None,
        back: Sequence[str] = (),
        orphans: Sequence[OrphanExited] = (),
    ) -> None:
        self._settings = settings
        self._has = has
        self._listeners = has.listeners
        self._unix = has.unix
        self._look_at = 0.0
        self._tied_to = has.tied_to
        self._clock = SystemClock()
        self._poll = select.poll()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._upgraded = upgraded
        self._back = tuple(back)
        self._next: PrepareUpgrade | None = None
        self._up_by = self._clock.now() + UP_LIMIT_S if back else None
        self._controller: Any = None
        self._channel: socket.socket | None = None
        self._records = RecordReader()
        self._orphans = list(orphans)
        # one that goes on where another left off has processes that serve
        self._starts = 0 if upgraded is None else 1
        self._quick_deaths = 0
        self._started_at = 0.0
        self._start_at: float | None = 0.0
        certificate = (settings.admin_tls_cert or "", settings.admin_tls_key or "")
        self._stand_in = StandIn(self._poll, self._clock, has.admin_sockets, certificate)
        self._stop_by: float | None = None
        self._result: int | None = None
        self._notice = ServiceNotice()
        self._printed = PrintedLog(settings.log_dir)
        # a terminal that is closed ends what runs in it; without one the signal means: read your files again
        self._hang_up_ends = os.isatty(0)

    def run(self) -> int:
        """Serve until a signal; gives the exit code."""
        try:
            return self._run()
        finally:
            socket_dir = self._settings.socket_dir
            empty_socket_dir(socket_dir)
            with contextlib.suppress(OSError):
                os.rmdir(socket_dir)
            # where it cannot be done the next start takes this end for a crash, and waits for ports a little
            with contextlib.suppress(OSError):
                os.ftruncate(self._has.lock, 0)

    def _run(self) -> int:
        self._watch_signals()
        if self._upgraded is None:
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
                self._stand_in.tend()
                self._printed.tend()
            for fd, _ in self._poll.poll(self._timeout_ms(now)):
                self._handle(fd)
            if self._up_by is not None and self._clock.now() >= self._up_by:
                self._go_back(f"its controller did not do its work within {UP_LIMIT_S:.0f} s")
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
        # those that came while another edition became this one
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._reap()

    def _timeout_ms(self, now: float) -> float:
        moments = [at for at in (self._start_at, self._stop_by, self._look_at, self._up_by) if at is not None]
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
            self._take_signals()
        elif fd == self._tied_to:
            self._poll.unregister(fd)
            self._stop()
        elif self._channel is not None and fd == self._channel.fileno():
            self._receive(self._channel)
        else:
            self._stand_in.handle(fd)

    def _take_signals(self) -> None:
        numbers = self._wake_reader.recv(4096)
        self._reap()
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stop()
        if signal.SIGHUP in numbers:
            self._hang_up()

    def _start_controller(self) -> None:
        try:
            self._controller, ours = spawned_controller(self._settings, *self._has.for_controller())
        except HostLimitError as error:
            if self._starts == 0:
                raise
            # who serves goes on, and there may be a process and a descriptor in a moment
            self._start_at = self._clock.now() + START_AGAIN_S
            self._stand_in.begin(f"{error}; it is tried again all the time")
            return
        self._stand_in.end()
        self._channel = ours
        self._records = RecordReader()
        self._poll.register(ours, select.POLLIN)
        self._starts += 1
        self._started_at = self._clock.now()
        self._start_at = None
        if self._upgraded is not None:
            self._send(self._upgraded)
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
        if self._up_by is not None and self._quick_deaths + 1 >= _DEATHS_AT_MOST:
            self._go_back(f"its controller exited with {exit_code}, {_DEATHS_AT_MOST} times")
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
                case ControllerUp():
                    # what it has made of the facts is what counts from now on
                    self._back, self._up_by = (), None
                case PrepareUpgrade():
                    self._next = message
                    self._send(UpgradePrepared())
                case Upgrade() if self._next is not None:
                    self._become(self._next)
                case Reloaded():
                    self._notice.ready(f"nothing was reloaded: {message.error}" if message.error else "reloaded")

    def _become(self, wish: PrepareUpgrade) -> None:
        """Execute another edition in this place; where that cannot be done, tell the next controller why."""
        say(f"this daemon becomes servd {edition_of(wish.edition)}")
        back = command(os.path.dirname(stamp().code_dir))
        self._execute(command(wish.place, back), wish.edition, own_edition().text)

    def _go_back(self, reason: str) -> None:
        """Let the edition before take over again, with the reason."""
        assert self._upgraded is not None
        say(f"servd {own_edition()} goes no further: {reason}; the edition before takes over again")
        self._up_by = None
        self._execute(self._back, own_edition().text, self._upgraded.before, reason)

    def _execute(self, line: Sequence[str], edition: str, before: str, error: str = "") -> None:
        # a signal that comes in between waits for the one that comes up
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            with contextlib.suppress(BlockingIOError):
                self._take_signals()
            if self._stop_by is not None or self._result is not None:
                return
            self._end_controller()
            self._notice.leave_word()
            orphans = [(orphan.pid, orphan.exit_code) for orphan in self._orphans]
            execute(line, self._has.handed_over(self._settings, stamp().home, edition, before, orphans, error))
        except OSError as failure:
            self._notice = ServiceNotice()
            self._upgraded = Upgraded(edition, before, error or str(failure))
            say(f"servd {edition_of(edition)} cannot be executed: {failure}")
            self._start_at = self._clock.now()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _end_controller(self) -> None:
        """It can be killed at any moment; its successor finds all that counts."""
        if self._controller is not None:
            self._controller.kill()
            self._controller.join()
            self._controller = None
        # not before: one that sees its daemon gone takes the sockets' paths away
        self._drop_channel()

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
        self._has.lifetime_writer.close()
        kill_at = self._clock.now() + (LEFTOVER_DRAIN_S if self._result == 0 else 0.5)
        give_up_at = kill_at + 2.0
        while left := children():
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
