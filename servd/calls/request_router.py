"""Decisions of a caller: which replica gets a request, who waits, what happens to requests of a replica that died.

How it works: a candidate is a replica that is routed. It is full from the moment it rejects a request (a ticket lies there)
until an offer of it finds nobody waiting. A request goes to the better of two random candidates that are not full, or to the
one that the deployment's rule chooses; when all are full, it waits. The line is served oldest first, by offers only, so nothing
overtakes.
"""

import random
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Generic, Protocol, TypeVar

from servd.calls.routing_rules import Candidate, Rule, better_of_two, make_rule
from servd.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    NoRouteError,
    RequestError,
)
from servd.wire.messages import DeploymentTargets

IDEMPOTENT_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
BUDGET_BASE = 100
BUDGET_SHARE = 0.2
BUDGET_WINDOW_S = 10.0
FIRST_OF_LINE = 8
"""Requests that a replica is sent out of the line by a rule before it has said how many it takes."""
_MAX_REMEMBERED_MODELS = 1000


class Numbered(Protocol):
    """What waits: `number` grows with each request of the caller. has_waited: it has had its place in the line already."""

    number: int
    model_id: str
    has_waited: bool

    def affinity(self, rule: Rule) -> str:
        """What the rule goes by; "" = it has nothing of it."""
        ...


WorkT = TypeVar("WorkT", bound=Numbered)


class RequestRouter(Generic[WorkT]):
    """Candidates and waiting line of one deployment at one caller.

    Args:
        deployment: full name.
        rng: makes the random choices.

    Attributes:
        refused: why one of today's replicas has refused this caller, "" if none has.
        rule: how to choose; None = the better of two.
        may_read_texts: the rule goes by texts, or is not known yet.
        came_blind: requests wait, or are on their way, that came before the bound of the line was known.
    """

    __slots__ = (
        "_chosen_for",
        "_rng",
        "announced",
        "came_blind",
        "candidates",
        "deployment",
        "is_known",
        "line",
        "may_read_texts",
        "refused",
        "rule",
        "targets",
        "when_known",
    )

    def __init__(self, deployment: str, rng: random.Random) -> None:
        self.deployment = deployment
        self._rng = rng
        self.is_known = self.came_blind = False
        self.targets = DeploymentTargets(deployment)
        self.announced: dict[str, Candidate] = {}
        self.candidates: list[Candidate] = []
        self.line: list[WorkT] = []
        self.refused = ""
        self.rule: Rule | None = None
        self.may_read_texts = True
        # told once the controller has said where the replicas are
        self.when_known: list[Callable[[], None]] = []
        self._chosen_for: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"RequestRouter({self.deployment}, {self.candidates}, waiting={len(self.line)})"

    def update(self, targets: DeploymentTargets) -> tuple[list[Candidate], list[Candidate]]:
        """Take over what the controller announced.

        Returns:
            Candidates that are new (also those dropped before and announced again), and those that are gone.
        """
        self.is_known = True
        while self.when_known:
            self.when_known.pop()()
        if targets.router != self.targets.router:
            self.rule = make_rule(targets.router, self._rng)
        self.may_read_texts = self.rule is not None and self.rule.reads_text
        self.targets = targets
        self.refused = ""
        wanted = {endpoint.replica_id: endpoint for endpoint in targets.endpoints}
        there = set(self.candidates)
        dropped = [c for c in self.announced.values() if c not in there]
        gone = dropped + [c for c in self.candidates if c.replica_id not in wanted]
        kept = {c.replica_id: c for c in self.candidates if c.replica_id in wanted}
        new = []
        for replica_id, endpoint in wanted.items():
            known = kept.get(replica_id)
            if known is None:
                known = kept[replica_id] = Candidate(replica_id, endpoint.address)
                new.append(known)
            known.model_ids = endpoint.model_ids
        self.announced = kept
        self.candidates = list(kept.values())
        self._tell_rule()
        return new, gone

    def _tell_rule(self) -> None:
        if self.rule is not None:
            self.rule.update(self.candidates)

    def forget(self) -> None:
        """Know nothing again: requests wait for news."""
        self.is_known = False
        self.may_read_texts = True
        self.targets = DeploymentTargets(self.deployment)

    def drop(self, candidate: Candidate) -> None:
        """Send nothing more to a replica that is dead or leaves, until it is announced again."""
        if candidate in self.candidates:
            self.candidates.remove(candidate)
            self._tell_rule()

    def revive(self, candidate: Candidate) -> None:
        """Try a dropped replica again that is still announced."""
        self.announced[candidate.replica_id] = candidate
        self.candidates.append(candidate)
        self._tell_rule()

    def refusal(self) -> RequestError | None:
        """Why a request that finds no candidate must be refused at once; None = it may wait."""
        if not self.targets.exists:
            return NoRouteError(f"deployment {self.deployment} does not exist")
        why = self.targets.unavailable or self.refused
        if why and not self.candidates:
            return DeploymentUnavailableError(self.deployment, why)
        return None

    def choose(self, model_id: str = "", work: WorkT | None = None) -> Candidate | None:
        """The replica for a new request; None = it must wait, or be refused.

        Args:
            work: the request, for rules that go by what it says.

        Source: power of two choices; replicas that hold the model come first, in list order (runtime.md section 9).
        """
        candidates = self.candidates
        if self.line:
            return None
        if self.rule is not None:
            return self._choose_by_rule(self.rule, model_id, work)
        if model_id:
            return self._choose_for_model(model_id)
        count = len(candidates)
        if count == 1:
            only = candidates[0]
            return None if only.is_full else only
        if not count:
            return None
        first = candidates[int(self._rng.random() * count)]
        second = candidates[int(self._rng.random() * count)]
        if first.is_full or second.is_full or first is second:
            return self._better_of(candidates)
        return first if first.load <= second.load else second

    def admit_to_line(self, work: WorkT) -> RequestError | None:
        """Let a request wait at its place in the line; an error = it is refused instead."""
        refused = self.refusal() or (None if work.has_waited else self._overflow())
        if refused is not None:
            return refused
        self.came_blind = self.came_blind or not self.is_known
        # rejected requests come back in any order; the line stays sorted by age
        if self.line and work.number < self.line[-1].number:
            insort(self.line, work, key=_number)
        else:
            self.line.append(work)
        return None

    def refused_now(self) -> RequestError | None:
        """Why a request would be refused that came now; None = it would be sent, or wait."""
        has_room = any(not candidate.is_full for candidate in self.candidates)
        return None if has_room else self.refusal() or self._overflow()

    def _overflow(self) -> BackPressureError | None:
        limit, waiting = self.targets.max_queued_requests, len(self.line)
        if 0 <= limit <= waiting:
            return BackPressureError(self.deployment, waiting, limit, *self.targets.backpressure)
        return None

    def take_beyond(self, pending: Mapping[str, int]) -> list[tuple[WorkT, RequestError]]:
        """Take what came before the bound was known and goes beyond it, the newest, when all replicas have told their limits.

        Args:
            pending: requests of this caller at each candidate, by replica id. Those that it cannot take come back.
        """
        limits, bound = self.limits(), self.targets.max_queued_requests
        if not self.came_blind or not self.is_known or not all(limits.values()):
            return []
        self.came_blind = False
        room = sum(limit - pending.get(replica_id, 0) for replica_id, limit in limits.items())
        keep = len(self.line) if bound < 0 else max(bound + room, 0)
        self.line, beyond = self.line[:keep], self.line[keep:]
        refused = BackPressureError(self.deployment, bound, bound, *self.targets.backpressure)
        return [(work, refused) for work in beyond]

    def limits(self) -> dict[str, int]:
        """Slots of each candidate, by replica id; 0 = not known yet."""
        return {candidate.replica_id: candidate.limit for candidate in self.candidates}

    def take_waiting(self) -> WorkT | None:
        """The request that waited longest, taken out of the line."""
        if not self.line:
            return None
        work = self.line.pop(0)
        # the replica that has offered a slot may leave before it is claimed
        work.has_waited = not self.came_blind
        return work

    def take_first(self) -> Iterator[tuple[WorkT, Candidate]]:
        """What waits and the replica that the rule, or its model, wants it at, a few for each; to be sent one by one as it comes.

        For the moment when all replicas are new. The rest waits for what they offer, as after any wait. Where the rule goes by
        nothing that a request says, all of it does but what wants a model that one of them holds.
        """
        rule = self.rule
        if rule is None or not (rule.header or rule.reads_text) or not self.candidates:
            yield from self._take_for_models()
            return
        left = dict.fromkeys(self.candidates, FIRST_OF_LINE)
        waiting, self.line = deque(self.line), []
        try:
            while waiting:
                chosen = self._choose_by_rule(rule, waiting[0].model_id, waiting[0])
                if chosen is None:
                    return
                left[chosen] -= 1
                chosen.is_full = not left[chosen]
                work = waiting.popleft()
                work.has_waited = not self.came_blind
                yield work, chosen
        finally:
            for candidate in left:
                candidate.is_full = False
            self.line = sorted([*self.line, *waiting], key=_number)

    def _better_of(self, candidates: list[Candidate]) -> Candidate | None:
        return better_of_two(candidates, self._rng)

    def _choose_by_rule(self, rule: Rule, model_id: str, work: WorkT | None) -> Candidate | None:
        # one that holds the model comes before all else: loading it costs more than any rule can gain
        chosen = rule.choose(
            (self._holding(model_id) if model_id else None) or self.candidates,
            "" if work is None else work.affinity(rule),
        )
        if model_id and chosen is not None:
            self._remember(model_id, chosen)
        return chosen

    def _take_for_models(self) -> Iterator[tuple[WorkT, Candidate]]:
        left = dict.fromkeys((candidate for candidate in self.candidates if candidate.model_ids), FIRST_OF_LINE)
        for work in [work for work in self.line if work.model_id] if left else ():
            holding = [candidate for candidate, room in left.items() if room and work.model_id in candidate.model_ids]
            if holding:
                left[holding[0]] -= 1
                self.line.remove(work)
                work.has_waited = not self.came_blind
                yield work, holding[0]
            elif not any(left.values()):
                return

    def _choose_for_model(self, model_id: str) -> Candidate | None:
        holding = self._holding(model_id)
        if holding:
            return holding[0]
        chosen = self._better_of(self.candidates)
        if chosen is not None:
            self._remember(model_id, chosen)
        return chosen

    def _holding(self, model_id: str) -> list[Candidate]:
        """Those that are not full and hold the model, or were sent what loads it."""
        before = self._chosen_for.get(model_id)
        return [c for c in self.candidates if not c.is_full and (model_id in c.model_ids or c.replica_id == before)]

    def _remember(self, model_id: str, chosen: Candidate) -> None:
        if len(self._chosen_for) >= _MAX_REMEMBERED_MODELS:
            self._chosen_for.clear()
        self._chosen_for[model_id] = chosen.replica_id


def _number(work: Numbered) -> int:
    return work.number


class AfterLoss(Enum):
    """What becomes of a request whose replica died or left."""

    ELSEWHERE = "sent elsewhere, costs no retry"
    RETRY = "sent elsewhere if the budget allows"
    FAIL = "fails"


def after_loss(
    *, is_accepted: bool, is_idempotent: bool, has_begun: bool, was_granted: bool, retries: int, max_retries: int
) -> AfterLoss:
    """What to do with a request whose replica died or left.

    Args:
        is_accepted: the replica had accepted it.
        is_idempotent: an HTTP request whose method may be repeated.
        has_begun: a part of the answer arrived.
        was_granted: a byte of a large request body was granted: it cannot be sent again.
        retries: retries made so far.

    Source: runtime.md section 3, retry table.
    """
    if has_begun or was_granted:
        return AfterLoss.FAIL
    if not is_accepted:
        return AfterLoss.ELSEWHERE
    if is_idempotent and retries < max_retries:
        return AfterLoss.RETRY
    return AfterLoss.FAIL


class RetryBudget:
    """Retries that a caller may make: 100 plus 20 % of its requests, both of the last 10 s."""

    __slots__ = ("_retries", "_samples")

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._retries: deque[float] = deque()

    def __repr__(self) -> str:
        return f"RetryBudget(retries={len(self._retries)})"

    def note(self, sent: int, now: float) -> None:
        """Remember how many requests were sent so far; to be told about once a second.

        Args:
            sent: requests since the caller began.
            now: monotonic seconds.
        """
        self._samples.append((now, sent))
        while len(self._samples) > 1 and self._samples[1][0] <= now - BUDGET_WINDOW_S:
            self._samples.popleft()

    def take(self, sent: int, now: float) -> bool:
        """Whether one more retry may be made; it is counted then."""
        while self._retries and self._retries[0] <= now - BUDGET_WINDOW_S:
            self._retries.popleft()
        before = 0
        for at, count in self._samples:
            if at > now - BUDGET_WINDOW_S:
                break
            before = count
        if len(self._retries) >= BUDGET_BASE + BUDGET_SHARE * (sent - before):
            return False
        self._retries.append(now)
        return True
