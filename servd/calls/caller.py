"""A process's way to replicas: links to them, the waiting lines, and what becomes of requests when a replica dies."""

import asyncio
import logging
import random
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from servd.calls import traced
from servd.calls.arguments import NO_ARGUMENTS, Arguments
from servd.calls.broadcast import submit_to_all
from servd.calls.knots import refuse_circles, untie
from servd.calls.outgoing import CallTicket, Outgoing, circle_of
from servd.calls.replica_peer import ReplicaPeer, Router
from servd.calls.request_context import RequestContext
from servd.calls.request_router import AfterLoss, RequestRouter, RetryBudget, after_loss
from servd.calls.routing_rules import Candidate
from servd.exceptions import ReplicaDiedError, TransportError
from servd.ground.clock import SystemClock
from servd.ground.settings import max_retries_setting
from servd.observability import spans
from servd.observability.measures import handle_families, queue_families
from servd.wire.caller_link import LinkWatch
from servd.wire.messages import DeploymentTargets, MetricFamily, Routing
from servd.wire.records import CANCEL, CLAIM, DECLINE, WANT

_TURN_S = 1.0
_number = attrgetter("number")

logger = logging.getLogger(__name__)


class Caller:
    """Sends requests of this process to replicas. All of it runs on `loop`.

    Args:
        identity: who calls, for logs.
        on_subscribe: called with all full names that calls went to, when one is new.
        on_applied: called with the generation of each routing once the tables hold exactly that.
        on_waiting: called when a request waits for a deployment for which none did, with the deployment's router.
        on_routes: called with a deployment and the routes of its application, as a replica described them; None asks for none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        identity: str,
        on_subscribe: Callable[[tuple[str, ...]], None],
        on_applied: Callable[[int], None] | None = None,
        rng: random.Random | None = None,
        on_waiting: Callable[[Router], None] | None = None,
        on_routes: Callable[[str, tuple[Any, ...]], None] | None = None,
    ) -> None:
        self.loop = loop
        self._identity = identity
        self._on_subscribe = on_subscribe
        self._on_applied = on_applied
        self._on_waiting, self.on_routes = on_waiting, on_routes
        self._rng = rng or random.Random()
        self._routers: dict[str, Router] = {}
        self._subscribed: set[str] = set()
        self._doubted: set[str] = set()
        self.watch = LinkWatch(loop)
        self._sent = self._last_id = 0
        self._budget = RetryBudget()
        self._now = SystemClock().now
        # replicas that are routed no more, with requests that they still answer
        self._leaving: list[ReplicaPeer] = []
        self._is_short = False
        self._calls: dict[tuple[str, str, str], int] = {}
        self._apps: dict[str, str] = {}
        self.max_retries = max_retries_setting()
        self._noted = 0
        # runs while there is something to do: many callers do nothing
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Caller({self._identity}, {list(self._routers.values())}, sent={self._sent})"

    def apply_routing(self, routing: Routing) -> None:
        """Make exactly these the targets; what is under way at replicas that left goes on there."""
        named = {targets.deployment for targets in routing.targets}
        self._doubted &= named
        for targets in routing.targets:
            if targets.deployment not in self._doubted:
                self._apply(targets)
        for name, router in list(self._routers.items()):
            if name not in named and router.is_known:
                self._apply(DeploymentTargets(name, exists=False))
                del self._routers[name]
        if self._on_applied is not None:
            self._on_applied(routing.generation)

    def queued(self) -> dict[str, int]:
        """Requests that wait for a replica, per deployment that has any."""
        return {name: len(router.line) for name, router in self._routers.items() if router.line}

    def metrics(self) -> list[MetricFamily]:
        """Calls that were sent, requests that wait; any thread may ask."""
        lines = []
        for name, router in self._routers.copy().items():
            oldest = next(iter(router.line.copy()), None)
            age_s = max(self._now() - oldest.waits_since, 0.0) if oldest is not None else 0.0
            lines.append((name, router.targets.app, len(router.line), age_s))
        return [*handle_families(self._calls.copy(), self._apps), *queue_families(lines)]

    def subscriptions(self) -> tuple[str, ...]:
        """Full names that handle calls went to."""
        return tuple(sorted(self._subscribed))

    def subscribe(self, deployment: str) -> None:
        """Ask for the targets of a deployment; again if it was said not to exist, which may be long ago."""
        router = self._routers.get(deployment)
        if deployment not in self._subscribed:
            self._subscribed.add(deployment)
            self.router_of(deployment)
            self._on_subscribe(self.subscriptions())
        elif router is not None and not router.targets.exists:
            router.forget()
            self._ask_again(deployment)

    def _ask_again(self, deployment: str) -> None:
        # news that are under way name the deployment; what comes after them does not, and then comes the answer
        self._doubted.add(deployment)
        self._turn_later()
        self._subscribed.remove(deployment)
        self._on_subscribe(self.subscriptions())
        self._subscribed.add(deployment)
        self._on_subscribe(self.subscriptions())

    def router_of(self, deployment: str) -> Router:
        """Candidates and waiting line of a deployment."""
        router = self._routers.get(deployment)
        if router is None:
            router = self._routers[deployment] = RequestRouter(deployment, self._rng)
        return router

    def submit_call(
        self,
        deployment: str,
        method: str,
        parts: list[Any],
        context: RequestContext,
        *,
        stream: bool = False,
        model_id: str = "",
        deadline: float | None = None,
        session_id: str = "",
        arguments: Arguments = NO_ARGUMENTS,
    ) -> CallTicket:
        """Call a method of a deployment.

        Args:
            parts: pickled (args, kwargs).
            stream: the answer comes item by item.
            deadline: monotonic seconds of the loop, None = no limit.
            session_id, arguments: for rules that go by the one, or by a text among the others, which none else looks at.
        """
        self.subscribe(deployment)
        router = self.router_of(deployment)
        said = (session_id, arguments) if router.may_read_texts else session_id
        if spans.has_met_traces:
            about = (self.loop, self.cancel, method, parts, context, stream, model_id, deadline, said)
            ticket = traced.new_ticket(CallTicket, deployment, about)
        else:
            ticket = CallTicket(self.loop, self.cancel, method, parts, context, stream, model_id, deadline, said)
        key = (deployment, context.route, context.pattern)
        self._calls[key] = self._calls.get(key, 0) + 1
        self.submit(ticket, router)
        return ticket

    submit_to_all = submit_to_all

    def submit(self, call: Outgoing, router: Router) -> None:
        """Send a request, or let it wait; everything that happens to it is told to `call`."""
        if self._timer is None:
            self._turn_later()
        self._sent += 1
        call.number = self._sent
        call.router = router
        call.peer = None
        call.is_accepted = call.has_begun = call.was_granted = call.has_waited = False
        call.retries = 0
        candidates = router.candidates
        if len(candidates) == 1 and not router.line and not call.model_id and not candidates[0].is_full:
            # `choose` would say the same
            candidate: Candidate | None = candidates[0]
        else:
            candidate = router.choose(call.model_id, call)
        if candidate is None:
            self._wait(call)
        else:
            self._send(call, candidate, 0)

    def cancel(self, call: Outgoing) -> None:
        """Take a request back: out of the line, or from the replica. It is told nothing any more."""
        peer = call.peer
        if peer is None:
            if call in call.router.line:
                call.router.line.remove(call)
        elif peer.pending.pop(call.call_id, None) is not None:
            peer.link.send((CANCEL, call.call_id))

    def cancel_calls_of(self, context: RequestContext) -> None:
        """Take back every call made for a request whose handler was cancelled."""
        routers = self._routers.values()
        peers = [one.peer for router in routers for one in router.announced.values() if one.peer is not None]
        calls = [call for router in routers for call in router.line]
        calls += [call for peer in (*peers, *self._leaving) for call in peer.pending.values()]
        for call in calls:
            if isinstance(call, CallTicket) and call.context is context:
                call.cancel()

    def close(self) -> None:
        """Close all links; whatever is under way fails."""
        if self._timer is not None:
            self._timer.cancel()
        for peer in self._leaving:
            peer.close()
        for router in self._routers.values():
            for candidate in router.announced.values():
                if candidate.peer is not None:
                    candidate.peer.close()
        self.watch.close()

    def on_offer(self, peer: ReplicaPeer) -> None:
        """A replica holds a slot for the oldest waiting request."""
        router = peer.router
        # who is routed no more has said so before it heard that: what waits has tickets elsewhere
        call = None if peer.is_retired else router.take_waiting()
        while call is not None and call.is_abandoned():
            call = router.take_waiting()
        if call is None:
            peer.candidate.is_full = False
            peer.link.send((DECLINE,))
            peer.told_id = self._last_id
            return
        self._send(call, peer.candidate, CLAIM)
        peer.told_id = self._last_id
        waiting = len(router.line)
        peer.link.send((WANT, waiting))
        if not waiting:
            peer.candidate.is_full = False

    def refuse_line(self, router: Router) -> None:
        """Refuse what waits in vain: for what is not there, beyond the bound, or for slots that are held on its own behalf."""
        if router.line and (refused := router.refusal()) is not None:
            waiting, router.line = router.line, []
            for call in waiting:
                call.on_failure(refused)
        if router.came_blind:
            there = {one.replica_id: len(one.peer.pending) for one in router.candidates}
            for call, beyond in router.take_beyond(there):
                call.on_failure(beyond)
        refuse_circles(router)

    def on_rejected(self, peer: ReplicaPeer, call_id: int, call: Outgoing | None, is_leaving: bool) -> None:
        """A replica did not take a request (None: taken back meanwhile); its ticket lies there unless the replica leaves."""
        if is_leaving:
            peer.router.drop(peer.candidate)
        else:
            peer.candidate.is_full = True
        if call is not None:
            self._send_elsewhere(call)
        if call_id <= peer.told_id and not is_leaving:
            # what this side said of its line crossed the rejection, and may have given the new ticket back
            peer.told_id = self._last_id
            peer.link.send((WANT, max(1, len(peer.router.line))))

    def on_lost(self, peer: ReplicaPeer, reason: str) -> None:
        """A replica is gone, with everything that was there."""
        logger.info(
            "replica_lost replica=%s pending=%d reason=%s", peer.candidate.replica_id, len(peer.pending), reason
        )
        peer.router.drop(peer.candidate)
        peer.candidate.peer = None
        self._turn_later()
        pending, peer.pending = peer.pending, {}
        for call in sorted(pending.values(), key=_number):
            try:
                self._rescue(call, peer.candidate.replica_id, reason)
            except Exception:
                logger.exception("failure_callback_failed")
        self.refuse_line(peer.router)

    def _rescue(self, call: Outgoing, replica_id: str, reason: str) -> None:
        verdict = after_loss(
            is_accepted=call.is_accepted,
            is_idempotent=call.is_idempotent,
            has_begun=call.has_begun,
            was_granted=call.was_granted,
            retries=call.retries,
            max_retries=self.max_retries,
        )
        if verdict is AfterLoss.RETRY:
            if not self._budget.take(self._sent, self.loop.time()):
                call.on_failure(ReplicaDiedError(replica_id, f"{reason}; the retry budget is used up"))
                return
            call.retries += 1
        elif verdict is AfterLoss.FAIL:
            call.on_failure(ReplicaDiedError(replica_id, reason))
            return
        self._send_elsewhere(call)

    def _send(self, call: Outgoing, candidate: Candidate, flags: int) -> None:
        peer: ReplicaPeer = candidate.peer
        # ids grow in the order of sending, so a replica begins them in that order
        self._last_id = call_id = self._last_id + 1
        call.call_id = call_id
        call.peer = peer
        peer.pending[call_id] = call
        candidate.load += 1
        link = peer.link
        link.send(call.record(call_id, flags, link.outbox))

    def _send_elsewhere(self, call: Outgoing) -> None:
        call.peer = None
        call.is_accepted = False
        candidate = call.router.choose(call.model_id, call)
        if candidate is None:
            self._wait(call)
        else:
            self._send(call, candidate, 0)

    def _wait(self, call: Outgoing) -> None:
        router = call.router
        call.waits_since = self._now()
        refused = circle_of(call) or router.admit_to_line(call)
        if refused is not None:
            call.on_failure(refused)
            return
        if self._on_waiting is not None and len(router.line) == 1:
            self._on_waiting(router)
        if isinstance(call, CallTicket) and any(c.replica_id in call.context.ancestors for c in router.candidates):
            untie(router)

    def _apply(self, targets: DeploymentTargets) -> None:
        router = self.router_of(targets.deployment)
        if targets.app:
            self._apps[targets.deployment] = targets.app
        new, gone = router.update(targets)
        are_all_new = len(new) == len(router.candidates)
        for candidate in gone:
            if candidate.peer is not None:
                if candidate.peer.pending:
                    self._leaving.append(candidate.peer)
                    self._turn_later()
                candidate.peer.retire()
                candidate.peer = None
        connected = [candidate.peer for candidate in new if self._connect(router, candidate)]
        for call, candidate in router.take_first() if are_all_new else ():
            if not call.is_abandoned():
                self._send(call, candidate, 0)
        for peer in connected:
            peer.ask_for_offers(self._last_id)
        self.refuse_line(router)

    def _connect(self, router: Router, candidate: Candidate) -> bool:
        try:
            candidate.peer = ReplicaPeer(self, router, candidate)
        except TransportError as error:
            # `_turn` tries again; requests go to the others meanwhile, or wait
            router.drop(candidate)
            self._turn_later()
            if not self._is_short:
                self._is_short = True
                logger.warning("replica_not_connected replica=%s reason=%s", candidate.replica_id, error)
            return False
        self._is_short = False
        return True

    def _turn_later(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(_TURN_S, self._turn)

    def _turn(self) -> None:
        self._timer = None
        if self._sent != self._noted:
            self._turn_later()
        self._noted = self._sent
        self._budget.note(self._sent, self.loop.time())
        for peer in self._leaving:
            if not peer.pending:
                # the last was taken back rather than answered, maybe
                peer.close()
        self._leaving = [peer for peer in self._leaving if peer.pending]
        if self._leaving:
            self._turn_later()
        for deployment in sorted(self._doubted):
            # the controller was replaced in between, say
            self._ask_again(deployment)
        for router in self._routers.values():
            # dropped though still announced (frozen for a while, say): try again
            for candidate in router.announced.values():
                if candidate.peer is None:
                    fresh = Candidate(candidate.replica_id, candidate.address, candidate.model_ids)
                    router.revive(fresh)
                    if self._connect(router, fresh):
                        fresh.peer.ask_for_offers(self._last_id)
