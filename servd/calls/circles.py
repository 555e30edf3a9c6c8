"""Calls that can never run, because those they are made for hold the slots they wait for. Decisions only.

How this works: a call knows the replicas that hold a slot for it. Where its own ancestors hold every slot of its target, it is in
a circle. Where several requests do so together (each holds a part and waits for more), they are tied in a knot, and the newest
of the waiting calls is refused, so that the others can go on. A caller sees its own line only; a deployment that calls itself
waits in the line of its own replica.
"""

from collections.abc import Iterable, Mapping

from servd.exceptions import ServdError

Waiting = tuple[str, tuple[str, ...]]
"""Request id of a waiting call, and its ancestors: replica ids that hold a slot for it, outermost first."""


def circle(deployment: str, limits: Mapping[str, int], ancestors: tuple[str, ...]) -> ServdError | None:
    """Why a call can never run: the calls it is made for hold every slot of the deployment.

    Args:
        limits: slots of each routed replica; 0 = not known yet.
        ancestors: replica ids that hold a slot for the call, outermost first; one may occur several times.

    Source: python-api.md section 8.3.
    """
    if not ancestors or not limits:
        return None
    if not all(0 < limit <= ancestors.count(replica_id) for replica_id, limit in limits.items()):
        return None
    return _refusal(deployment, "the calls it is made for hold", ancestors)


def knot(deployment: str, limits: Mapping[str, int], waiting: Iterable[Waiting]) -> ServdError | None:
    """Why none of the waiting calls can ever run: the calls they are made for hold every slot together.

    Args:
        limits: as of `circle`.
        waiting: oldest first. Those of one request may share ancestors, so only the deepest of a request counts.
    """
    if not limits or not all(limits.values()):
        return None
    deepest: dict[tuple[str, str], int] = {}
    last: tuple[str, ...] = ()
    for request_id, ancestors in waiting:
        for replica_id in limits.keys() & ancestors:
            place = request_id, replica_id
            deepest[place] = max(deepest.get(place, 0), ancestors.count(replica_id))
            last = ancestors
    held = dict.fromkeys(limits, 0)
    for (_, replica_id), count in deepest.items():
        held[replica_id] += count
    if any(held[replica_id] < limit for replica_id, limit in limits.items()):
        return None
    return _refusal(deployment, "it and the calls that wait beside it are made for calls that hold", last)


def _refusal(deployment: str, who: str, ancestors: tuple[str, ...]) -> ServdError:
    way = " -> ".join([*(replica_id.rpartition("#")[0] for replica_id in ancestors), deployment])
    return ServdError(
        f"the call can never run: {who} every slot of {deployment} ({way}). "
        "Break the circle, or raise max_ongoing_requests"
    )
