"""`autoscaling_config` as users write it, and what `num_replicas: auto` stands for."""

import json
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


class AggregationFunction(StrEnum):
    """What counts of the load over a window."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"


Aggregation = Annotated[
    Literal["mean", "max", "min"],
    BeforeValidator(lambda given: given.lower() if isinstance(given, str) else given),
]


class AutoscalingPolicy(Document):
    """Who decides how many replicas there shall be.

    policy_function: import path of a function, or of a class whose instances are called. policy_kwargs: for the class.
    Source: Ray Serve 2.60.
    """

    policy_function: str = DEFAULT_POLICY
    policy_kwargs: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        """Takes a function or class for its import path."""
        given: Any = raw.get("policy_function", DEFAULT_POLICY)
        if raw.get("policy_kwargs", {}) is None:
            del raw["policy_kwargs"]
        if callable(given):
            module, name = getattr(given, "__module__", None), getattr(given, "__qualname__", "")
            if module in (None, "__main__") or not name.isidentifier():
                return [(("policy_function",), "must be at the top level of a module that can be imported")]
            raw["policy_function"] = given = f"{module}:{name}"
        module, _, name = given.replace(":", ".").rpartition(".") if isinstance(given, str) else ("", "", "")
        if not (module and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            return [(("policy_function",), "must have the form module:name")]
        kwargs = raw.get("policy_kwargs", {})
        if isinstance(kwargs, Mapping):
            try:
                json.dumps(dict(kwargs), allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                return [(("policy_kwargs",), f"must be JSON-serialisable: {error}")]
        return []


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
    policy: AutoscalingPolicy | None = None

    later_names: ClassVar[Mapping[str, str]] = {"target_ongoing_requests": "target_num_ongoing_requests_per_replica"}
    later: ClassVar[tuple[str, ...]] = (
        "upscaling_factor",
        "downscaling_factor",
        "upscale_smoothing_factor",
        "downscale_smoothing_factor",
        "downscale_to_zero_delay_s",
    )
    """As if not said where they are null: clients of 2.5 do not know them."""

    @property
    def target_ongoing_requests(self) -> float:
        """The wanted load per replica, by its name in later releases."""
        return self.target_num_ongoing_requests_per_replica

    def get_target_ongoing_requests(self) -> float:
        """The wanted load per replica."""
        return self.target_num_ongoing_requests_per_replica

    def get_upscaling_factor(self) -> float:
        """Share of the way up that one step takes."""
        return self.upscaling_factor or self.upscale_smoothing_factor or self.smoothing_factor

    def get_downscaling_factor(self) -> float:
        """Share of the way down that one step takes."""
        return self.downscaling_factor or self.downscale_smoothing_factor or self.smoothing_factor

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        low, high = whole(raw.get("min_replicas", 1)), whole(raw.get("max_replicas", 1))
        first = whole(raw.get("initial_replicas"))
        faults: list[Fault] = []
        take_out_default_policy(raw)
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


def take_out_default_policy(raw: dict[str, Any], name: str = "policy") -> None:
    """Let a policy that is what servd does without one be as if not said: documents of today spell it out."""
    policy = raw.get(name, "")
    given = policy if isinstance(policy, Mapping) else {"policy_function": policy}
    functions = (None, "", DEFAULT_POLICY, DEFAULT_POLICY.replace(":", "."))
    is_default = given.get("policy_function") in functions and given.get("policy_kwargs") in (None, {})
    if is_default and not given.keys() - {"policy_function", "policy_kwargs"}:
        raw.pop(name, None)


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
