"""Failed starts: how many are too many, and how long to wait before the next try.

Source: Ray Serve 2.5 (threshold, doubling back-off, jitter).
"""

import math
import random

from servd.controller.plan.facts import DeploymentFact
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import variable

MAX_FAILURES = 100
FAILURES_PER_REPLICA = 3
JITTER_S = 3.0
EARLY_DEATH_S = 60.0
"""A replica that dies so soon after it was ready has failed to start, as far as the next try is concerned."""
HOST_LIMIT_RETRY_S = 2.0
"""Where the host gave no more, it may in a moment, and a try costs nothing."""
PROBATION_S = 10.0
"""After such a death a new replica must have served for so long before an old one makes room for it."""


@dataclass(frozen=True, slots=True)
class BackOff:
    """Shape of the back-off: first delay is 1 s, times `factor` per failure beyond the threshold, at most `limit_s`.

    Defaults: `EXPONENTIAL_BACKOFF_FACTOR` and `MAX_BACKOFF_TIME_S` of the environment, else 2.0 and 64 s.
    """

    factor: float = float(variable("EXPONENTIAL_BACKOFF_FACTOR", "2.0"))
    limit_s: float = float(variable("MAX_BACKOFF_TIME_S", "64.0"))


def failure_threshold(target: int, most: int = MAX_FAILURES) -> int:
    """Consecutive failed starts after which the deployment counts as failing, for a target of replicas >= 0; at most `most`."""
    return min(most, FAILURES_PER_REPLICA * max(target, 1))


def retry_delay_s(name: str, failures: int, threshold: int, back_off: BackOff, *, is_host_limit: bool = False) -> float:
    """Seconds from the last failure to the next try; 0 below the threshold.

    The jitter of 0 to 3 s follows from (name, failures), so the same facts give the same plan.

    Args:
        is_host_limit: the last one failed because the host gave no more; then it is always the same.
    """
    if is_host_limit:
        return HOST_LIMIT_RETRY_S
    if failures < threshold:
        return 0.0
    delay = min(back_off.factor ** min(failures - threshold, 32), back_off.limit_s)
    return delay + random.Random(f"{name}/{failures}").uniform(0.0, JITTER_S)


def back_off_text(name: str, fact: DeploymentFact, threshold: int) -> str:
    """How often in a row a deployment (full name) failed to start, and when the next try is; for people.

    threshold: as of `failure_threshold`.
    """
    early = f", deaths within {EARLY_DEATH_S:.0f} s of being ready included" if fact.died_early_at > -math.inf else ""
    delay = retry_delay_s(name, fact.failures, threshold, BackOff(), is_host_limit=fact.is_host_limit)
    return (
        f"The deployment failed to start {fact.failed_starts} times in a row{early}; the next try is {delay:.1f} s "
        f"after the last one."
    )
