"""How many replicas an autoscaled deployment shall have.

Source: Ray Serve 2.5, autoscaling policy; delays are held times instead of counted passes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from servd.ground.quick_dataclass import dataclass

SAMPLES_KEPT = 100
"""Of one replica, about: the grain of its mean."""
LONGEST_LOOK_S, SHORTEST_LOOK_S = 0.25, 0.02
_LOOKS_A_WINDOW = 8


@dataclass(slots=True)
class Samples:
    """(time, running + its part of what waits) of one replica, newest last. Not stored.

    began_at: of the first one, monotonic seconds.
    """

    points: list[tuple[float, float]] = field(default_factory=list)
    began_at: float = float("inf")

    def add(self, at: float, load: float, keep_s: float) -> None:
        """Append a sample and forget what no mean over the last `keep_s` needs."""
        self.began_at = min(self.began_at, at)
        if len(self.points) > 1 and 0 < at - self.points[-2][0] < keep_s / SAMPLES_KEPT:
            # two become one of the same weight: a mean must cost no more where samples come more often
            (first, before), (last, after) = self.points[-2:]
            self.points[-2:] = [(first, (before * (last - first) + after * (at - last)) / (at - first))]
        self.points.append((at, load))
        # a sample holds until the next one, so the one before the window counts as well
        while len(self.points) > 1 and self.points[1][0] < at - keep_s:
            self.points.pop(0)

    def mean(self, since: float, now: float) -> float:
        """Mean over [since, now], weighted by time: a sample holds until the next one, because only changes are reported."""
        area = duration = 0.0
        for (at, load), (end, _) in zip(self.points, [*self.points[1:], (now, 0.0)], strict=True):
            span = max(end - max(at, since), 0.0)
            area += load * span
            duration += span
        return area / duration if duration > 0 else self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Decision:
    """Count to aim at, the lean that led there, and when to look again (monotonic seconds, inf = on news only)."""

    target: int
    lean: int
    lean_since: float
    reason: str
    wake_at: float


def look_again_at(
    config: Mapping[str, Any], samples: Sequence[Samples], loads: Sequence[float], lean: int, now: float
) -> float:
    """When means have moved though nothing was reported, monotonic seconds; never (inf) while nobody has load.

    Replicas report only changes. A mean over a short window moves fast; one of a load that has just begun is still zero.

    Args:
        samples, loads: of each replica that runs, and their means now.
    """
    if not lean and not any(loads) and not any(sample.points[-1][1] for sample in samples):
        return math.inf
    step_s = float(config["look_back_period_s"]) / _LOOKS_A_WINDOW
    return now + max(min(step_s, LONGEST_LOOK_S), SHORTEST_LOOK_S)


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
