"""The controller process: puts the parts together, serves the admin plane, ends when the daemon says so."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import ssl
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from servd.controller import history
from servd.controller.control_loop import ControlLoop
from servd.controller.control_server import ControlServer
from servd.controller.daemon_channel import DaemonChannel
from servd.controller.devices import device_names
from servd.controller.executor import Executor
from servd.controller.fact_store import FactStore, fact_files, renewal
from servd.controller.fork_server_lines import ForkServerLines
from servd.controller.goal_store import GoalStore
from servd.controller.metrics_desk import FILE_NAME as METRICS_FILE
from servd.controller.metrics_desk import MetricsDesk
from servd.controller.metrics_port import MetricsPort
from servd.controller.plan.data_plane import boot, is_served
from servd.controller.plan.goal import Goal
from servd.controller.plan.observed import Observed
from servd.controller.process_news import ProcessNews
from servd.controller.shown.figures import FiguresDesk
from servd.controller.shown.outcome import is_serving
from servd.controller.shown.status import Identity
from servd.controller.stack_requests import StackRequests
from servd.controller.status_metrics import loop_metrics, status_metrics
from servd.controller.supervisor import Supervisor
from servd.daemon import tls
from servd.daemon.edition_watch import EditionWatch
from servd.daemon.keepsake import Keepsake
from servd.daemon.upgrade import Upgrader
from servd.exceptions import InvariantError, ServdError, StateError
from servd.ground import edition, event_loop, process
from servd.ground.clock import SystemClock, block_for
from servd.ground.ids import SYSTEM, node_id_of, random_hex
from servd.ground.settings import Settings, admin_socket, control_socket, variable
from servd.ground.states import ApplicationStatus
from servd.observability import logs
from servd.observability.error_desk import FILE_NAME as ERRORS_FILE
from servd.observability.error_desk import ErrorDesk
from servd.rest.access import rules_for
from servd.rest.admin_sockets import first_connection
from servd.wire.daemon_messages import EXIT_REFUSED, ControllerUp, InstanceServing, Reloaded
from servd.wire.messages import REPLICA

if TYPE_CHECKING:
    from servd.rest.app import AdminApp

NODE_IP = "127.0.0.1"
LOCK_NAME = "controller.lock"
_LOCK_LIMIT_S = 6.0
_LOOK_S = 5.0
_REST_AFTER_LOOKS = 10
"""Times as long as a look at all that there is took, until the next: with many processes it costs more than anything else."""
_TEND_S = 1.0

logger = logging.getLogger(__name__)

_Sockets = tuple[socket.socket, socket.socket, socket.socket, socket.socket, socket.socket | None, socket.socket | None]
"""Channel to the daemon, control endpoint, admin API's in the socket directory, admin port, metrics port, dashboard port."""


def run(
    settings: Settings,
    lifetime: Connection,
    channel: socket.socket,
    control: socket.socket,
    local_admin: socket.socket,
    admin: socket.socket,
    metrics: socket.socket | None = None,
    keepsake: Keepsake | None = None,
    dashboard: socket.socket | None = None,
) -> None:
    """Be the controller; never returns.

    Args:
        lifetime: read end of the lifetime pipe.
        channel: to the daemon.
        control: listening socket of the control endpoint.
        local_admin: the one of the admin API in the socket directory.
        admin: listening socket of the admin port.
        metrics: the one of the metrics port, if there is one.
        keepsake: what the controller before has left, if the daemon is of a version that keeps it.
        dashboard: listening socket for clients of today's Ray Serve, if there is one.
    """
    sockets = (channel, control, local_admin, admin, metrics, dashboard)
    inherited = [lifetime.fileno(), *(one.fileno() for one in sockets if one is not None)]
    process.begin("controller", settings.state_dir, *inherited)
    # the daemon says when to stop; a signal to the whole group must not take the controller first
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.setup("controller", str(os.getpid()), settings.log_dir, logs.controller_file(os.getpid()), is_serving=True)
    process.raise_file_limit()
    try:
        event_loop.run(_Controller(settings, lifetime, sockets, keepsake).run())
        code = 0
    except ServdError as error:
        print(f"Error: {error}", file=sys.stderr)
        code = EXIT_REFUSED
    # the last place that can tell what went wrong
    except BaseException:
        logger.exception("controller_failed")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    logs.finish()
    # the ordinary way out would wait for living children: they belong to the next controller
    os._exit(code)


class _Controller:
    def __init__(
        self,
        settings: Settings,
        lifetime: Connection,
        sockets: _Sockets,
        keepsake: Keepsake | None,
    ) -> None:
        self._devices = device_names()
        self._is_told = edition.is_told()
        if settings.num_gpus is None:
            settings = replace(settings, num_gpus=float(len(self._devices)))
        self._settings = settings
        self._lifetime = lifetime
        self._channel, self._control, self._local_admin, self._admin, self._metrics_listener, self._dashboard = sockets
        self._keepsake = keepsake
        self._clock = SystemClock()
        self._rng = SYSTEM
        self._stop_asked = asyncio.Event()
        self._stop_timeout_s = 0.0
        self._goal = Goal()
        self._plane: AdminApp | None = None
        self._rules = rules_for(settings)
        self._tls: ssl.SSLContext | None = None
        self._server: ControlServer
        self._wanted = asyncio.Event()
        self._local_admins: asyncio.Queue[socket.socket] = asyncio.Queue()
        self._moving: set[asyncio.Task[None]] = set()
        self._to_daemon: DaemonChannel
        self._executor: Executor
        self._metrics: MetricsDesk
        self._facts: FactStore
        self._observed: Observed
        self._figures: FiguresDesk
        self._errors = ErrorDesk(os.path.join(settings.state_dir, ERRORS_FILE), renewal)

    async def run(self) -> None:
        """Live until the daemon says stop."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        loop.add_reader(self._lifetime.fileno(), self._daemon_gone)
        # before any that the daemon may bind anew meanwhile: the last one counts
        self._local_admins.put_nowait(self._local_admin)
        lock = _lock(settings.state_dir)
        max_pages = variable("GOAL_STORE_MAX_PAGES", "")
        facts = self._facts = FactStore(settings.socket_dir, self._keepsake)
        known = facts.goal()
        store = GoalStore.open(settings.state_dir, int(max_pages) if max_pages else None, known)
        if known is not None:
            history.tell_since(store, known.revision)
        facts.save_goal(store.latest())
        now = self._clock.now()
        observed = self._observed = Observed.restore(facts.load(), self._clock.wall_time() - now, now)
        observed.edition = edition.own_edition().text
        self._figures = FiguresDesk(observed, self._clock)
        goal = self._goal = boot(store.latest(), observed, settings)
        control = ControlLoop(
            loop, settings, self._clock, self._rng, self._identity(), goal, observed, store, facts, _fail
        )
        news = ProcessNews(loop, observed, control.emit)
        server = self._server = ControlServer(news, first_generation=int(now * 1000))
        lines = ForkServerLines(loop, news)
        supervisor = Supervisor(loop, self._lifetime, news.process_exited)
        channel = self._to_daemon = DaemonChannel(
            loop,
            self._channel,
            news.orphan_exited,
            self._stop,
            self._daemon_gone,
            self._reload,
            self._moved,
            news.upgraded,
        )
        executor = Executor(loop, settings, observed, supervisor, server, lines, channel, control.emit, self._devices)
        self._executor = executor
        stacks = StackRequests(loop, lambda replica_id, wish: server.send(REPLICA, replica_id, wish))
        metrics = self._metrics = self._metrics_desk(server, control)
        news.start(executor, supervisor, server, stacks, metrics, self._errors.book, self._figures)
        # Hellos need an answer at once, admin requests may wait for the imports below
        await server.open(self._control)
        http = observed.data_plane.http or (goal.http if goal.running else None)
        if http is not None and is_served(http):
            await channel.open_listeners(http.host, http.port, settings.proxies)
        editions = EditionWatch(edition.stamp(), self._is_told, self._clock, server.hellos)
        upgrader = Upgrader(settings, edition.stamp(), self._is_told, channel.prepare_upgrade, channel.upgrade)
        control.start(executor, supervisor, channel, stacks, editions, upgrader)
        logger.info("controller_started pid=%d revision=%d", os.getpid(), goal.revision)
        try:
            await self._serve(control)
        finally:
            server.close()
            self._errors.close()
            facts.close()
            store.close()
            if lock >= 0:
                os.close(lock)

    async def _serve(self, control: ControlLoop) -> None:
        shutdown = asyncio.Event()
        serving = asyncio.create_task(self._serve_admin(control, shutdown))
        asked = asyncio.create_task(self._stop_asked.wait())
        announcing = event_loop.lifelong(self._announce(control), _fail)
        measuring = event_loop.lifelong(self._serve_metrics(), _fail)
        tending = event_loop.lifelong(_tend(self._facts, control, self._errors, self._figures, self._observed), _fail)
        rising = event_loop.lifelong(self._rise(control), _fail)
        await asyncio.wait([asked, serving], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            # it has no reason to end by itself
            await serving
            raise InvariantError("the admin server ended")
        announcing.cancel()
        measuring.cancel()
        tending.cancel()
        rising.cancel()
        await control.stop(self._stop_timeout_s)
        shutdown.set()
        self._wanted.set()
        await serving

    async def _rise(self, control: ControlLoop) -> None:
        await control.has_planned.wait()
        # a daemon of before editions does not know the word
        if self._is_told:
            self._to_daemon.tell(ControllerUp())

    async def _serve_admin(self, control: ControlLoop, shutdown: asyncio.Event) -> None:
        settings = self._settings
        if settings.admin_tls_cert and settings.admin_tls_key:
            self._tls = tls.server_context(settings.admin_tls_cert, settings.admin_tls_key, "--admin-tls")
        today = [] if self._dashboard is None else [self._dashboard]
        for listener in (self._admin, *today):
            listener.setblocking(False)
        # what answers there is half of this process, in time to load and in memory: not before somebody asks
        await first_connection([self._admin, *today, self._local_admin], self._wanted)
        if shutdown.is_set():
            return
        app = await event_loop.load("servd.rest.app")
        code_dir = os.path.join(settings.state_dir, "code")
        errors, figures = self._errors.book, self._figures
        self._plane = app.create_app(control, self._rules, code_dir, self._metrics.text, errors, figures)
        await app.serve(self._plane, [self._admin], shutdown, self._tls, self._local_admins, today)

    def _moved(self, control: socket.socket, local_admin: socket.socket) -> None:
        """The daemon bound its Unix sockets anew."""
        logger.warning("sockets_moved socket_dir=%s", self._settings.socket_dir)
        task = event_loop.lifelong(self._server.open(control), _fail)
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)
        self._local_admins.put_nowait(local_admin)
        self._executor.greet_again()
        # they lay beside the sockets, and the next controller needs them
        self._facts.save({})
        self._wanted.set()

    def _metrics_desk(self, server: ControlServer, control: ControlLoop) -> MetricsDesk:
        path = os.path.join(self._settings.socket_dir, METRICS_FILE)
        return MetricsDesk(
            path,
            self._clock,
            server.hellos,
            server.send,
            lambda: [*status_metrics(self._observed, self._clock.now()), *loop_metrics(control.health(0.0))],
        )

    async def _serve_metrics(self) -> None:
        if self._metrics_listener is not None:
            port = MetricsPort(self._metrics_listener, self._metrics.text)
            await port.start()
            logger.info("metrics_listening %s", port)
        await self._metrics.watch_loop()

    async def _announce(self, control: ControlLoop) -> None:
        """Say once when the goal that this controller started with is serving again."""
        wanted = [app.name for app in self._goal.applications]
        looked_at = self._clock.now()
        view = control.view()
        while not is_serving(view, wanted if view.revision == self._goal.revision else ()):
            if not view.running and not self._settings.open_http:
                break
            await asyncio.sleep(_REST_AFTER_LOOKS * (self._clock.now() - looked_at))
            await control.changed(view.version, _LOOK_S)
            looked_at = self._clock.now()
            view = control.view()
        failed = [app.name for app in view.applications if app.status is ApplicationStatus.DEPLOY_FAILED]
        trouble = f"; failed: {', '.join(failed)}" if failed else ""
        self._to_daemon.tell(InstanceServing(f"serving {len(view.applications)} application(s){trouble}"))

    def _reload(self) -> None:
        """Read the token and the certificates again; what cannot be used leaves everything as it was."""
        settings = self._settings
        try:
            rules = rules_for(settings)
            if self._tls is not None:
                tls.load(self._tls, settings.admin_tls_cert or "", settings.admin_tls_key or "", "--admin-tls")
        except ServdError as error:
            logger.error("reload_failed reason=%s", error)
            self._to_daemon.tell(Reloaded(str(error)))
            return
        self._rules = rules
        if self._plane is not None:
            self._plane.admit_by(rules)
        logger.info("reloaded")
        self._to_daemon.tell(Reloaded())

    def _identity(self) -> Identity:
        return Identity(
            pid=os.getpid(),
            actor_id=random_hex(32, self._rng),
            worker_id=random_hex(56, self._rng),
            node_id=node_id_of(self._settings.state_dir),
            node_ip=NODE_IP,
            edition=str(edition.own_edition()),
        )

    def _daemon_gone(self) -> None:
        """Leave no socket behind, and facts that nobody will need; the children see the same end, and drain."""
        directory = self._settings.socket_dir
        # the controller's lock is still ours: no other one can have made these
        for path in (control_socket(directory), admin_socket(directory), *fact_files(directory)):
            with contextlib.suppress(OSError):
                os.unlink(path)
        os._exit(1)

    def _stop(self, timeout_s: float) -> None:
        logger.info("stopping timeout_s=%.0f", timeout_s)
        self._stop_timeout_s = timeout_s
        self._stop_asked.set()


async def _tend(
    facts: FactStore, control: ControlLoop, errors: ErrorDesk, figures: FiguresDesk, observed: Observed
) -> None:
    """Every second, also when nothing happens: bring facts on disk that could not be written, and look after the rest."""
    while True:
        await asyncio.sleep(_TEND_S)
        try:
            facts.save({})
            control.tend()
            figures.tend()
            living = {*observed.replicas, *observed.fork_servers}
            await errors.tend(living, asyncio.get_running_loop().time())
        except Exception:
            # our bug, or a host that is short of something; in a second the rest has its turn again
            logger.exception("turn_failed")


def _fail() -> None:
    logging.shutdown()
    os._exit(1)


def _lock(state_dir: str) -> int:
    """Be the only controller of the state directory; gives the descriptor, -1 where there is nothing to lock.

    Raises:
        StateError: another one holds on to it.
    """
    path = f"{state_dir}/{LOCK_NAME}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        # no room for it, or read-only: one that is there can be locked all the same
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            # the daemon has the lock of the directory, so what could still run here is a controller that is about to end
            logger.warning("controller_lock_missing path=%s reason=%s", path, error.strerror)
            return -1
    clock = SystemClock()
    deadline = clock.now() + _LOCK_LIMIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            # the controller of a daemon that was killed sees its end in a moment
            if clock.now() > deadline:
                os.close(fd)
                raise StateError(f"another controller runs on {state_dir}") from None
            block_for(0.02)
