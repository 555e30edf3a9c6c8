"""Ranks of the replicas of one deployment: 0, 1, 2, ..., each once, kept for as long as there is a reason to.

How this works: a replica keeps its rank while that is below the wanted count and nobody older has it; all others get the lowest
ones that are free. So a replica that dies leaves its rank to its replacement, and the others keep theirs; when fewer are wanted,
those with ranks too high take over what the leaving ones had.
"""

from collections.abc import Iterator, Sequence

from servd.controller.plan.facts import ReplicaFact


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
