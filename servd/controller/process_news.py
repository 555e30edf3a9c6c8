"""What processes say and how they end, made into events: the ear of the control loop."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from servd.controller.control_server import ControlServer
from servd.controller.executor import Executor
from servd.controller.metrics_desk import MetricsDesk
from servd.controller.plan import actions, events
from servd.controller.plan.data_plane import goal_of
from servd.controller.plan.facts import UpgradeFact
from servd.controller.plan.observed import Observed
from servd.controller.shown.figures import FiguresDesk
from servd.controller.stack_requests import StackRequests
from servd.controller.supervisor import Key, Supervisor
from servd.ground.states import UpgradeStage
from servd.observability.error_groups import ErrorBook, ErrorsReport
from servd.observability.figures import FiguresReport
from servd.wire.build_messages import BuildResult
from servd.wire.daemon_messages import OrphanExited, Upgraded
from servd.wire.messages import (
    FORK_SERVER,
    PROXY,
    REPLICA,
    ChildExited,
    Forked,
    Hello,
    MetricsReport,
    ProxyReport,
    ReplicaReport,
    StackReport,
)
from servd.wire.policy_messages import PolicyAnswer

logger = logging.getLogger(__name__)


class ProcessNews:
    """Listens to the control server, the fork servers, the supervisor and the daemon.

    What a process says is checked against the facts: one that no fact speaks of is a stray and is ended.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, observed: Observed, emit: Callable[[events.Event], None]
    ) -> None:
        self._loop = loop
        self._observed = observed
        self._emit = emit
        self._executor: Executor
        self._server: ControlServer
        self._supervisor: Supervisor
        self._stacks: StackRequests | None = None
        self._metrics: MetricsDesk | None = None
        self._errors: ErrorBook | None = None
        self._figures: FiguresDesk | None = None

    def __repr__(self) -> str:
        return f"ProcessNews({len(self._observed.replicas)} replicas)"

    def start(
        self,
        executor: Executor,
        supervisor: Supervisor,
        server: ControlServer,
        stacks: StackRequests | None = None,
        metrics: MetricsDesk | None = None,
        errors: ErrorBook | None = None,
        figures: FiguresDesk | None = None,
    ) -> None:
        """Say who answers; before the first news."""
        self._executor = executor
        self._server = server
        self._supervisor = supervisor
        self._stacks = stacks
        self._metrics = metrics
        self._errors = errors
        self._figures = figures

    def greeted(self, hello: Hello, pid: int) -> bool:
        """A process said Hello on its control line; False refuses it."""
        if hello.role == REPLICA:
            return self._replica_greeted(hello, pid)
        if hello.role == PROXY:
            return self._proxy_greeted(hello, pid)
        return True

    def _replica_greeted(self, hello: Hello, pid: int) -> bool:
        fact = self._observed.replicas.get(hello.id)
        if fact is None or fact.start.token != hello.token:
            self._executor.end_stray(pid, f"replica {hello.id}")
            return False
        if self._supervisor.adopt((REPLICA, hello.id), pid, hello.start_ticks) and not fact.pid:
            self._emit(events.Started(REPLICA, hello.id, pid, hello.start_ticks))
        # the line is registered after this call
        self._loop.call_soon(self._executor.greet_replica, fact)
        return True

    def _proxy_greeted(self, hello: Hello, pid: int) -> bool:
        fact = self._observed.proxies.get(hello.id)
        if fact is None or fact.token != hello.token:
            self._executor.end_stray(pid, f"proxy {hello.id}")
            return False
        if self._supervisor.adopt((PROXY, hello.id), pid, hello.start_ticks) and not fact.pid:
            self._emit(events.Started(PROXY, hello.id, pid, hello.start_ticks))
        goal = goal_of(fact, self._observed, drain=fact.draining)
        self._loop.call_soon(self._executor.greet_proxy, actions.SetProxyGoal(goal, "hello"))
        return True

    def received(self, role: str, peer_id: str, message: Any) -> None:
        """A report came on a control line."""
        if _is_own_report(role, peer_id, message):
            self._emit(message)
        elif isinstance(message, StackReport) and self._stacks is not None:
            self._stacks.answered(message)
        elif isinstance(message, MetricsReport):
            if self._metrics is not None:
                self._metrics.heard(role, peer_id, message)
        elif isinstance(message, ErrorsReport):
            fact = self._observed.replicas.get(peer_id)
            if fact is not None and message.replica_id == peer_id and self._errors is not None:
                self._errors.heard(fact.app, fact.deployment, message)
        elif isinstance(message, FiguresReport):
            fact = self._observed.replicas.get(peer_id)
            if fact is not None and message.replica_id == peer_id and self._figures is not None:
                self._figures.heard(fact, message)
        else:
            logger.warning("message_ignored role=%s id=%s message=%s", role, peer_id, type(message).__name__)

    def queued(self, caller: str, deployment: str, waiting: int) -> None:
        """The waiting line of a caller changed."""
        self._emit(events.QueueReported(caller, deployment, waiting))

    def fork_server_greeted(self, fork_server_id: str, pid: int) -> None:
        """A fork server listens."""
        if fork_server_id not in self._observed.fork_servers:
            self._executor.end_stray(pid, f"fork server {fork_server_id}")

    def fork_server_misunderstood(self, fork_server_id: str, reason: str) -> None:
        """A fork server speaks another language: its build has failed for that, or another one takes its place."""
        fact = self._observed.fork_servers.get(fork_server_id)
        if fact is not None:
            error = f"the controller does not understand the build process: {reason}"
            self._emit(events.BuildFinished(fork_server_id, BuildResult(fact.order.build_id, error=error)))
        self._supervisor.kill((FORK_SERVER, fork_server_id))

    def built(self, fork_server_id: str, result: BuildResult) -> None:
        """A build has ended."""
        self._emit(events.BuildFinished(fork_server_id, result))

    def build_errors(self, fork_server_id: str, report: ErrorsReport) -> None:
        """Why a build failed, which comes again after each reconnect; or what a policy raised, behind the id whose that is."""
        fact = self._observed.fork_servers.get(fork_server_id)
        told_by, of_policy, deployment = report.replica_id.partition("/")
        if fact is not None and told_by == fork_server_id and self._errors is not None:
            whose = deployment if of_policy else fact.order.preload
            self._errors.heard(fact.order.app, whose, replace(report, replica_id=fork_server_id))

    def forked(self, child: Forked) -> None:
        """A replica was forked, or not; comes again for every living child after each reconnect."""
        if child.error:
            self._emit(events.StartFailed(REPLICA, child.replica_id, child.error, child.is_host_limit))
        elif child.replica_id not in self._observed.replicas:
            self._executor.end_stray(child.pid, f"replica {child.replica_id}")
        else:
            self._emit(events.Started(REPLICA, child.replica_id, child.pid, child.start_ticks))
            if not self._supervisor.adopt((REPLICA, child.replica_id), child.pid, child.start_ticks):
                self._emit(events.Exited(REPLICA, child.replica_id, None))

    def child_exited(self, exited: ChildExited) -> None:
        """A fork server reaped a replica."""
        self._supervisor.note_status(exited.pid, exited.exit_code)

    def policy_answered(self, answer: PolicyAnswer) -> None:
        """An autoscaling policy has answered, or cannot."""
        self._emit(answer)

    def orphan_exited(self, exited: OrphanExited) -> None:
        """The daemon reaped a process."""
        self._supervisor.note_status(exited.pid, exited.exit_code)

    def upgraded(self, news: Upgraded) -> None:
        """The daemon has become another edition, or could not."""
        stage = UpgradeStage.FAILED if news.error else UpgradeStage.PROXIES
        self._emit(UpgradeFact(news.edition, news.before, stage.value, news.error))

    def process_exited(self, key: Key, pid: int, exit_code: int | None) -> None:
        """A process is gone."""
        logger.info("process_exited kind=%s id=%s pid=%d exit_code=%s", *key, pid, exit_code)
        if key[0] == REPLICA:
            self._server.after_heard_out(*key, lambda: self._replica_heard_out(key, exit_code))
        else:
            self._executor.exited(key, exit_code)

    def _replica_heard_out(self, key: Key, exit_code: int | None) -> None:
        if self._stacks is not None:
            self._stacks.gone(key[1])
        self._executor.exited(key, exit_code)


def _is_own_report(role: str, peer_id: str, message: Any) -> bool:
    if isinstance(message, ReplicaReport):
        return role == REPLICA and message.replica_id == peer_id
    return isinstance(message, ProxyReport) and role == PROXY and message.proxy_id == peer_id
