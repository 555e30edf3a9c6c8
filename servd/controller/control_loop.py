"""The verbs on the goal: each checks, puts the new goal on disk and makes it the one in force."""

import asyncio
import logging
import os
import random
from collections.abc import Callable
from dataclasses import replace

from servd.controller import history
from servd.controller.changed_files import changed_files
from servd.controller.circle import Circle
from servd.controller.daemon_channel import DaemonChannel
from servd.controller.executor import Executor
from servd.controller.fact_store import FactStore
from servd.controller.goal_store import GoalStore
from servd.controller.plan import change
from servd.controller.plan.data_plane import is_served
from servd.controller.plan.facts import DataPlaneFact
from servd.controller.plan.goal import Goal, HttpGoal
from servd.controller.plan.observed import Observed
from servd.controller.plan.start_verdict import try_at_once
from servd.controller.shown.advice import chosen_log_directories
from servd.controller.shown.dry_run import compare, replaced_snapshots
from servd.controller.shown.outcome import outcome_of
from servd.controller.shown.status import Identity, epoch_of, instance_view
from servd.controller.snapshots import check_log_directories, check_tls, keep_secrets, prune, take_snapshots
from servd.controller.stack_requests import StackRequests
from servd.controller.supervisor import Supervisor
from servd.daemon.edition_watch import EditionWatch
from servd.daemon.listeners import check_grpc
from servd.daemon.upgrade import Upgrader
from servd.documents.control_plane import (
    ApplicationDocument,
    ChangePlan,
    GoalDocument,
    InstanceView,
    Pruned,
    RevisionView,
    check_match,
)
from servd.documents.sent import HttpWish
from servd.exceptions import DeployError, GoalNotSavedError, ListenError, ServdError, UnknownNameError
from servd.ground.clock import Clock
from servd.ground.ids import full_name_of
from servd.ground.places import Places
from servd.ground.settings import Settings
from servd.ground.states import RevisionOutcome

DELETE_LIMIT_S = 60.0
STOP_KILL_S = 1.0
UNDECIDED = RevisionOutcome.UNDECIDED

logger = logging.getLogger(__name__)


class ControlLoop(Circle):
    """Implements `control_plane.ControlPlane`.

    Args:
        goal: in force, as `data_plane.boot` gives it.
        on_failure: called when a turn failed: a bug, the process must end.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        clock: Clock,
        rng: random.Random,
        identity: Identity,
        goal: Goal,
        observed: Observed,
        store: GoalStore,
        facts: FactStore,
        on_failure: Callable[[], None],
    ) -> None:
        super().__init__(loop, settings, clock, rng, goal, observed, facts, on_failure)
        self._identity = identity
        self._store = store
        self._supervisor: Supervisor | None = None
        self._channel: DaemonChannel | None = None
        self._stacks: StackRequests | None = None
        self._is_stopping = False
        self._outcome_trouble = ""
        self._places, self._trouble = Places(loop, settings), list[str]()
        decided = [(row.revision, row.outcome) for row in store.revisions() if row.outcome is not UNDECIDED]
        self._judged = max(decided, default=(0, UNDECIDED))

    def start(
        self,
        executor: Executor,
        supervisor: Supervisor,
        channel: DaemonChannel,
        stacks: StackRequests | None = None,
        editions: EditionWatch | None = None,
        upgrader: Upgrader | None = None,
    ) -> None:
        """Begin: adopt what an earlier controller left, then the first turn."""
        self._executor, self._supervisor, self._channel, self._stacks = executor, supervisor, channel, stacks
        self._editions, self._upgrader = editions, upgrader
        executor.adopt()
        self._schedule()

    def _turn_once(self) -> None:
        super()._turn_once()
        revision = self._goal.revision
        if self._judged == (revision, RevisionOutcome.RAN) or self._is_stopping:
            return
        outcome = outcome_of(self._goal, self._observed)
        # one that failed may run yet, once its build is tried again
        if outcome is UNDECIDED or self._judged == (revision, outcome):
            return
        try:
            self._store.save_outcome(revision, outcome)
        except GoalNotSavedError as error:
            # the next turn tries again; nothing that serves depends on it
            if str(error) != self._outcome_trouble:
                logger.warning("outcome_not_saved revision=%d outcome=%s reason=%s", revision, outcome, error)
            self._outcome_trouble = str(error)
            return
        self._judged = (revision, outcome)

    def view(self) -> InstanceView:
        """The instance as it is now."""
        observed = self._observed
        observed.epoch = epoch_of(observed.epoch, self._clock.wall_time(), self._clock.now())
        return instance_view(
            self._goal,
            self._observed,
            self._settings,
            self._identity,
            version=self._version,
            now=self._clock.now(),
            notice=self._notice(),
            health=self.health(observed.epoch),
        )

    def _notice(self) -> str:
        return "\n".join(filter(None, (self._store.trouble(), *self._trouble, self.of_editions())))

    def tend(self) -> None:
        """To be called every second: look after what changes without news."""
        self.measure()
        self._store.look_again()
        self._store.trouble()
        self._look_at_places()
        if self._executor is not None and not self._is_stopping:
            self._executor.causes.look()
            self._executor.end_unknown_fork_servers()
            self._executor.remove_leftovers()

    def _look_at_places(self) -> None:
        """Tell of directories that take nothing. What failed meanwhile is tried as soon as one takes something again."""
        found = self._places.look(chosen_log_directories(self._observed.targets.values()))
        before, self._trouble = self._trouble, found
        if found == before:
            return
        for text in found:
            if text not in before:
                logger.error("place_in_trouble %s", text)
        self._note_change()
        if any(text not in found for text in before):
            logger.warning("place_takes_files_again")
            try_at_once(self._observed)
            self._schedule()

    async def put(self, document: GoalDocument, *, if_match: str | None = None, origin: str = "") -> int:
        """Replace the goal's applications; gives the new revision."""
        async with self._changing:
            goal = await self._after_put(document, if_match)
            keep_secrets(document.http, goal.http, self._settings)
            return await self._accept(goal, origin)

    async def plan(self, document: GoalDocument, *, if_match: str | None = None) -> ChangePlan:
        """What `put` would do; nothing is changed."""
        async with self._changing:
            return await self._compared(await self._after_put(document, if_match))

    async def _after_put(self, document: GoalDocument, if_match: str | None) -> Goal:
        self._store.check_place()
        check_match(if_match, self._goal.revision)
        wanted = change.check_put(self._goal, document, self._situation())
        await asyncio.to_thread(check_tls, document.http, wanted, self._settings)
        snapshots = await self._snapshots(*document.applications, config_file=document.config_file)
        # the world has moved on meanwhile; the goal has not, the lock is ours
        situation = self._situation()
        http = change.check_put(self._goal, document, situation)
        return change.put(self._goal, document, http, situation, snapshots)

    async def _compared(self, goal: Goal) -> ChangePlan:
        opened = await self._listen(goal.http) if goal.running else None
        if opened is not None and self._channel is not None:
            self._channel.close_listeners(*opened)
        http = self._observed.data_plane.http or self._situation().http
        pairs = replaced_snapshots(goal, self._observed)
        files = await asyncio.to_thread(lambda: {pair: changed_files(*pair) for pair in pairs})
        return compare(self._goal, goal, http, self._observed, files)

    async def put_application(
        self,
        application: ApplicationDocument,
        *,
        http: HttpWish | None = None,
        if_match: str | None = None,
        origin: str = "",
    ) -> int:
        """Add or replace one application, others stay; gives the new revision."""
        async with self._changing:
            self._store.check_place()
            check_match(if_match, self._goal.revision)
            wish = http or HttpWish()
            change.merged_options(wish, self._situation())
            snapshots = await self._snapshots(application)
            situation = self._situation()
            options = change.merged_options(wish, situation)
            own = snapshots.get(application.name, {})
            return await self._accept(change.put_application(self._goal, application, options, situation, own), origin)

    async def delete_application(self, name: str, *, if_match: str | None = None, origin: str = "") -> int:
        """Take one application out of the goal; gives the revision."""
        async with self._changing:
            check_match(if_match, self._goal.revision)
            return await self._accept(change.delete_application(self._goal, name), origin)

    async def rollback(self, number: int, *, if_match: str | None = None, origin: str = "") -> int:
        """Make the goal what it was at that revision, its code included; gives the new revision."""
        async with self._changing:
            goal = await self._after_rollback(number, if_match)
            return await self._accept(goal, f"{origin} (rollback to revision {number})")

    async def plan_rollback(self, number: int, *, if_match: str | None = None) -> ChangePlan:
        """What `rollback` would do; nothing is changed."""
        async with self._changing:
            return await self._compared(await self._after_rollback(number, if_match))

    async def _after_rollback(self, number: int, if_match: str | None) -> Goal:
        check_match(if_match, self._goal.revision)
        former = history.goal_of(self._store, number)
        wanted = change.check_rollback(self._goal, former, self._situation())
        await asyncio.to_thread(check_tls, former.asked, wanted, self._settings)
        situation = self._situation()
        http = change.check_rollback(self._goal, former, situation)
        history.check_code(former, self._code_dir)
        return change.rollback(self._goal, former, http, situation)

    async def scale(self, app: str, deployment: str, count: int, *, origin: str = "") -> None:
        """Pin the replica count of a deployment until the next change that names the application."""
        async with self._changing:
            wish = self._goal.application(app)
            if wish is None:
                raise UnknownNameError(f"there is no application {app!r}")
            change.check_deployment(wish, self._observed.targets, deployment)
            goal = change.scale(self._goal, app, deployment, count)
            self._refuse_while_stopping()
            self._store.save_scale(goal)
            self._take(goal, f"{origin} ({app}/{deployment} to {count} replicas)")

    def revisions(self, limit: int) -> tuple[RevisionView, ...]:
        """The latest revisions, newest first."""
        return history.latest(self._store, limit)

    def revision(self, number: int) -> RevisionView:
        """One revision."""
        return history.view_of(self._store, number)

    def last_that_ran(self) -> int | None:
        """The revision before the current one to go back to."""
        return history.last_that_ran(self._store, self._code_dir)

    async def prune(self, keep: int, *, dry_run: bool = False) -> Pruned:
        """Remove code that neither the goal, the latest `keep` revisions, the last that ran, nor anything that lives needs."""
        async with self._changing:
            # without the store nobody knows what its revisions need
            self._store.check_place()
            servers = self._observed.fork_servers
            orphaned = {r.app for r in self._observed.replicas.values() if r.fork_server_id not in servers}
            goals = [self._goal, *history.goals_within(self._store, keep, orphaned)]
            if (ran := self.last_that_ran()) is not None:
                goals.append(history.goal_of(self._store, ran))
            kept = history.needed_code(goals, [server.order for server in servers.values()])
            names, freed = await asyncio.to_thread(prune, self._code_dir, kept, dry_run=dry_run)
        return Pruned(tuple(names), freed)

    async def stack(self, replica_id: str) -> str:
        """Python stacks of a living replica."""
        if self._stacks is None or replica_id not in self._observed.replicas:
            raise UnknownNameError(f"there is no replica {replica_id!r}")
        return await self._stacks.ask(replica_id)

    async def start_instance(self, http: HttpWish, *, origin: str = "") -> int:
        """Make Serve run with an empty goal if it does not run; gives the revision."""
        async with self._changing:
            if self._goal.running:
                return self._goal.revision
            wanted = change.merged_options(http, self._situation())
            await asyncio.to_thread(check_tls, http, wanted, self._settings)
            options = change.merged_options(http, self._situation())
            keep_secrets(http, options, self._settings)
            return await self._accept(change.start_instance(self._goal, options), origin)

    async def delete(self, *, if_match: str | None = None, origin: str = "") -> None:
        """Empty the goal and wait up to 60 s until everything is gone."""
        async with self._changing:
            check_match(if_match, self._goal.revision)
            revision = await self._accept(change.delete(self._goal), origin)
        deadline = self._clock.now() + DELETE_LIMIT_S
        while self._goal.revision == revision and not self._goal.running and self._is_deleting():
            left = deadline - self._clock.now()
            if left <= 0:
                raise DeployError(f"not everything was gone within {DELETE_LIMIT_S:.0f} s: {self._alive()}")
            await self.changed(self._version, left)

    def _is_deleting(self) -> bool:
        plane = self._observed.data_plane
        closing = not is_served(plane.http) and bool(self._observed.proxies)
        return bool(self._observed.applications) or plane.running or closing

    def _alive(self) -> str:
        names = {full_name_of(r.app, r.deployment) for r in self._observed.replicas.values()}
        return ", ".join([*sorted(names), *sorted(self._observed.proxies)])

    def _situation(self) -> change.Situation:
        return change.situation_of(self._goal, self._observed, self._settings, self._clock.wall_time())

    async def _snapshots(self, *documents: ApplicationDocument, config_file: str = "") -> dict[str, dict[str, str]]:
        await asyncio.to_thread(check_log_directories, documents)
        return await asyncio.to_thread(take_snapshots, documents, self._code_dir, config_file)

    @property
    def _code_dir(self) -> str:
        return os.path.join(self._settings.state_dir, "code")

    async def _accept(self, goal: Goal, origin: str) -> int:
        """Open the listener if the address is new, put the goal on disk, make it the one in force."""
        if goal is self._goal:
            return goal.revision
        self._refuse_while_stopping()
        opened = await self._listen(goal.http) if goal.running else None
        try:
            self._store.save(goal, origin, self._clock.wall_time())
        except ServdError:
            if opened is not None and self._channel is not None:
                self._channel.close_listeners(*opened)
            raise
        self._take(goal, origin)
        return goal.revision

    def _take(self, goal: Goal, origin: str) -> None:
        """The goal is on disk: from now on it is the one in force, and the status tells of it. Leaves the audit line."""
        history.tell_change(goal.revision, self._goal.revision, origin)
        self._goal = goal
        self._facts.save_goal(self._store.latest())
        self._note_change()
        # who asked for the change looks at the status next, and would find what ran before all RUNNING
        self._plan_now()

    def _refuse_while_stopping(self) -> None:
        if self._is_stopping:
            raise ServdError("the daemon is stopping: the goal was not changed")

    async def _listen(self, http: HttpGoal | None) -> tuple[str, int] | None:
        """Bind the address of these options; gives it if it was not in use before."""
        if http is None or not is_served(http) or self._channel is None:
            return None
        address = (http.host, http.port)
        old = self._observed.data_plane.http
        is_ours = old is not None and is_served(old) and (old.host, old.grpc_port) == (http.host, http.grpc_port)
        if http.grpc_port and not is_ours:
            check_grpc(http.host, http.grpc_port)
        in_use = address in self._observed.listeners or (old is not None and address == (old.host, old.port))
        try:
            await self._channel.open_listeners(*address, self._settings.proxies)
        except ListenError as error:
            # the option of `servd start` is no help to somebody who sent a document
            raise ListenError(*address, error.reason) from error
        return None if in_use else address

    async def stop(self, timeout_s: float) -> None:
        """End proxies, then replicas and fork servers, gracefully; what is left after `timeout_s` is killed.

        The goal stays on disk.
        """
        assert self._supervisor is not None
        self._is_stopping = True
        deadline = self._clock.now() + timeout_s
        async with self._changing:
            # proxies first: they finish what they have, and what the replicas get thereafter is nobody's
            self._observed.put(DataPlaneFact())
            self._goal = replace(self._goal, running=False, http=None)
            self._schedule()
            await self._until(lambda: not self._observed.proxies, deadline - timeout_s / 2)
            self._goal = Goal(self._goal.revision)
            self._schedule()
            supervisor = self._supervisor
            if not await supervisor.wait_until_none_lives(deadline - self._clock.now()):
                logger.warning("stop_kills processes=%s", supervisor.living())
                supervisor.kill_all()
                await supervisor.wait_until_none_lives(STOP_KILL_S)
