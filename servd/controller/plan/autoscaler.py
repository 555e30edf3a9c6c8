"""How many replicas an autoscaled deployment shall have.

Source: Ray Serve 2.5, autoscaling policy; delays are held times instead of counted passes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from servd.ground.quick_dataclass import dataclass
from servd.wire.codec import register_message
from servd.wire.policy_messages import PolicyAnswer

SAMPLES_KEPT = 100
"""Of one replica, about: the grain of its mean."""
LONGEST_LOOK_S, SHORTEST_LOOK_S = 0.25, 0.02
_LOOKS_A_WINDOW = 8


AUTOSCALING_DEFAULTS: dict[str, Any] = {
    "min_replicas": 1,
    "initial_replicas": None,
    "max_replicas": 1,
    "target_num_ongoing_requests_per_replica": 1.0,
    "metrics_interval_s": 10.0,
    "look_back_period_s": 30.0,
    "smoothing_factor": 1.0,
    "downscale_delay_s": 600.0,
    "upscale_delay_s": 30.0,
}
DECISIONS_KEPT = 5
"""So many of the autoscaler's are shown."""
POLICY_DEADLINE_S = 5.0
"""After so long a policy of user code is ended; the controller waits a second more for the word of it."""
_POLICY_GRACE_S = 1.0
POLICY_IS_LATE = f"it has not answered for {POLICY_DEADLINE_S + _POLICY_GRACE_S:g} s"
_LONGEST_POLICY_PERIOD_S, _SHORTEST_POLICY_PERIOD_S = 1.0, 0.1


@dataclass(frozen=True, slots=True)
class PolicyFact:
    """What a policy of user code has said of one deployment.

    wanted: replicas by the last answer, None = it has said nothing of it. error: why the last question got no answer, "" if it
    got one; failed_at: since when, monotonic seconds.
    """

    wanted: float | None = None
    error: str = ""
    failed_at: float = float("-inf")

    def answered(self, answer: PolicyAnswer, name: str, now: float) -> "PolicyFact":
        """With the answer to the open question; one that failed leaves the last number in force. name: bare."""
        if answer.error:
            return self.failed(answer.error, now)
        return PolicyFact(answer.wanted.get(name))

    def failed(self, error: str, now: float) -> "PolicyFact":
        """Without an answer."""
        return replace(self, error=error, failed_at=self.failed_at if self.error else now)


@dataclass(frozen=True, slots=True)
class Question:
    """The last question to a policy about one deployment. Not stored: whoever comes next asks anew.

    ask_id: "" once it is answered, or given up. asked_at: monotonic seconds. fork_server_id: who was asked. silent_since: since
    when that one answers nothing, monotonic seconds; inf = it answers.
    """

    ask_id: str = ""
    asked_at: float = float("-inf")
    fork_server_id: str = ""
    silent_since: float = float("inf")

    @property
    def late_at(self) -> float:
        """When it counts as not answered."""
        return self.asked_at + POLICY_DEADLINE_S + _POLICY_GRACE_S if self.ask_id else math.inf

    def asked_again(self, ask_id: str, fork_server_id: str, now: float) -> "Question":
        """The next one, to the same fork server or another."""
        silent_since = self.silent_since if self.fork_server_id == fork_server_id else math.inf
        return Question(ask_id, now, fork_server_id, silent_since)

    def given_up(self, now: float) -> "Question":
        """It counts as not answered."""
        return replace(self, ask_id="", silent_since=min(self.silent_since, now))

    def next_at(self, config: Mapping[str, Any]) -> float:
        """When the next one is due, monotonic seconds: in step with all that are put as often, for one turn of them all."""
        if self.asked_at == -math.inf:
            return self.asked_at
        period_s = max(min(float(config["metrics_interval_s"]), _LONGEST_POLICY_PERIOD_S), _SHORTEST_POLICY_PERIOD_S)
        return period_s * math.ceil(self.asked_at / period_s + 0.5)


def full_config(config: Mapping[str, Any], of_application: Mapping[str, Any] | None) -> dict[str, Any]:
    """An autoscaling config with all defaults; a policy of the application takes the place of its own."""
    policy = {**of_application, "of_application": True} if of_application else config.get("policy")
    return {**AUTOSCALING_DEFAULTS, **config, **({"policy": policy} if policy else {})}


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


def at_capacity(count: int, percent: float | None) -> int:
    """`percent` of a count, rounded half up, at least one of what is not zero unless that is 0; None = all.

    Source: Ray Serve 2.60, target_capacity.
    """
    if percent is None or not count:
        return count
    return max(math.floor(count * percent / 100 + 0.5), 1) if percent else 0


def bounds_at(config: Mapping[str, Any], percent: float | None) -> dict[str, Any]:
    """A full autoscaling config whose counts are as of `at_capacity`."""
    names = ("min_replicas", "max_replicas", "initial_replicas")
    scaled = {name: at_capacity(config[name], percent) for name in names if config[name] is not None}
    return {**config, **scaled}


def loads_of(samples: Sequence[Samples], since: float, now: float, how: str) -> list[float]:
    """Load of each replica over [since, now], requests, shape (n,) as `samples`, each of which has a point.

    Args:
        how: "mean"; or "max" or "min" of what they have all together, shared out evenly.
    """
    if how == "mean" or not samples:
        return [sample.mean(since, now) for sample in samples]
    changes = []
    for sample in samples:
        before = 0.0
        for at, load in sample.points:
            changes.append((max(at, since), load - before))
            before = load
    changes.sort()
    totals, total = [], 0.0
    for (at, change), (following, _) in zip(changes, [*changes[1:], (math.inf, 0.0)], strict=True):
        total += change
        if at != following:
            totals.append(total)
    found = max(totals) if how == "max" else min(totals)
    # differences add up to a zero that is none
    return [max(found, 0.0) / len(samples)] * len(samples)


def factor(config: Mapping[str, Any], *, up: bool) -> float:
    """Share of the error to correct at once in one direction, by the newest of its names that was given."""
    names = (
        ("upscaling_factor", "upscale_smoothing_factor") if up else ("downscaling_factor", "downscale_smoothing_factor")
    )
    return float(config.get(names[0]) or config.get(names[1]) or config["smoothing_factor"])


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


def _paced(config: Mapping[str, Any], current: int, wanted: int) -> tuple[int, float]:
    """The next count on the way to another one, and for how long it must be wanted, seconds."""
    if wanted > current:
        return wanted, config["upscale_delay_s"]
    to_zero_s = config.get("downscale_to_zero_delay_s")
    if to_zero_s is None or wanted:
        return wanted, config["downscale_delay_s"]
    # the last one has a delay of its own, and so is alone before it goes
    return (0, to_zero_s) if current == 1 else (1, config["downscale_delay_s"])


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
    target = config["target_num_ongoing_requests_per_replica"]
    if not ongoing:
        if queued and current < 1 <= config["max_replicas"]:
            return Decision(1, 0, now, f"{queued} requests wait and there is no replica", math.inf)
        bounded = max(config["min_replicas"], min(config["max_replicas"], current))
        return Decision(bounded, 0, now, "no samples", math.inf)
    mean = sum(ongoing) / len(ongoing)
    wanted = desired_replicas(
        ongoing,
        target,
        low=config["min_replicas"],
        high=config["max_replicas"],
        smoothing=factor(config, up=mean > target),
    )
    direction = (wanted > current) - (wanted < current)
    if direction == 0:
        return Decision(current, 0, now, f"mean load {mean:.2f} fits {current} replicas", math.inf)
    if direction < 0 and now < full_at:
        return Decision(current, 0, now, f"mean load {mean:.2f}, with replicas that have just begun", full_at)
    return _held(
        config, current, wanted, lean, lean_since, now, f"mean load {mean:.2f} over {len(ongoing)} replicas asks for"
    )


def decide_by_policy(
    config: Mapping[str, Any],
    current: int,
    running: int,
    wanted: float | None,
    lean: int,
    lean_since: float,
    now: float,
    *,
    queued: int = 0,
) -> Decision:
    """The next target of a deployment whose policy is user code: factors, delays and bounds come after the policy.

    Args:
        running: replicas that take requests.
        wanted: by the policy's last answer, not rounded; None = it has said nothing.
        queued: most requests waiting at any one caller.

    Source: Ray Serve 2.60, custom autoscaling policies.
    """
    low, high = config["min_replicas"], config["max_replicas"]
    if queued and high:
        if not running and current < 1:
            return Decision(1, 0, now, f"{queued} requests wait and there is no replica", math.inf)
        # the last answer is of before they waited: what was started for them stays until they have it
        low = max(low, 1)
    if wanted is None:
        bounded = max(low, min(high, current))
        # where nothing follows from it there is nothing to tell yet: the reason of the first answer shall be told
        return Decision(bounded, 0, now, "the policy has named no number" if bounded != current else "", math.inf)
    reason = f"the policy says {wanted:g}"
    scaled = max(low, min(high, _scaled(config, running, wanted)))
    if scaled == current:
        return Decision(current, 0, now, reason, math.inf)
    if not running and scaled > current:
        # nobody serves: there is nothing to be careful about
        return Decision(scaled, 0, now, reason, math.inf)
    return _held(config, current, scaled, lean, lean_since, now, f"{reason}, which makes")


def _scaled(config: Mapping[str, Any], running: int, wanted: float) -> int:
    """The count of a step towards another one: the share of the way that the factors give, one replica down at least."""
    # bounded before it is rounded: user code may say anything
    bounded = max(0.0, min(wanted, 1e9))
    if not running:
        return math.ceil(bounded)
    scaled = math.ceil(running + (bounded - running) * factor(config, up=bounded > running))
    return scaled - 1 if math.ceil(bounded) < running == scaled else max(scaled, 0)


def _held(
    config: Mapping[str, Any], current: int, wanted: int, lean: int, lean_since: float, now: float, why: str
) -> Decision:
    """Another count once it has been wanted for long enough."""
    direction = (wanted > current) - (wanted < current)
    since = lean_since if direction == lean else now
    wanted, delay = _paced(config, current, wanted)
    reason = f"{why} {wanted}"
    if now < since + delay:  # the very sum that is the moment to wake: a difference may round below the delay for ever
        return Decision(
            current,
            direction,
            since,
            f"{reason}, held since {now - since:.1f} s of {delay:g} s",
            since + delay,
        )
    return Decision(wanted, 0, now, reason, math.inf)


register_message(PolicyFact)
