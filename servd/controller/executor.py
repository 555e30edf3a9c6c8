"""Carries out actions. Every result, and every failure, comes back as an event."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from servd.controller.control_server import ControlServer
from servd.controller.daemon_channel import DaemonChannel
from servd.controller.devices import with_device_names
from servd.controller.fork_server_lines import ForkServerLines
from servd.controller.plan import actions, events
from servd.controller.plan.facts import ForkServerFact, ProxyFact, ReplicaFact
from servd.controller.plan.observed import Observed
from servd.controller.supervisor import Key, Supervisor
from servd.controller.working_copies import remove, unused
from servd.daemon.data_tls import check_kept, files_in_force
from servd.exceptions import ConfigError, HostLimitError, InvariantError, StateError
from servd.ground.clock import with_daemons_zone
from servd.ground.host_limits import Deaths, no_process_for
from servd.ground.ids import full_name_of
from servd.ground.pidfd import is_called
from servd.ground.places import trouble_of
from servd.ground.settings import Settings, fork_server_sockets, replica_files, variable, work_dir
from servd.ground.states import ReplicaState
from servd.observability import logs
from servd.observability.log_file import forget_dead
from servd.wire.began import remove_files, socket_path
from servd.wire.build_messages import BuildOrder
from servd.wire.credentials import listener_of
from servd.wire.messages import FORK_SERVER, PROXY, REPLICA, LogConfig, ProxyGoal, ProxyStart
from servd.wire.policy_messages import PolicyAnswer

FORK_SERVER_TARGET = "servd.replica.fork_server:serve"
REPLICA_TARGET = "servd.replica.spawned:run_spawned"
PROXY_TARGET = "servd.proxy.main:run"
STOP_GRACE_S = 2.0
REPLICA_THREADS = 4
"""What a replica starts before it is ready, at least: its own two and ZeroMQ's two."""
_ACKNOWLEDGE_S = 2.0
_DEATHS_A_CLEANING = 20
_FORKABLE = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Without it `torch.cuda.is_available()` makes CUDA unusable in forked children. Source: PyTorch's page of that function."""

logger = logging.getLogger(__name__)


class Executor:
    """Turns actions into effects; the intent is on disk already.

    Args:
        emit: takes the events.
        devices: names of the host's GPUs by index.

    Attributes:
        causes: why processes died.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        observed: Observed,
        supervisor: Supervisor,
        server: ControlServer,
        lines: ForkServerLines,
        channel: DaemonChannel,
        emit: Callable[[events.Event], None],
        devices: tuple[str, ...] = (),
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._observed = observed
        self._supervisor = supervisor
        self._server = server
        self._lines = lines
        self._channel = channel
        self._emit = emit
        self._devices = devices
        self._spawns_all = variable("FORK", "1") == "0"
        self._starting: set[asyncio.Task[None]] = set()
        self._known: set[str] = set()
        self._logging_config: dict[str, Any] = {}
        # what an earlier controller left counts as well
        self._deaths = _DEATHS_A_CLEANING
        self.causes = Deaths()
        self._may_free_copies = False

    def execute(self, action: actions.Action) -> None:
        """Carry out one action; never raises for what the world does."""
        try:
            self._execute(action)
        except InvariantError:
            raise
        except HostLimitError as error:
            logger.warning("action_failed action=%s reason=%s", type(action).__name__, error)
            self._failed(action, f"could not be started: {error}", is_host_limit=True)
        except Exception as error:
            logger.exception("action_failed action=%s", type(action).__name__)
            self._failed(action, f"{type(error).__name__}: {error}")

    def _failed(self, action: actions.Action, error: str, *, is_host_limit: bool = False) -> None:
        failure = _failure(action, error, is_host_limit)
        if failure is not None:
            self._emit(failure)

    def _execute(self, action: actions.Action) -> None:
        match action:
            case actions.StartForkServer():
                self._start_fork_server(action.fact)
            case actions.StopForkServer():
                self._stop_fork_server(action.fork_server_id)
            case actions.StartReplica():
                self._start_replica(action.fact, spawn=action.spawn or self._spawns_all)
            case actions.SetReplicaGoal():
                # without a line it gets the goal with the next Hello
                self._server.send(REPLICA, action.goal.replica_id, action.goal)
            case actions.DrainReplica():
                self._drain_replica(action)
            case actions.KillReplica():
                self._kill_replica(action.replica_id)
            case actions.StartProxy():
                task = self._loop.create_task(self._start_proxy(action.fact))
                self._starting.add(task)
                task.add_done_callback(self._starting.discard)
            case actions.SetProxyGoal():
                self._set_proxy_goal(action.goal)
            case actions.KillProxy():
                if not self._supervisor.kill((PROXY, action.proxy_id)):
                    self._emit(events.Exited(PROXY, action.proxy_id, None))
            case actions.Publish():
                self._server.publish(action.routing)
            case actions.AskPolicy():
                if not self._lines.ask(action.fork_server_id, action.ask):
                    self._emit(PolicyAnswer(action.ask.ask_id, error="its fork server has ended"))
            case actions.ReleaseListeners():
                self._channel.close_listeners(action.host, action.port)

    def _start_fork_server(self, fact: ForkServerFact) -> None:
        pid, ticks = self._supervisor.start(
            (FORK_SERVER, fact.fork_server_id),
            FORK_SERVER_TARGET,
            (fact.order,),
            _variables(fact.order, fact.order.default_variables),
        )
        self._emit(events.Started(FORK_SERVER, fact.fork_server_id, pid, ticks))
        self._lines.connect(fact.fork_server_id, fact.order.socket_path)

    def _stop_fork_server(self, fork_server_id: str) -> None:
        key = (FORK_SERVER, fork_server_id)
        if self._lines.stop(fork_server_id):
            self._loop.call_later(STOP_GRACE_S, self._supervisor.kill, key)
        elif not self._supervisor.kill(key):
            self._emit(events.Exited(FORK_SERVER, fork_server_id, None))

    def _start_replica(self, fact: ReplicaFact, *, spawn: bool) -> None:
        server = self._observed.fork_servers.get(fact.fork_server_id)
        start = replace(fact.start, variables=with_device_names(fact.start.variables, self._devices))
        if server is None:
            self._emit(events.StartLost(REPLICA, fact.replica_id))
        elif spawn:
            pid, ticks = self._supervisor.start(
                (REPLICA, fact.replica_id),
                REPLICA_TARGET,
                (start, server.order),
                _variables(server.order, server.order.default_variables | start.default_variables),
            )
            self._emit(events.Started(REPLICA, fact.replica_id, pid, ticks))
        else:
            self._supervisor.check_room()
            if not self._lines.order(fact.fork_server_id, start):
                self._emit(events.StartLost(REPLICA, fact.replica_id))

    def _drain_replica(self, action: actions.DrainReplica) -> None:
        replica_id = action.goal.replica_id
        if not self._server.is_connected(REPLICA, replica_id):
            if replica_id not in self._known:
                # it never said Hello, so no caller knows it: there is nothing to finish
                self._kill_replica(replica_id)
            # else its line is away for a moment: `greet_replica` drains it
            return
        self._server.after_acknowledged(action.wait_s, lambda: self._server.send(REPLICA, replica_id, action.goal))

    def greet_replica(self, fact: ReplicaFact) -> None:
        """Tell a replica that has just said Hello its goal."""
        self._known.add(fact.replica_id)
        goal = fact.start.goal
        self._server.send(REPLICA, fact.replica_id, replace(goal, drain=False))
        if goal.drain:
            self._server.after_acknowledged(_ACKNOWLEDGE_S, lambda: self._server.send(REPLICA, fact.replica_id, goal))

    def greet_again(self) -> None:
        """Tell all replicas their goals once more: each looks then whether its own socket is still there."""
        for fact in self._observed.replicas.values():
            if self._server.is_connected(REPLICA, fact.replica_id):
                self.greet_replica(fact)

    def _kill_replica(self, replica_id: str) -> None:
        self._lines.withdraw(replica_id)
        if not self._supervisor.kill((REPLICA, replica_id)):
            self._emit(events.Exited(REPLICA, replica_id, None))

    async def _start_proxy(self, fact: ProxyFact) -> None:
        settings = self._settings
        files = files_in_force(fact.tls_files, settings)
        start = ProxyStart(
            proxy_id=fact.proxy_id,
            slot=fact.slot,
            token=fact.token,
            host=fact.host,
            port=fact.port,
            root_path=fact.root_path,
            state_dir=settings.state_dir,
            socket_dir=settings.socket_dir,
            log_dir=settings.log_dir,
            tls_cert=files.certificate,
            tls_key=files.key,
            forwarded_allow_ips=settings.forwarded_allow_ips,
            believes_forwarded_host=settings.believes_forwarded_host,
            grpc_port=fact.grpc_port,
            grpc_tls_ca=settings.grpc_tls_ca or files.client_ca,
            keep_alive_timeout_s=fact.keep_alive_timeout_s,
            tls_client_ca=files.client_ca,
        )
        try:
            # a process that cannot begin could not say why
            if fact.tls_files:
                await asyncio.to_thread(check_kept, files, settings.state_dir, has_grpc=bool(fact.grpc_port))
            sockets = await self._channel.open_listeners(fact.host, fact.port, settings.proxies)
            pid, ticks = self._supervisor.start((PROXY, fact.proxy_id), PROXY_TARGET, (start, sockets), {})
        except (HostLimitError, ConfigError, StateError) as error:
            logger.warning("action_failed action=StartProxy reason=%s", error)
            is_host_limit = isinstance(error, HostLimitError)
            self._emit(events.StartFailed(PROXY, fact.proxy_id, str(error), is_host_limit=is_host_limit))
        except Exception as error:
            logger.exception("action_failed action=StartProxy")
            self._emit(events.StartFailed(PROXY, fact.proxy_id, str(error)))
        else:
            self._emit(events.Started(PROXY, fact.proxy_id, pid, ticks))

    def greet_proxy(self, action: actions.SetProxyGoal) -> None:
        """Tell a proxy that has just said Hello what it shall be."""
        self._server.send(PROXY, action.goal.proxy_id, LogConfig(self._logging_config))
        self.execute(action)

    def set_logging(self, config: dict[str, Any]) -> None:
        """Let the controller and the proxies log like this; nothing happens if they do."""
        if config == self._logging_config:
            return
        self._logging_config = config
        logs.configure(config)
        for proxy_id in self._observed.proxies:
            self._server.send(PROXY, proxy_id, LogConfig(config))

    def _set_proxy_goal(self, goal: ProxyGoal) -> None:
        if not self._server.send(PROXY, goal.proxy_id, goal) and goal.drain:
            fact = self._observed.proxies.get(goal.proxy_id)
            # one that has served may have clients, though it has not said so to this controller yet: it is told when it greets
            if fact is None or not fact.has_served:
                self._supervisor.kill((PROXY, goal.proxy_id))

    def adopt(self) -> None:
        """Watch the processes that an earlier controller started; those that are gone become events."""
        for fork_server in list(self._observed.fork_servers.values()):
            self._adopt_fork_server(fork_server)
        for replica in list(self._observed.replicas.values()):
            self._adopt_replica(replica)
        for proxy in list(self._observed.proxies.values()):
            if not proxy.pid or not self._supervisor.adopt((PROXY, proxy.proxy_id), proxy.pid, proxy.start_ticks):
                self._emit(events.Exited(PROXY, proxy.proxy_id, None))
        self._may_free_copies = True

    def _adopt_fork_server(self, fact: ForkServerFact) -> None:
        identifier = fact.fork_server_id
        if not fact.pid:
            # the controller died while it was started: if it lives all the same, `end_unknown_fork_servers` ends it
            self._emit(events.StartLost(FORK_SERVER, identifier))
        elif self._supervisor.adopt((FORK_SERVER, identifier), fact.pid, fact.start_ticks):
            self._lines.connect(identifier, fact.order.socket_path)
        else:
            self._emit(events.Exited(FORK_SERVER, identifier, None))

    def _adopt_replica(self, fact: ReplicaFact) -> None:
        if not fact.pid:
            # ordered, but whether it was made is unknown: another one takes its place, and `end_stray` ends it
            self._emit(events.StartLost(REPLICA, fact.replica_id))
        elif self._supervisor.adopt((REPLICA, fact.replica_id), fact.pid, fact.start_ticks):
            self._known.add(fact.replica_id)
        else:
            self._emit(events.Exited(REPLICA, fact.replica_id, None))

    def end_unknown_fork_servers(self) -> None:
        """End each that listens and that no fact speaks of; replicas of theirs that live are known, or end when they greet."""
        known = {fact.order.socket_path for fact in self._observed.fork_servers.values()}
        for path in fork_server_sockets(self._settings.socket_dir):
            if path in known:
                continue
            pid = listener_of(path)
            if pid is None:
                _remove(path)
            elif is_called(pid, ("fork server", "template")):
                self.end_stray(pid, f"fork server at {path}")

    def remove_leftovers(self) -> None:
        """Remove what dead replicas left in the socket directory: it took no changes then, or nobody was there to do it."""
        known = {fact.start.address.removeprefix("ipc://") for fact in self._observed.replicas.values()}
        for path in replica_files(self._settings.socket_dir):
            if socket_path(path) not in known:
                _remove(path)

    def end_stray(self, pid: int, what: str) -> None:
        """SIGKILL a process of servd that no fact speaks of."""
        logger.warning("stray_killed what=%s pid=%d", what, pid)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)

    def exited(self, key: Key, exit_code: int | None) -> None:
        """A process is gone: remove what it leaves behind, tell it as news."""
        kind, name = key
        cause = self.causes.cause_of(exit_code)
        if kind == PROXY:
            self._emit(events.Exited(PROXY, name, exit_code, cause=cause))
        elif kind == REPLICA:
            self._known.discard(name)
            fact = self._observed.replicas.get(name)
            log_lines: tuple[str, ...] = ()
            if fact is not None:
                remove_files(fact.start.address)
                file_name = logs.replica_file(full_name_of(fact.app, fact.deployment), name)
                log_lines = logs.last_lines(fact.start.log_dir, file_name)
            limit = no_process_for(REPLICA_THREADS) if fact is not None and fact.state is ReplicaState.STARTING else ""
            self._emit(events.Exited(REPLICA, name, exit_code, log_lines, limit, cause=cause))
            self._forget_dead_logs()
        else:
            for replica_id, had_order in self._lines.close(name).items():
                # if the order itself is deadly, the starts must be counted, or it goes round for ever
                error = "its fork server died before it was forked"
                lost = events.StartLost(REPLICA, replica_id)
                self._emit(events.StartFailed(REPLICA, replica_id, error) if had_order else lost)
            server = self._observed.fork_servers.get(name)
            if server is not None:
                _remove(server.order.socket_path)
            trouble = trouble_of("socket directory", self._settings.socket_dir) if exit_code else ""
            if trouble:
                # it had nowhere to listen, so it could not say so itself
                self._emit(
                    events.StartFailed(FORK_SERVER, name, f"exited with {events.exit_text(exit_code)}: {trouble}")
                )
            else:
                self._emit(events.Exited(FORK_SERVER, name, exit_code, cause=cause))
        self._may_free_copies |= kind != PROXY

    def after_turn(self) -> None:
        """What was emitted before is in the facts now."""
        if self._may_free_copies:
            self._may_free_copies = False
            self._remove_unused_copies()

    def _remove_unused_copies(self) -> None:
        replicas = self._observed.replicas.values()
        needed = {*self._observed.fork_servers, *(replica.fork_server_id for replica in replicas)}
        # looked up here: a fork server that is started meanwhile has made its copies when the thread gets to it
        if directories := unused(work_dir(self._settings.state_dir), needed):
            # no thread may be left: the next death brings us back
            with contextlib.suppress(RuntimeError):
                self._loop.run_in_executor(None, remove, directories)

    def _forget_dead_logs(self) -> None:
        self._deaths += 1
        if self._deaths < _DEATHS_A_CLEANING:
            return
        self._deaths = 0
        living = {logs.replica_file(fact.full_name, fact.replica_id) for fact in self._observed.replicas.values()}
        forget_dead(self._settings.log_dir, living)


def _variables(order: BuildOrder, defaults: dict[str, str]) -> dict[str, str]:
    """What must hold before the interpreter starts: the user's variables, over the defaults that nobody has set."""
    defaults = {name: value for name, value in (_FORKABLE | defaults).items() if name not in os.environ}
    return {**defaults, **with_daemons_zone(order.runtime_env.get("env_vars") or {})}


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _failure(action: actions.Action, error: str, is_host_limit: bool) -> events.Event | None:
    match action:
        case actions.StartForkServer():
            return events.StartFailed(FORK_SERVER, action.fact.fork_server_id, error, is_host_limit)
        case actions.StartReplica():
            return events.StartFailed(REPLICA, action.fact.replica_id, error, is_host_limit)
        case _:
            return None
