"""How many replicas an autoscaled deployment shall have.

Source: Ray Serve 2.5, autoscaling policy; delays are held times instead of counted passes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from servd.ground.quick_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Decision:
    """Count to aim at, the lean that led there, and when to look again (monotonic seconds, inf = on news only)."""

    target: int
    lean: int
    lean_since: float
    reason: str
    wake_at: float


def first_target(config: Mapping[str, Any]) -> int:
    """Replicas of a deployment that has none yet: `initial_replicas`, else `min_replicas`."""
    initial = config["initial_replicas"]
    return int(config["min_replicas"] if initial is None else initial)


def desired_replicas(ongoing: Sequence[float], target: float, *, low: int, high: int, smoothing: float = 1.0) -> int:
    """Replica count that brings the load per replica to its target.

    Args:
        ongoing: mean running + queued requests, one entry per RUNNING
            replica with samples, shape (n,), n >= 1, any order.
        target: wanted mean per replica, requests, > 0.
        low, high: inclusive bounds, replicas, 0 <= low <= high.
        smoothing: share of the error to correct at once, no unit, > 0.

    Returns:
        Replicas, in [low, high]. Smoothing makes steps smaller, of one replica at least: the count without it is reached

    Raises:
        ValueError: `ongoing` is empty or `target` is not positive.

    Source: Ray Serve 2.5, autoscaling policy; the least step is that of later releases.
    """
    if not ongoing or target <= 0:
        raise ValueError(f"need samples and a positive target, got {len(ongoing)} and {target}")
    count = len(ongoing)
    error = sum(ongoing) / count / target
    # bounded before it is rounded: the smallest targets make it infinite
    wanted = math.ceil(max(low, min(high, count * (1 + (error - 1) * smoothing))))
    unsmoothed = math.ceil(max(low, min(high, count * error)))
    # a step that rounds to nothing would be the last one, however idle the replicas are
    return count - 1 if unsmoothed < count == wanted else wanted


def decide(
    config: Mapping[str, Any],
    current: int,
    ongoing: Sequence[float],
    queued: int,
    lean: int,
    lean_since: float,
    now: float,
    *,
    full_at: float = -math.inf,
) -> Decision:
    """The next target of one deployment.

    Args:
        config: full autoscaling config.
        current: the target in force, replicas, >= 0.
        ongoing: see `desired_replicas`; empty when no replica has samples.
        queued: most requests waiting at any one caller, for the case without samples.
        lean, lean_since: of the previous decision.
        now: monotonic seconds.
        full_at: when the youngest replica's samples say enough to scale down, monotonic seconds.
    """
    if not ongoing:
        if queued and current < 1:
            return Decision(1, 0, now, f"{queued} requests wait and there is no replica", math.inf)
        bounded = max(config["min_replicas"], min(config["max_replicas"], current))
        return Decision(bounded, 0, now, "no samples", math.inf)
    wanted = desired_replicas(
        ongoing,
        config["target_num_ongoing_requests_per_replica"],
        low=config["min_replicas"],
        high=config["max_replicas"],
        smoothing=config["smoothing_factor"],
    )
    mean = sum(ongoing) / len(ongoing)
    direction = (wanted > current) - (wanted < current)
    if direction == 0:
        return Decision(current, 0, now, f"mean load {mean:.2f} fits {current} replicas", math.inf)
    if direction < 0 and now < full_at:
        return Decision(current, 0, now, f"mean load {mean:.2f}, with replicas that have just begun", full_at)
    since = lean_since if direction == lean else now
    delay = config["upscale_delay_s"] if direction > 0 else config["downscale_delay_s"]
    reason = f"mean load {mean:.2f} over {len(ongoing)} replicas asks for {wanted}"
    if now < since + delay:  # the very sum that is the moment to wake: a difference may round below the delay for ever
        return Decision(
            current,
            direction,
            since,
            f"{reason}, held since {now - since:.1f} s of {delay:g} s",
            since + delay,
        )
    return Decision(wanted, 0, now, reason, math.inf)
