"""One deployment, one moment: which replicas to start, drain, reconfigure or kill, and which ranks they have.

How this works: T is the wanted count, R = max(floor(share T), 1) the step, S the surge, R unless it is given in percent. A new
replica is RUNNING and routed before an old one drains: at most T + S processes that are not STOPPING, and at no moment fewer
routed than the lower of old and new goal. With a surge of 0 old ones stop first, R at a time, and at most T processes live.

A replica keeps its rank while that is below the wanted count and nobody older has it; all others get the lowest ones that are
free. So one that dies leaves its rank to its replacement, and the others keep theirs.

Source: Ray Serve 2.5 rolling steps, 2.60 shares and surges; start-first order is servd's.
"""

import math
from collections.abc import Collection, Iterator, Sequence

from servd.controller.plan.facts import ReplicaFact
from servd.ground.quick_dataclass import dataclass
from servd.ground.states import ROUTABLE, ReplicaState

ROLLING_SHARE = 0.2
"""Share of the replicas that an update takes at a time, unless the deployment says another one."""
STOP_ORDER = (ReplicaState.STARTING, ReplicaState.UPDATING, ReplicaState.RECOVERING, ReplicaState.RUNNING)


@dataclass(frozen=True, slots=True)
class Step:
    """Decisions for one deployment. drain: (replica, reason); reconfigure: may enter UPDATING now."""

    start: int
    drain: tuple[tuple[ReplicaFact, str], ...]
    reconfigure: tuple[ReplicaFact, ...]


def rolling_step(target: int, share: float = ROLLING_SHARE) -> int:
    """Replicas that may be replaced or updated at a time, at least 1, for a target >= 0 and a share in (0, 1]."""
    # shares are decimals as people write them: 0.29 of 100 are 29
    return max(math.floor(target * share + 1e-9), 1)


def surge(target: int, step: int, percent: int | None) -> int:
    """Replicas that may live beyond the target >= 0 during an update: `percent` of it, rounded up, else as many as `step`.

    percent: in [0, 100], 0 = old ones stop first; None = not given.
    """
    return step if percent is None else -(-target * percent // 100)


def next_step(
    replicas: Sequence[ReplicaFact],
    version: str,
    config_version: str,
    target: int,
    *,
    share: float = ROLLING_SHARE,
    surge_percent: int | None = None,
    scarce: bool = False,
    failing: bool = False,
    stalled: bool = False,
    unproven: Collection[str] = (),
) -> Step:
    """What to do now.

    Args:
        replicas: all replicas of the deployment, any state.
        version, config_version: of the target. A replica that has outgrown its memory counts as one of another version.
        target: wanted replicas, >= 0.
        share: of the target that may be replaced or updated at a time, in (0, 1].
        surge_percent: as `surge`; with 0 what still stops holds its place.
        scarce: the host has no room for one more replica, so old ones stop first. The target counts as no more than the
            replicas there are then, STOPPING ones included: with less room than wanted nothing could move else.
        failing: a start or reconfigure of this target has failed. What is missing then counts as being updated, so that a bad
            config stops after one step.
        stalled: too many starts have failed beside new ones that came up. Old ones keep their share: new ones only fill what is
            missing, and no further config is changed.
        unproven: ids of new replicas that run, but not for long enough that an old one may go for them.

    Returns:
        The step; nothing to do once `target` replicas run at both versions and no other is left.
    """
    alive = [replica for replica in replicas if replica.state is not ReplicaState.STOPPING]
    new = [replica for replica in alive if replica.version == version and not replica.outgrown]
    old = [replica for replica in alive if replica.version != version or replica.outgrown]
    step = rolling_step(target, share)
    stops_first = (scarce or surge_percent == 0) and bool(old) and not stalled
    surplus = 0 if stops_first or stalled else surge(target, step, surge_percent)
    room = target + surplus - len(alive) - _held(replicas, version, surge_percent)
    start = max(min(target - len(new), room), 0) if target else 0
    reachable = min(target, len(replicas)) if scarce else target
    keep = max(reachable - step, 0) if stops_first else target
    place_for_new = max(target - len(old), 0) if stalled else target
    surplus_new = _drain_surplus(new, place_for_new)
    surplus_ids = {replica.replica_id for replica, _ in surplus_new}
    staying = [replica for replica in new if replica.replica_id not in surplus_ids]
    drain = [*_drain_old(old, staying, keep, unproven), *surplus_new]
    leaving = {replica.replica_id for replica, _ in drain}
    updating = sum(replica.state is ReplicaState.UPDATING for replica in new)
    if failing:
        updating = max(updating, reachable - sum(replica.state is ReplicaState.RUNNING for replica in alive))
    behind = [
        replica
        for replica in new
        if replica.config_version != config_version
        and replica.state is ReplicaState.RUNNING
        and replica.replica_id not in leaving
    ]
    return Step(start, tuple(drain), tuple(behind[: 0 if stalled else max(step - updating, 0)]))


def _held(replicas: Sequence[ReplicaFact], version: str, surge_percent: int | None) -> int:
    """Places that old ones still hold while they stop."""
    if surge_percent != 0:
        return 0
    return sum(r.state is ReplicaState.STOPPING and (r.version != version or bool(r.outgrown)) for r in replicas)


def _drain_old(
    old: Sequence[ReplicaFact], new: Sequence[ReplicaFact], keep: int, unproven: Collection[str]
) -> list[tuple[ReplicaFact, str]]:
    starting = [replica for replica in old if replica.state is ReplicaState.STARTING]
    serving = [replica for replica in old if replica.state in ROUTABLE]
    ready = sum(replica.state in ROUTABLE and replica.replica_id not in unproven for replica in new)
    excess = max(ready + len(serving) - keep, 0)
    oldest_first = sorted(serving, key=lambda replica: replica.created_at)
    return [(replica, replica.outgrown or "replaced") for replica in [*starting, *oldest_first[:excess]]]


def _drain_surplus(new: Sequence[ReplicaFact], target: int) -> list[tuple[ReplicaFact, str]]:
    too_many = len(new) - target
    if too_many <= 0:
        return []
    ranked = sorted(new, key=lambda replica: (STOP_ORDER.index(replica.state), replica.ongoing, -replica.created_at))
    return [(replica, "fewer wanted") for replica in ranked[:too_many]]


def ranks_of(replicas: Sequence[ReplicaFact], wanted: int) -> dict[str, int]:
    """Replica id -> rank.

    Args:
        replicas: those of one version that are to stay, oldest first.
        wanted: how many there shall be, >= 0.

    Returns:
        Different ranks, >= 0; all of them below the larger of `wanted` and the number of replicas.
    """
    count = max(wanted, len(replicas))
    found: dict[str, int] = {}
    taken: set[int] = set()
    for replica in replicas:
        rank = replica.start.goal.rank
        if 0 <= rank < count and rank not in taken:
            found[replica.replica_id] = rank
            taken.add(rank)
    free = free_ranks(taken)
    for replica in replicas:
        if replica.replica_id not in found:
            found[replica.replica_id] = next(free)
    return found


def free_ranks(taken: set[int]) -> Iterator[int]:
    """The ranks that nobody has, lowest first, without end."""
    rank = 0
    while True:
        if rank not in taken:
            yield rank
        rank += 1
