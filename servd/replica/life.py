"""The life of one replica on its main thread: start, serve, reconfigure, drain."""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

from servd.app.built import BuiltApplication
from servd.app.deployment import ASGI_ATTRIBUTE
from servd.calls.caller import Caller
from servd.calls.failure_log import Failures
from servd.calls.failures import tell
from servd.calls.process import install_process
from servd.calls.replica_context import ProcessIds, ReplicaContext, set_replica_context
from servd.calls.request_context import NO_REQUEST, RequestContext, current_request
from servd.exceptions import DeployError, HostLimitError, TransportError
from servd.ground import descendants
from servd.ground.clock import SystemClock
from servd.ground.ids import DeploymentID, ReplicaID, ReplicaRank, node_id_of
from servd.ground.process import LIFETIME_DRAIN_S
from servd.ground.states import ReplicaPhase
from servd.observability import logs, spans
from servd.observability.access_log import AccessLog
from servd.observability.error_groups import ErrorGroups
from servd.observability.figures import counted
from servd.observability.journal import Journal
from servd.observability.measures import LoopLag
from servd.observability.tracebacks import user_traceback
from servd.replica.grpc.service import GrpcService
from servd.replica.methods import needs_thread, takes_rank
from servd.replica.metrics import replica_metrics
from servd.replica.notes import noter
from servd.replica.server import ReplicaServer
from servd.replica.user_callable import UserCallable
from servd.replica.warden import Warden
from servd.wire import sockets
from servd.wire.began import remove_files
from servd.wire.messages import MetricFamily, ReplicaGoal, ReplicaStart, Routing

_LINGER_S = 2.0
"""How long the last answers may take to leave."""

_LAST_WORDS_S = 8.0

_FAREWELL_S = 0.5
"""What is left of the grace when WebSockets are closed: their clients answer, and their handlers end."""

logger = logging.getLogger(__name__)


class Replica:
    """One replica; made inside the main loop, whose thread all of it belongs on. It is its warden's ward.

    Args:
        load: gives the application; raises what the application's status shall tell. May take long.
        lifetime_fd: read end of the lifetime pipe.
        access: where a line per request goes.
        preloaded: the instance, where the template has made it.
    """

    def __init__(
        self,
        start: ReplicaStart,
        load: Callable[[], BuiltApplication],
        lifetime_fd: int,
        access: AccessLog,
        preloaded: Any = None,
    ) -> None:
        self._start = start
        self._load = load
        self._preloaded = preloaded
        self._loop = asyncio.get_running_loop()
        self._goal = start.goal
        self._applied = start.goal.config_version
        self._user_config = _parsed(start.goal.user_config)
        self._user: UserCallable | None = None
        self._needs_threads = False
        self._context: ReplicaContext | None = None
        self._takes_rank = False
        self._told_rank = start.goal.rank
        self._server: ReplicaServer | None = None
        self._updating: asyncio.Task[None] | None = None
        self._drain_limit_s: asyncio.Future[float] = self._loop.create_future()
        self._clock = SystemClock()
        self._lag = LoopLag(self._clock.now)
        self._errors = ErrorGroups(start.replica_id)
        self._warden = Warden(start, self._loop, self, lifetime_fd, self._lag, access.tend, self._errors)
        self._caller = Caller(
            self._loop,
            start.replica_id,
            self._warden.subscribe,
            self._warden.routing_applied,
            on_waiting=lambda _: self._warden.rouse(),
        )
        self._queued: dict[str, int] = {}
        self._starting = "__init__"
        self._journal = Journal(self._loop, access, clock=self._clock, is_idle=self._is_idle)
        self._journal.configure(logs.configure(start.goal.logging_config))

    def __repr__(self) -> str:
        return f"Replica({self._start.replica_id}, {self._warden.phase}, {self._server})"

    async def run(self) -> int:
        """Start, serve until told to drain, drain; the process's exit code."""
        self._warden.start()
        failures = Failures(self._start, self._clock.wall_time, self._errors, self._warden.rouse)
        failures.begin(self._loop)
        install_process(self._caller, self._loop, socket_dir=self._start.socket_dir)
        starting = self._loop.create_task(self._started())
        await asyncio.wait((starting, self._drain_limit_s), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            await self._end_early(starting)
            return 0
        user, error = starting.result()
        if user is None:
            assert error is not None
            is_ours = issubclass(type(error), DeployError | TransportError | HostLimitError)
            text = str(error) if is_ours else user_traceback(error)
            if is_ours:
                logger.error("start_failed\n%s", text)
            else:
                tell(error, self._starting)
            self._warden.report(phase=ReplicaPhase.FAILED, error=text)
            # it has nothing else to do, and the controller may be busy
            self._warden.flush(_LAST_WORDS_S)
            return 1
        self._loop.add_signal_handler(signal.SIGTERM, self._begin_drain, self._goal.graceful_shutdown_timeout_s)
        self._warden.report(phase=ReplicaPhase.RUNNING, applied=self._applied, docs_path=user.docs_path)
        self._warden.watch_health()
        failures.started(self._loop)
        logger.info("replica_running")
        # what came while it was starting
        self.set_goal(self._goal)
        limit_s = await self._drain_limit_s
        await self._drain(user, limit_s)
        return 0

    async def _started(self) -> tuple[UserCallable | None, BaseException | None]:
        try:
            return await self._start_up(), None
        # whatever the start raises, `sys.exit()` in a constructor included, is told and ends the process
        except BaseException as error:
            return None, error

    async def _end_early(self, starting: asyncio.Task[Any]) -> None:
        """Told to end while a hook waits: it is cancelled, and the instance's `__del__` called."""
        logger.info("stopped_while_starting")
        self._warden.report(phase=ReplicaPhase.DRAINING)
        starting.cancel()
        assert self._user is not None
        try:
            async with asyncio.timeout(self._drain_limit_s.result()):
                await asyncio.wait([starting])
                await self._user.close()
        except TimeoutError:
            logger.warning("start_not_ended")
        self._caller.close()
        self._warden.flush()

    async def _start_up(self) -> UserCallable:
        start = self._start
        descendants.hide_own_sockets()
        built = self._load()
        recorder = begin_spans(start)
        deployment = built.deployments[start.deployment]
        logs.revive()
        context = ReplicaContext(
            ReplicaID.of_tag(DeploymentID(start.deployment, start.app), start.replica_id),
            process=ProcessIds(node_id_of(start.state_dir), start.actor_id, start.worker_id),
        )
        set_replica_context(context)
        self._context = context
        self._tell_rank(self._goal)
        self._takes_rank = takes_rank(deployment.func_or_class)
        user = UserCallable(
            deployment,
            context,
            max_sync_threads=start.max_sync_threads,
            owns_process=True,
            on_end=noter(self._journal),
            clock=self._clock,
        )
        self._user = user
        # a request that ends: what is held for it is free once the replica runs, though this task goes on
        starting = RequestContext()
        outside = current_request.set(starting)
        try:
            await user.construct(self._preloaded)
            if self._user_config is not None or self._takes_rank:
                self._starting = "reconfigure"
                await self._reconfigure(user, self._user_config)
        finally:
            current_request.reset(outside)
            starting.end()
        self._starting = "check_health"
        await self._warden.first_check(user.health_check)
        if recorder is not None:
            recorder.serve_application(_in_request)
        spans.expect_traces()
        target = deployment.func_or_class
        self._needs_threads = not hasattr(target, ASGI_ATTRIBUTE) and needs_thread(target)
        self._server = ReplicaServer(
            self._loop,
            start.address,
            user,
            limit=start.goal.max_concurrent_queries,
            app=start.app,
            replica_id=start.replica_id,
            on_cancelled=self._caller.cancel_calls_of,
            on_records=self._rouse,
            cancel_on_disconnect=start.goal.cancel_on_disconnect,
            grpc=GrpcService(self._loop, user, built.grpc, start.app),
            takes_websockets=hasattr(target, ASGI_ATTRIBUTE),
        )
        self._server.start()
        return user

    async def _drain(self, user: UserCallable, limit_s: float) -> None:
        logger.info("replica_draining limit_s=%.1f", limit_s)
        self._warden.report(phase=ReplicaPhase.DRAINING)
        assert self._server is not None
        self._server.drain()
        # it is killed when the grace is over
        farewell_s = max(limit_s - _FAREWELL_S, limit_s / 2)
        farewell = self._loop.call_later(farewell_s, self._server.restart_websockets)
        try:
            async with asyncio.timeout(limit_s):
                await self._server.wait_idle()
                await user.close()
                if multiplex := sys.modules.get("servd.app.model_pool"):
                    await multiplex.unload_all()
        except TimeoutError:
            logger.warning("drain_cut_off ongoing=%d", self.ongoing)
        finally:
            farewell.cancel()
        self._journal.settle()
        await spans.end_beside()
        self._warden.send_metrics()
        self._server.close(_LINGER_S)
        self._caller.close()
        sockets.finish()
        remove_files(self._start.address)
        self._warden.flush()

    # --- what the warden asks and tells -----------------------------------------------------------------------------

    @property
    def ongoing(self) -> int:
        """Admitted requests."""
        return 0 if self._server is None else self._server.ongoing

    def _is_idle(self) -> bool:
        return not self.ongoing

    def _rouse(self) -> None:
        """Callers have said something, maybe a request."""
        self._warden.rouse()
        self._journal.resume()

    def queued(self) -> dict[str, int]:
        """Calls that wait for a replica, per deployment."""
        try:
            self._queued = self._caller.queued()
        except RuntimeError:
            # the warden reads while this thread changes the dictionary: the last count is good enough
            pass
        return self._queued

    def occupied(self) -> tuple[float, int] | None:
        """As the threads of sync handlers have it."""
        return None if self._user is None else self._user.threads.occupied()

    @property
    def is_wanted(self) -> bool:
        """Whether requests wait for a thread here, or for a slot."""
        if self._user is None or self._server is None:
            return False
        return bool(self._user.threads.waiting or self._server.admission.tickets)

    @property
    def can_end_early(self) -> bool:
        """Whether an instance waits in one of its hooks for something that may never come."""
        return self._user is not None and self._user.can_close

    def hold(self, is_held: bool) -> None:
        """Send new requests elsewhere while all threads are occupied for long, if each of them needs one."""
        if self._server is not None and self._needs_threads:
            self._server.hold(is_held)

    def metrics(self) -> list[MetricFamily]:
        """What this process has counted."""
        return replica_metrics(self._start, self._journal, self.ongoing, self._caller, self._lag, self._warden.health)

    def requests(self) -> tuple[int | None, int, tuple[int, ...], int]:
        """Requests that ended, None where nobody counts, errors, latencies by bucket, and how many wait for a thread."""
        waiting = 0 if self._user is None else self._user.threads.waiting
        return (*counted(self._journal.series()), waiting) if self._journal.is_counting else (None, 0, (), waiting)

    def apply_routing(self, routing: Routing) -> None:
        """Take over the controller's routing."""
        self._caller.apply_routing(routing)

    def address_is_gone(self) -> None:
        """Somebody removed the socket: new callers could not connect."""
        if self._server is None or self._drain_limit_s.done():
            return
        try:
            self._server.bind_again()
        except TransportError as error:
            logger.warning("address_not_bound_again reason=%s", error)
        else:
            logger.warning("address_bound_again address=%s", self._start.address)

    def lifetime_ended(self) -> None:
        """The daemon is gone: finish what runs, at once."""
        if self._server is None:
            descendants.leave(1)
        self._begin_drain(LIFETIME_DRAIN_S)

    def set_goal(self, goal: ReplicaGoal) -> None:
        """Become what the goal says; while starting it is only noted."""
        if goal.logging_config != self._goal.logging_config:
            self._journal.configure(logs.configure(goal.logging_config))
        self._goal = goal
        if self._server is None:
            if goal.drain and self.can_end_early:
                self._begin_drain(goal.graceful_shutdown_timeout_s)
            return
        if goal.drain:
            self._begin_drain(goal.graceful_shutdown_timeout_s)
            return
        self._server.set_limits(goal.max_concurrent_queries, goal.cancel_on_disconnect)
        self._warden.report_period_s = goal.report_period_s
        self._warden.set_health_times(goal.health_check_period_s, goal.health_check_timeout_s)
        self._tell_rank(goal)
        if self._is_behind and self._updating is None:
            self._updating = self._loop.create_task(self._update())

    def _tell_rank(self, goal: ReplicaGoal) -> None:
        """Let the code that runs here see its rank."""
        assert self._context is not None
        self._context.rank = ReplicaRank(goal.rank, local_rank=goal.rank)
        self._context.world_size = goal.world_size

    @property
    def _is_behind(self) -> bool:
        """Whether the instance has not been told all yet."""
        return self._goal.config_version != self._applied or (self._takes_rank and self._goal.rank != self._told_rank)

    async def _reconfigure(self, user: UserCallable, config: Any) -> None:
        self._tell_rank(self._goal)
        self._told_rank = self._goal.rank
        also = {"rank": self._context.rank} if self._takes_rank and self._context is not None else {}
        await user.reconfigure(config, **also)

    def _begin_drain(self, limit_s: float) -> None:
        if not self._drain_limit_s.done():
            self._drain_limit_s.set_result(limit_s)

    async def _update(self) -> None:
        assert self._user is not None
        try:
            while self._is_behind and not self._drain_limit_s.done():
                version, config = self._goal.config_version, _parsed(self._goal.user_config)
                has_moved = self._takes_rank and self._goal.rank != self._told_rank
                if has_moved or (config is not None and config != self._user_config):
                    self._warden.report(phase=ReplicaPhase.UPDATING)
                    await self._reconfigure(self._user, config)
                self._user_config, self._applied = config, version
                if not self._drain_limit_s.done():
                    self._warden.report(phase=ReplicaPhase.RUNNING, applied=version, error="")
        # user code: a failed reconfigure is the controller's business, not this loop's
        except BaseException as error:
            tell(error, "reconfigure")
            self._warden.report(phase=ReplicaPhase.FAILED, error=user_traceback(error))
        else:
            self._updating = None


def begin_spans(start: ReplicaStart) -> spans.Spans | None:
    """Record the spans of a replica, if that is wanted; its environment may have a word in it."""
    about = {"servd.application": start.app, "servd.deployment": start.deployment, "servd.replica": start.replica_id}
    return spans.begin(start.deployment, start.replica_id, about)


def _in_request() -> bool:
    return current_request.get() is not NO_REQUEST


def _parsed(user_config: str) -> Any:
    return json.loads(user_config) if user_config else None
