"""`Counter`, `Gauge`, `Histogram` for applications; Prometheus underneath."""

from collections.abc import Mapping, Sequence
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry

from servd.calls.replica_context import replica_context
from servd.calls.request_context import current_request
from servd.calls.routes.patterns import packed_route, unpacked_route
from servd.observability.measures import PATTERN
from servd.wire.messages import MetricFamily

__all__ = [
    "Counter",
    "Gauge",
    "Histogram",
]

REGISTRY = CollectorRegistry()
"""The metrics of this process's application code."""

_packed_routes: set[str] = set()
"""Routes with patterns that metrics of this process have as a label."""

_Samples = dict[tuple[tuple[str, str], ...], Any]


def families(**tags: str) -> list[MetricFamily]:
    """All metrics of this process, under the names that the application gave them.

    Args:
        tags: the replica's; added to samples of metrics that were made before the process was a replica.
    """
    return [
        MetricFamily(name, kind.__name__.lower(), text, tuple(samples.items()), bounds)
        for (kind, name, _), collector in _made.copy().items()
        for text, samples, bounds in (_read(kind, collector, tags),)
    ]


def _read(kind: Any, collector: Any, tags: Mapping[str, str]) -> tuple[str, _Samples, tuple[float, ...]]:
    """Help text, samples and bounds of one metric."""
    (metric,) = collector.collect()
    samples: _Samples = {}
    counts: dict[tuple[tuple[str, str], ...], dict[float, float]] = {}
    for sample in metric.samples:
        labels = {**sample.labels, **{key: value for key, value in tags.items() if key not in sample.labels}}
        bound = labels.pop("le", None)
        if (route := labels.get("route")) in _packed_routes:
            labels["route"], labels[PATTERN] = unpacked_route(route)
        pairs = tuple((key, value) for key, value in labels.items() if value)
        if kind is not prometheus_client.Histogram:
            if not sample.name.endswith("_created"):
                samples[pairs] = sample.value
        elif sample.name.endswith("_bucket") and bound is not None:
            counts.setdefault(pairs, {})[float(bound)] = sample.value
        elif sample.name.endswith("_sum"):
            samples[pairs] = sample.value
    if kind is not prometheus_client.Histogram:
        return metric.documentation, samples, ()
    bounds: tuple[float, ...] = ()
    for pairs, running in counts.items():
        *bounds_found, _ = sorted(running)
        bounds = tuple(bounds_found)
        steps = [running[bound] for bound in sorted(running)]
        each = tuple(int(step - before) for before, step in zip([0.0, *steps], steps, strict=False))
        samples[pairs] = (samples[pairs], each)
    return metric.documentation, samples, bounds


class _Metric:
    """What the three kinds share: keys, default tags, checks."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] | None) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a metric's name is a str, got {type(name).__name__}")
        if not name:
            raise ValueError("a metric's name must not be empty")
        if tag_keys is not None and not isinstance(tag_keys, tuple):
            raise TypeError(f"tag_keys must be a tuple, got {type(tag_keys).__name__}")
        for key in tag_keys or ():
            if not isinstance(key, str):
                raise TypeError(f"tag keys are str, got {type(key).__name__}")
        self._name, self._description = name, description
        self._keys = tag_keys or ()
        self._defaults: dict[str, str] = {}
        self._automatic = self._tags_of_replica()
        self._refuse_automatic(self._keys)
        self._collector: Any = self._make((*self._keys, *self._automatic))

    def _make(self, keys: tuple[str, ...]) -> Any:
        raise NotImplementedError

    def _tags_of_replica(self) -> dict[str, str]:
        """What is added to the code's own tags."""
        return _replica_tags()

    @property
    def info(self) -> dict[str, Any]:
        """Name, description, keys and default tags."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": (*self._keys, *self._automatic),
            "default_tags": {**self._defaults, **self._automatic},
        }

    def set_default_tags(self, default_tags: Mapping[str, str]) -> None:
        """Values for keys that a call does not pass.

        Raises:
            ValueError: an unknown key, or one that servd fills in. TypeError: a value that is no str.
        """
        self._refuse_automatic(default_tags)
        self._check(default_tags)
        self._defaults = dict(default_tags)

    def _labelled(self, tags: Mapping[str, str] | None) -> Any:
        given = {**self._defaults, **(tags or {})}
        self._refuse_automatic(given)
        self._check(given)
        if "route" in self._keys and "route" not in given:
            given["route"] = self._route()
        missing = [key for key in self._keys if key not in given]
        if missing:
            raise ValueError(f"{self._name}: no value for {', '.join(missing)}")
        given.update(self._automatic)
        return self._collector.labels(**given) if given else self._collector

    def _route(self) -> str:
        """The route of the current request: counted apart for each pattern, which whoever words the samples takes or leaves."""
        request = current_request.get()
        if not request.pattern:
            return request.route
        route = packed_route(request.route, request.pattern)
        _packed_routes.add(route)
        return route

    def _check(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            if key not in self._keys:
                raise ValueError(f"{self._name} has no tag key {key!r}; keys: {', '.join(self._keys) or 'none'}")
            if not isinstance(value, str):
                raise TypeError(f"the value of tag {key!r} must be a str, got {type(value).__name__}")

    def _refuse_automatic(self, keys: Any) -> None:
        taken = [key for key in keys if key in self._automatic]
        if taken:
            raise ValueError(f"{', '.join(taken)} is filled in by servd inside a replica")


class Counter(_Metric):
    """A sum that only grows."""

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        super().__init__(name, description, tag_keys)

    def _make(self, keys: tuple[str, ...]) -> Any:
        return _registered(prometheus_client.Counter, self._name, self._description, keys)

    def inc(self, value: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        """Add `value`, > 0.

        Raises:
            ValueError: `value` is not positive, or the tags do not fit.
        """
        if value <= 0:
            raise ValueError(f"a counter only grows: value must be > 0, got {value}")
        self._labelled(tags).inc(value)


class Gauge(_Metric):
    """A value that goes up and down."""

    def _route(self) -> str:
        # values of several patterns could not be put together again
        return current_request.get().route

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        super().__init__(name, description, tag_keys)

    def _make(self, keys: tuple[str, ...]) -> Any:
        return _registered(prometheus_client.Gauge, self._name, self._description, keys)

    def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Make it `value`.

        Raises:
            ValueError: the tags do not fit.
        """
        self._labelled(tags).set(value)


class Histogram(_Metric):
    """Counts of values by size. boundaries: upper bounds, all > 0."""

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Sequence[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        if not boundaries:
            raise ValueError("a histogram needs boundaries")
        if any(bound <= 0 for bound in boundaries):
            raise ValueError(f"boundaries must be > 0, got {list(boundaries)}")
        self._boundaries = tuple(sorted(boundaries))
        super().__init__(name, description, tag_keys)

    def _make(self, keys: tuple[str, ...]) -> Any:
        return _registered(prometheus_client.Histogram, self._name, self._description, keys, buckets=self._boundaries)

    @property
    def info(self) -> dict[str, Any]:
        """As for all metrics, and the boundaries."""
        return {**super().info, "boundaries": self._boundaries}

    def observe(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Count `value`.

        Raises:
            ValueError: the tags do not fit.
        """
        self._labelled(tags).observe(value)


_made: dict[tuple[Any, str, tuple[str, ...]], Any] = {}


def _registered(kind: Any, name: str, description: str, keys: tuple[str, ...], **options: Any) -> Any:
    """The collector of that name; two objects of one name count together."""
    key = (kind, name, keys)
    if key not in _made:
        _made[key] = kind(name, description, keys, registry=REGISTRY, **options)
    return _made[key]


def _replica_tags() -> dict[str, str]:
    replica = replica_context()
    if replica is None:
        return {}
    tags = {"deployment": replica.replica_id.deployment.full_name, "replica": str(replica.replica_id)}
    if replica.app_name:
        tags["application"] = replica.app_name
    return tags
