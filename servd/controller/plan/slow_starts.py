"""Says again and again which replicas are slow to start."""

import math

from servd.controller.plan.observed import Observed
from servd.ground.settings import variable
from servd.ground.states import ReplicaState

SLOW_START_S = float(variable("SLOW_STARTUP_WARNING_S", "30.0"))
PERIOD_S = float(variable("SLOW_STARTUP_WARNING_PERIOD_S", "30.0"))


def note_slow_starts(observed: Observed, now: float) -> float:
    """Note each replica that has been starting for too long, once a period; gives the moment to look again (monotonic seconds,
    inf = never).
    """
    wake_at = math.inf
    noted = observed.slow_noted_at
    starting = [replica for replica in observed.replicas.values() if replica.state is ReplicaState.STARTING]
    observed.slow_noted_at = {r.replica_id: noted[r.replica_id] for r in starting if r.replica_id in noted}
    for replica in starting:
        said_at = noted.get(replica.replica_id)
        due_at = replica.created_at + SLOW_START_S if said_at is None else said_at + PERIOD_S
        if due_at <= now:
            observed.slow_noted_at[replica.replica_id] = now
            observed.notes.append(
                f"replica {replica.replica_id} has been starting for {now - replica.created_at:.0f} s"
            )
            due_at = now + PERIOD_S
        wake_at = min(wake_at, due_at)
    return wake_at
