"""Replicas as a caller sees them, and rules by which it chooses among them beside the default one (`RequestRouter.choose`).

Pure: facts in, a replica out. A rule never gives a replica that is full: it goes on to the next that it would take. What it
remembers is this caller's own.
"""

import hashlib
import math
import random
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from servd.documents.router_names import (
    CONSISTENT_HASH,
    KEPT_CHARS,
    LEAST_LOADED,
    MATCH_RATE,
    PREFIX,
    REMEMBERED_CHARS,
    ROUND_ROBIN,
    VIRTUAL_NODES,
)
from servd.ground.settings import variable

BLOCK_CHARS = 32
"""Texts are compared in blocks of so many characters."""


class Candidate:
    """A routed replica as one caller sees it.

    Attributes:
        load: requests running there by its own last count, or those of this caller if they are more.
        limit: requests that run there at most, by its own word; 0 = not known yet.
        is_full: it rejected a request and holds a ticket of this caller.
        peer: the caller's connection to it.
    """

    __slots__ = ("address", "is_full", "limit", "load", "model_ids", "peer", "replica_id")

    def __init__(self, replica_id: str, address: str, model_ids: tuple[str, ...] = ()) -> None:
        self.replica_id = replica_id
        self.address = address
        self.model_ids = model_ids
        self.load = 0
        self.limit = 0
        self.is_full = False
        self.peer: Any = None

    def __repr__(self) -> str:
        return f"Candidate({self.replica_id}, load={self.load}{', full' if self.is_full else ''})"


class Rule(Protocol):
    """How one caller chooses a replica of one deployment.

    header: of the request, in lower case, whose value it goes by; b"" for none. reads_text: it goes by the text of the body.
    """

    header: bytes
    reads_text: bool

    def update(self, candidates: Sequence[Candidate]) -> None:
        """These are the replicas from now on."""
        ...

    def choose(self, among: Sequence[Candidate], affinity: str) -> Candidate | None:
        """The replica for a new request, None = all are full.

        Args:
            among: some of those of the last `update`.
            affinity: the value that it goes by, "" where the request has none.
        """
        ...


def make_rule(config: Mapping[str, Any], rng: random.Random) -> Rule | None:
    """The rule behind `DeploymentTargets.router`; None for the default.

    A controller of a later edition may name a rule that callers of this one lack, or an option: they go by the default one then,
    or without the option, until the last of them has ended.
    """
    name = config.get("name")
    if name == ROUND_ROBIN:
        return RoundRobin(rng)
    if name == LEAST_LOADED:
        return LeastLoaded(rng)
    if name == CONSISTENT_HASH:
        return ConsistentHash(rng, **_known(config, ConsistentHash.options))
    if name == PREFIX:
        return PrefixAffinity(rng, **_known(config, PrefixAffinity.options))
    return None


def _known(config: Mapping[str, Any], options: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key in options}


def better_of_two(candidates: Sequence[Candidate], rng: random.Random) -> Candidate | None:
    """The less busy of two random ones that are not full."""
    free = [candidate for candidate in candidates if not candidate.is_full]
    if len(free) > 2:
        free = rng.sample(free, 2)
    return min(free, key=_load) if free else None


def _load(candidate: Candidate) -> int:
    return candidate.load


class RoundRobin:
    """Each in turn, from a random one on."""

    header, reads_text = b"", False

    def __init__(self, rng: random.Random) -> None:
        self._next = rng.randrange(1 << 30)

    def update(self, candidates: Sequence[Candidate]) -> None:
        """Nothing depends on them."""

    def choose(self, among: Sequence[Candidate], affinity: str) -> Candidate | None:  # noqa: ARG002
        """The next one that is not full."""
        count = len(among)
        for step in range(count):
            candidate = among[(self._next + step) % count]
            if not candidate.is_full:
                self._next += step + 1
                return candidate
        return None


class LeastLoaded:
    """The one with the fewest requests; a random one of these."""

    header, reads_text = b"", False

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def update(self, candidates: Sequence[Candidate]) -> None:
        """Nothing depends on them."""

    def choose(self, among: Sequence[Candidate], affinity: str) -> Candidate | None:  # noqa: ARG002
        """The least busy one that is not full."""
        free = [candidate for candidate in among if not candidate.is_full]
        if not free:
            return None
        least = min(candidate.load for candidate in free)
        idle = [candidate for candidate in free if candidate.load == least]
        return idle[0] if len(idle) == 1 else self._rng.choice(idle)


def _place(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class ConsistentHash:
    """Requests with one value of a header to one replica, the same from every caller.

    How this works: each replica stands at many places of a ring; a value goes to the first one behind its own place. So a replica
    that comes or goes moves only what it takes over or leaves. Requests without a value go to the better of two.

    Args:
        header: whose value counts; None = `x-session-id`, or what `SERVD_SESSION_ID_HEADER_KEY` says.
        num_virtual_nodes: places of each replica.
        load_factor: a replica that has more than so many times the mean load counts as full while another one does not; None = no
            such bound.

    Source: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016).
    """

    reads_text = False
    options = ("header", "num_virtual_nodes", "load_factor")

    def __init__(
        self,
        rng: random.Random,
        header: str | None = None,
        num_virtual_nodes: int = VIRTUAL_NODES,
        load_factor: float | None = None,
    ) -> None:
        self._rng = rng
        self.header = (header or variable("SESSION_ID_HEADER_KEY", "x-session-id")).lower().encode()
        self._virtual_nodes = num_virtual_nodes
        self._load_factor = load_factor
        self._places: list[int] = []
        self._ring: list[Candidate] = []
        self._placed: frozenset[Candidate] = frozenset()
        self._places_of: dict[str, list[int]] = {}

    def update(self, candidates: Sequence[Candidate]) -> None:
        """Place them on the ring; the order that they come in has no effect.

        News of any deployment come here, and each caller hears all of them: it costs nothing where none has come or gone.
        """
        placed = frozenset(candidates)
        if placed == self._placed:
            return
        self._placed = placed
        self._places_of = {one.replica_id: self._places_for(one.replica_id) for one in candidates}
        ring = sorted(
            ((place, one.replica_id, one) for one in candidates for place in self._places_of[one.replica_id]),
            key=lambda entry: entry[:2],
        )
        self._places = [place for place, _, _ in ring]
        self._ring = [candidate for _, _, candidate in ring]

    def _places_for(self, replica_id: str) -> list[int]:
        known = self._places_of.get(replica_id)
        return known or [_place(f"{replica_id} {number}") for number in range(self._virtual_nodes)]

    def choose(self, among: Sequence[Candidate], affinity: str) -> Candidate | None:
        """The first of the ring behind the value's place that is neither full nor above its share of the load."""
        if not affinity or not self._ring:
            return better_of_two(among, self._rng)
        bound = self._bound(among)
        next_best = None
        for candidate in self._from(affinity):
            if candidate.is_full or candidate not in among:
                continue
            if candidate.load < bound:
                return candidate
            next_best = next_best or candidate
        return next_best

    def _bound(self, among: Sequence[Candidate]) -> float:
        if self._load_factor is None:
            return math.inf
        return math.ceil(self._load_factor * (sum(map(_load, among)) + 1) / len(among)) if among else 0

    def _from(self, affinity: str) -> Iterator[Candidate]:
        """Each replica once, in the ring's order."""
        start, count = bisect_right(self._places, _place(affinity)), len(self._ring)
        seen = set()
        for step in range(count):
            candidate = self._ring[(start + step) % count]
            if candidate.replica_id not in seen:
                seen.add(candidate.replica_id)
                yield candidate


class PrefixAffinity:
    """Requests whose texts begin alike to one replica, which may have what it computed of the beginning still at hand.

    How this works: of each text that was sent somewhere, the hash of every beginning (in steps of `BLOCK_CHARS`) is remembered
    with the replica. A new text goes to the replica that has seen most of it; if that is less than a share of the text, to the
    replica that has seen least in all.

    Args:
        imbalanced_threshold: where the busiest has so many requests more than the idlest, the better of two instead; None = no.
        match_rate_threshold: the share, in [0, 1].
        eviction_threshold_chars, eviction_target_chars: so much is remembered at most, and down to so much is forgotten then,
            the longest unused first.

    Source: Ray Serve 2.60, its options; what is remembered is this caller's own and always bounded.
    """

    header, reads_text = b"", True
    options = ("imbalanced_threshold", "match_rate_threshold", "eviction_threshold_chars", "eviction_target_chars")

    def __init__(
        self,
        rng: random.Random,
        imbalanced_threshold: float | None = None,
        match_rate_threshold: float = MATCH_RATE,
        eviction_threshold_chars: int = REMEMBERED_CHARS,
        eviction_target_chars: int | None = None,
    ) -> None:
        self._rng = rng
        self._imbalance = math.inf if imbalanced_threshold is None else imbalanced_threshold
        self._match_rate = match_rate_threshold
        kept = min(eviction_threshold_chars, KEPT_CHARS) if eviction_target_chars is None else eviction_target_chars
        self._most, self._kept = eviction_threshold_chars // BLOCK_CHARS, kept // BLOCK_CHARS
        # beginning -> ids of the replicas that have seen it; the longest unused one first
        self._seen_by: OrderedDict[int, set[str]] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def update(self, candidates: Sequence[Candidate]) -> None:
        """Forget what replicas have seen that are gone."""
        ids = {candidate.replica_id for candidate in candidates}
        if not self._sizes.keys() <= ids:
            for beginning in [beginning for beginning, owners in self._seen_by.items() if not owners & ids]:
                del self._seen_by[beginning]
            for owners in self._seen_by.values():
                owners &= ids
        self._sizes = {replica_id: self._sizes.get(replica_id, 0) for replica_id in ids}

    def choose(self, among: Sequence[Candidate], affinity: str) -> Candidate | None:
        """The one that has seen most of the text."""
        free = [candidate for candidate in among if not candidate.is_full]
        if not free or not affinity:
            return better_of_two(free, self._rng)
        beginnings = list(_beginnings(affinity))
        loads = [candidate.load for candidate in free]
        if max(loads) - min(loads) > self._imbalance:
            chosen = better_of_two(free, self._rng)
        else:
            chosen = self._of_those_who_know(free, beginnings)
        if chosen is not None:
            self._learn(chosen.replica_id, beginnings)
        return chosen

    def _of_those_who_know(self, free: Sequence[Candidate], beginnings: Sequence[int]) -> Candidate:
        knowing = {candidate.replica_id for candidate in free}
        matched = 0
        for beginning in beginnings:
            both = knowing & self._seen_by.get(beginning, set())
            if not both:
                break
            knowing, matched = both, matched + 1
        if matched and matched / len(beginnings) >= self._match_rate:
            return min((candidate for candidate in free if candidate.replica_id in knowing), key=_load)
        return min(free, key=lambda candidate: (self._sizes.get(candidate.replica_id, 0), candidate.load))

    def _learn(self, replica_id: str, beginnings: Sequence[int]) -> None:
        # the shortest last: it is the last to be forgotten, since the others are of no use without it
        for beginning in reversed(beginnings):
            owners = self._seen_by.setdefault(beginning, set())
            self._seen_by.move_to_end(beginning)
            if replica_id not in owners:
                owners.add(replica_id)
                self._sizes[replica_id] = self._sizes.get(replica_id, 0) + 1
        if len(self._seen_by) > self._most:
            while len(self._seen_by) > self._kept:
                _, owners = self._seen_by.popitem(last=False)
                for owner in owners & self._sizes.keys():
                    self._sizes[owner] -= 1


def _beginnings(text: str) -> Iterator[int]:
    found = 0
    for start in range(0, len(text), BLOCK_CHARS):
        found = hash((found, text[start : start + BLOCK_CHARS]))
        yield found
