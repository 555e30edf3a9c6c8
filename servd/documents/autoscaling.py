"""`autoscaling_config` as users write it, and what `num_replicas: auto` stands for."""

import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from servd.documents.bounds import MAX_REPLICAS, NotNegative, Positive, Replicas, whole
from servd.documents.checked import Document, Fault, to_era_names

logger = logging.getLogger(__name__)

AUTO_REPLICAS = {"min_replicas": 1, "max_replicas": 100, "target_num_ongoing_requests_per_replica": 2}
"""What `num_replicas: auto` stands for."""
DEFAULT_POLICY = "ray.serve.autoscaling_policy:default_autoscaling_policy"
"""What documents of today call the policy that servd has; either `:` or `.` before the last part."""
_OWN_POLICY = (
    "servd has no policies in user code: replicas follow target_ongoing_requests; `servd scale` sets them from outside"
)


class AggregationFunction(StrEnum):
    """What counts of the load over a window."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"


Aggregation = Annotated[
    Literal["mean", "max", "min"],
    BeforeValidator(lambda given: given.lower() if isinstance(given, str) else given),
]


class AutoscalingConfig(Document):
    """Bounds and pace of autoscaling."""

    min_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = 1
    initial_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    max_replicas: Replicas = 1
    target_num_ongoing_requests_per_replica: Positive = 1.0
    metrics_interval_s: Positive = 10.0
    look_back_period_s: Positive = 30.0
    smoothing_factor: Positive = 1.0
    downscale_delay_s: NotNegative = 600.0
    upscale_delay_s: NotNegative = 30.0
    upscaling_factor: Positive | None = None
    downscaling_factor: Positive | None = None
    upscale_smoothing_factor: Positive | None = None
    downscale_smoothing_factor: Positive | None = None
    downscale_to_zero_delay_s: NotNegative | None = None
    aggregation_function: Aggregation = "mean"

    later_names: ClassVar[Mapping[str, str]] = {"target_ongoing_requests": "target_num_ongoing_requests_per_replica"}
    later: ClassVar[tuple[str, ...]] = (
        "upscaling_factor",
        "downscaling_factor",
        "upscale_smoothing_factor",
        "downscale_smoothing_factor",
        "downscale_to_zero_delay_s",
    )
    """As if not said where they are null: clients of 2.5 do not know them."""
    also: ClassVar[Mapping[str, Mapping[str, Any]]] = {"policy": {"anyOf": [{"type": "object"}, {"type": "null"}]}}

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        low, high = whole(raw.get("min_replicas", 1)), whole(raw.get("max_replicas", 1))
        first = whole(raw.get("initial_replicas"))
        faults: list[Fault] = _take_out_policy(raw)
        for name in cls.later:
            if name in raw and raw[name] is None:
                del raw[name]
        if low is not None and high is not None and high < low:
            faults.append((("max_replicas",), f"max_replicas ({high}) must be at least min_replicas ({low})"))
        if first is not None and low is not None and first < low:
            faults.append((("initial_replicas",), f"initial_replicas ({first}) must be at least min_replicas ({low})"))
        if first is not None and high is not None and first > high:
            faults.append((("initial_replicas",), f"initial_replicas ({first}) must be at most max_replicas ({high})"))
        return faults


def _take_out_policy(raw: dict[str, Any]) -> list[Fault]:
    """Today's documents spell out the default policy: that is what servd does. Any other one is refused."""
    policy = raw.pop("policy", None)
    if policy is None:
        return []
    given = policy if isinstance(policy, Mapping) else {"policy_function": policy}
    known: dict[str, tuple[Any, ...]] = {
        "policy_function": (None, DEFAULT_POLICY, DEFAULT_POLICY.replace(":", ".")),
        # the default one takes none
        "policy_kwargs": (None, {}),
    }
    return [(("policy", str(key)), _OWN_POLICY) for key, value in given.items() if value not in known.get(key, ())]


def expand_auto(raw: dict[str, Any]) -> list[Fault]:
    """Replace `num_replicas: auto` by the autoscaling config that it stands for, in place; what was given beside it wins."""
    if raw.get("num_replicas") != "auto":
        return []
    del raw["num_replicas"]
    beside = raw.get("autoscaling_config")
    if isinstance(beside, AutoscalingConfig):
        beside = beside.model_dump(exclude_unset=True)
    own: dict[str, Any] = dict(beside) if isinstance(beside, Mapping) else {}
    faults = to_era_names(own, AutoscalingConfig.later_names)
    if beside is None or isinstance(beside, Mapping):
        raw["autoscaling_config"] = {**AUTO_REPLICAS, **own}
    return [(("autoscaling_config", *loc), reason) for loc, reason in faults]


def warn_of_low_limit(raw: Mapping[str, Any]) -> None:
    """Warn where replicas never take as many requests as autoscaling aims at."""
    scaling = raw.get("autoscaling_config")
    if not isinstance(scaling, Mapping):
        return
    target = scaling.get("target_num_ongoing_requests_per_replica", scaling.get("target_ongoing_requests", 1.0))
    limit = raw.get("max_concurrent_queries", 100)
    if isinstance(target, int | float) and isinstance(limit, int | float) and limit < target:
        logger.warning(
            "max_concurrent_queries=%s is below the %s ongoing requests per replica that autoscaling aims at: "
            "it will never scale up; raise the one or lower the other",
            limit,
            target,
        )
