"""A fork server: imports an application once, then forks a replica per order.

It has no event loop, no ZeroMQ context and one thread: children open theirs after the fork. It listens
itself, so a new controller just connects and is greeted with the build's result and the living children.
"""

import asyncio
import gc
import importlib
import logging
import multiprocessing
import os
import select
import signal
import socket
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, NoReturn

from servd.exceptions import DeployError, ProtocolError
from servd.ground import descendants, entry, forks, process
from servd.ground.clock import SystemClock
from servd.ground.edition import own_edition, stamp
from servd.ground.host_limits import host_limit_in, told
from servd.ground.ids import full_name_of
from servd.ground.pidfd import start_ticks
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import FORK_SERVER_FILE, fork_server_socket, is_private_dir
from servd.observability import logs, spans
from servd.replica.code.environment import apply_environment
from servd.replica.native import inherited, parting
from servd.replica.native.begun_anew import Place, begin_anew, go_back
from servd.replica.native.generators import reseed
from servd.replica.policies.desk import PolicyDesk, PolicyProcess
from servd.wire.allocator import give_back_freed, keep_freed_memory
from servd.wire.build_messages import BuildOrder, BuildResult
from servd.wire.codec import RecordReader, record
from servd.wire.credentials import peer_credentials
from servd.wire.doorstep import listen, unlink
from servd.wire.messages import ChildExited, Forked, ForkOrder, ForkServerHello, ForkServerStop, ReplicaStart
from servd.wire.policy_messages import PolicyAnswer, PolicyAsk

if TYPE_CHECKING:
    from servd.app.built import BuiltApplication
    from servd.observability.error_groups import ErrorsReport

_CODE, _POLICY = "servd.replica.builder", "servd.replica.policies.runner"
_FAILED = "servd.calls.failure_log"
_SEND_TIMEOUT_S = 5.0
_READ_BYTES = 256 * 1024
_LOOK_MS = 1000
_IMPORT_S = 60.0
"""Until a policy that is not forked has imported the application, at most."""

_now = SystemClock().now

logger = logging.getLogger(__name__)


def serve(order: BuildOrder, lifetime: Connection) -> None:
    """Be the fork server of `order` until told to stop, or until the daemon is gone. Never returns.

    Target of `multiprocessing` with the "spawn" context; the process must not be daemonic, since it has
    children. `env_vars` of the order's runtime environment must hold already.

    Args:
        lifetime: read end of the lifetime pipe.
    """
    _live(order, lifetime.fileno(), lambda: _built(order, lifetime.fileno()))


def go_on(order: BuildOrder, lifetime_fd: int, listener_fd: int, result: BuildResult, place: Place) -> None:
    """Be the fork server of `order` in an interpreter that has run none of the application: nothing is forked from it."""

    def known() -> ForkServer:
        listener = socket.socket(fileno=listener_fd)
        listener.set_inheritable(False)
        go_back(place)
        return ForkServer(order, listener, lifetime_fd, result, None)

    _live(order, lifetime_fd, known)


def _built(order: BuildOrder, lifetime_fd: int) -> "ForkServer":
    path = sys.path[:]
    listener = listen(_path_of(order))
    result, built, preloaded, failed = build(order)
    if result.fork_unsafe:
        fds = lifetime_fd, listener.fileno()
        begin_anew(f"{__name__}:go_on", order, *fds, result, path=path, kept=fds)
    spans.preload()
    return ForkServer(order, listener, lifetime_fd, result, built, preloaded, failed)


def _live(order: BuildOrder, lifetime_fd: int, begin: Callable[[], "ForkServer"]) -> NoReturn:
    full_name = full_name_of(order.app, order.preload)
    title = f"template {full_name}" if order.preload else f"fork server {order.app or order.fork_server_id}"
    process.begin(title, order.state_dir, lifetime_fd)
    descendants.lead(title, order.state_dir, order.socket_dir)
    logs.setup(
        "fork_server",
        order.fork_server_id,
        order.log_dir,
        FORK_SERVER_FILE,
        request_fields=lambda: ("", "", "", "", order.app, ""),
        runs_application=True,
    )
    process.allow_tracker()
    process.forget_start_method()
    keep_freed_memory()
    code = 1
    try:
        begin().run()
        code = 0
    # the last place that can tell what went wrong
    except BaseException:
        logger.exception("fork_server_failed")
    unlink(_path_of(order))
    forks.flush_streams()
    # the ordinary way out would wait for the children; exit handlers of user code belong to the replicas
    descendants.leave(code, with_children=False)


def _path_of(order: BuildOrder) -> str:
    return order.socket_path or fork_server_socket(order.socket_dir, order.fork_server_id)


def build(order: BuildOrder) -> tuple[BuildResult, "BuiltApplication | None", Any, "ErrorsReport | None"]:
    """Environment, import, flattening, and the preloaded instance (None without); a failure is a result too, and an error."""
    try:
        # its code finds the application's packages then, and Starlette, say, looks for others only once
        environment = apply_environment(order, lambda: entry.load(_CODE))
        return *entry.load(_CODE).built_from(order, environment), None
    except DeployError as error:
        return BuildResult(order.build_id, error=str(error)), None, None, entry.load(_FAILED).failed_build(order, error)


@dataclass(slots=True)
class Child:
    """A living replica."""

    process: ForkProcess
    forked: Forked


@dataclass(slots=True)
class Line:
    """A connection of a controller."""

    socket: socket.socket
    reader: RecordReader


class ForkServer:
    """The loop over listener, lines, children and lifetime pipe.

    Args:
        listener: bound and listening; closed in children.
        result: told to every controller that connects.
        built: None after a failed build: orders are refused then.
        preloaded: the instance of the deployment that the order preloads.
        failed: why the build failed, for the controller's book of errors.
    """

    def __init__(
        self,
        order: BuildOrder,
        listener: socket.socket,
        lifetime_fd: int,
        result: BuildResult,
        built: "BuiltApplication | None",
        preloaded: Any = None,
        failed: "ErrorsReport | None" = None,
    ) -> None:
        self._order = order
        self._listener = listener
        self._lifetime_fd = lifetime_fd
        self._result = result
        self._built = built
        self._preloaded = preloaded
        self._failed = failed
        self._poller = select.poll()
        self._lines: dict[int, Line] = {}
        self._children: dict[int, Child] = {}
        self._untold: list[ChildExited] = []
        self._is_stopping = False
        self._deaf_until: float | None = None
        self._policy_processes: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
        self._collects = True
        self._policies = PolicyDesk(self._start_policy, self._poller, _IMPORT_S if result.fork_unsafe else 0.0)

    def __repr__(self) -> str:
        return f"ForkServer({self._order.fork_server_id}, children={len(self._children)}, lines={len(self._lines)})"

    def run(self) -> None:
        """Serve until ForkServerStop or the end of the lifetime pipe."""
        parting.note_known()
        if not self._result.fork_unsafe:
            # its children make their own seeds; what the first one loads and remembers is for all of them
            reseed()
        # to read how replicas end is this server's, whatever the application has done to hear of children of its own
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._collects = gc.isenabled()
        gc.collect()
        gc.disable()
        give_back_freed()
        forks.freeze()
        self._poller.register(self._lifetime_fd, select.POLLIN)
        self._poller.register(self._listener, select.POLLIN)
        while not self._is_stopping:
            for fd, _ in self._poller.poll(_LOOK_MS):
                self._handle(fd)
            self._tell_all(self._policies.look())
            self._look_at_path()
            if self._deaf_until is not None and _now() >= self._deaf_until:
                self._deaf_until = None
                self._poller.register(self._listener, select.POLLIN)
        self._policies.close()
        forks.run_finalizers_after(self._children)

    def _look_at_path(self) -> None:
        """Listen anew where somebody removed the socket: the next controller could not connect."""
        path = _path_of(self._order)
        if self._is_stopping or os.path.lexists(path) or not is_private_dir(os.path.dirname(path)):
            return
        try:
            fresh = listen(path)
        except OSError:
            # no room in it: looked at again
            return
        logger.warning("socket_bound_again path=%s", path)
        if self._deaf_until is None:
            self._poller.unregister(self._listener)
        self._deaf_until = None
        self._listener.close()
        self._listener = fresh
        self._poller.register(fresh, select.POLLIN)

    def _handle(self, fd: int) -> None:
        if fd == self._lifetime_fd:
            self._is_stopping = True
        elif fd == self._listener.fileno():
            self._accept()
        elif fd in self._children:
            self._reap(fd)
        elif fd in self._lines:
            self._read(fd)
        else:
            self._tell_all(self._policies.hear(fd))

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            # the one who knocked has left; or waits, since there is no descriptor for it
            if host_limit_in(error):
                logger.warning("line_not_accepted reason=%s", told(error))
                self._poller.unregister(self._listener)
                self._deaf_until = _now() + _LOOK_MS / 1000
            return
        connection.settimeout(_SEND_TIMEOUT_S)
        if peer_credentials(connection)[1] not in (os.getuid(), 0):
            connection.close()
            return
        fd = connection.fileno()
        self._lines[fd] = Line(connection, RecordReader())
        self._poller.register(fd, select.POLLIN)
        children = tuple(child.forked for child in self._children.values())
        identity = (self._order.fork_server_id, os.getpid())
        self._send(fd, ForkServerHello(*identity, self._result, children, own_edition().text))
        if self._failed is not None:
            self._send(fd, self._failed)
        untold, self._untold = self._untold, []
        for exited in untold:
            self._send(fd, exited)

    def _read(self, fd: int) -> None:
        line = self._lines[fd]
        try:
            data = line.socket.recv(_READ_BYTES)
            found = line.reader.feed(data)
        except (OSError, ProtocolError) as error:
            logger.warning("line_dropped reason=%s", error)
            data, found = b"", []
        if not data:
            self._drop(fd)
        for message in found:
            if isinstance(message, ForkOrder):
                self._tell(self._fork(message.start))
            elif isinstance(message, PolicyAsk):
                self._tell_all(self._policies.ask(message))
            elif isinstance(message, ForkServerStop):
                self._is_stopping = True

    def _fork(self, start: ReplicaStart) -> Forked:
        known = [child.forked for child in self._children.values() if child.forked.replica_id == start.replica_id]
        if known:
            return known[0]
        if self._built is None or start.deployment not in self._built.deployments:
            return Forked(start.replica_id, 0, 0, f"this build has no deployment {start.deployment!r}")
        child = process.Forked(target=self._be_child, args=(start,), name=start.replica_id)
        parting.note_own(self._own_fds())
        forks.freeze()
        if reason := forks.start(child, self._part):
            return Forked(start.replica_id, 0, 0, f"cannot fork: {reason}", is_host_limit=True)
        pid = child.pid or 0
        forked = Forked(start.replica_id, pid, start_ticks(pid))
        fd = os.pidfd_open(pid)
        self._children[fd] = Child(child, forked)
        self._poller.register(fd, select.POLLIN)
        return forked

    def _reap(self, fd: int) -> None:
        child = self._children[fd]
        code = child.process.exitcode
        if code is None:
            return
        self._poller.unregister(fd)
        del self._children[fd]
        os.close(fd)
        child.process.close()
        exited = ChildExited(child.forked.replica_id, child.forked.pid, code)
        if not self._tell(exited):
            self._untold.append(exited)

    def _start_policy(self, sock: socket.socket, deployment: str) -> PolicyProcess:
        whose = full_name_of(self._order.app, deployment) if deployment else self._order.app
        args = (sock, os.getpid(), f"policy {whose} {self._order.state_dir}", self._order)
        child: BaseProcess
        if self._result.fork_unsafe:
            # a lock that one of its threads holds would never be free in a fork
            spawned = (stamp(), f"{_POLICY}:run_spawned", *args, os.getcwd())
            child = multiprocessing.get_context("spawn").Process(target=entry.call, args=spawned, name="policy")
        else:
            child = process.Forked(target=self._be_policy, args=args, name="policy")
            self._policy_processes.add(child)
            parting.note_own(self._own_fds())
        if reason := forks.start(child, partial(self._part, sock.fileno())):
            raise OSError(reason)
        return PolicyProcess(child)

    def _be_policy(self, sock: socket.socket, *further: Any) -> None:
        self._leave_parent()
        importlib.import_module(_POLICY).run(sock, *further)

    def _tell_all(self, messages: "Sequence[PolicyAnswer | ErrorsReport]") -> None:
        for message in messages:
            self._tell(message)

    def _tell(self, message: Any) -> bool:
        """Send to every controller that is connected; False when nobody was."""
        sent = [self._send(fd, message) for fd in list(self._lines)]
        return any(sent)

    def _send(self, fd: int, message: Any) -> bool:
        try:
            self._lines[fd].socket.sendall(record(message))
        except OSError:
            self._drop(fd)
            return False
        return True

    def _drop(self, fd: int) -> None:
        line = self._lines.pop(fd, None)
        if line is not None:
            self._poller.unregister(fd)
            line.socket.close()

    def _be_child(self, start: ReplicaStart) -> None:
        self._leave_parent()
        assert self._built is not None
        importlib.import_module(_CODE).run_forked(start, self._built, self._lifetime_fd, self._preloaded)

    def _own_fds(self) -> set[int]:
        """Of this server's: lines, pidfds of children and pipes to them."""
        processes = [*(child.process for child in self._children.values()), *self._policy_processes]
        pipes = {fd for one in processes for fd in process.ends_of_pipes(one)}
        return pipes | {self._listener.fileno(), *self._lines, *self._children, *self._policies.fds()}

    def _part(self, *needed: int) -> None:
        """First of all in a child, which never comes back here to close a number again."""
        parting.part({*needed})
        inherited.renew()

    def _leave_parent(self) -> None:
        """First lines of a child, before any code of the user's runs but what it has told `os.register_at_fork`."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        # a loop made during the import shares its descriptors with the parent: it must never run here
        asyncio.set_event_loop(None)
        forks.disown_finalizers()
        if self._collects:
            gc.enable()
        reseed()
