"""What `ray.util.metrics` stands for: metrics whose tags are the code's own, also those under names that servd fills in.

In replicas what their keys do not name is added, as to all metrics.
"""

from servd import metrics

__all__ = ["Counter", "Gauge", "Histogram"]


class _OwnTags(metrics._Metric):
    def _tags_of_replica(self) -> dict[str, str]:
        return {key: value for key, value in super()._tags_of_replica().items() if key not in self._keys}


class Counter(_OwnTags, metrics.Counter):
    """A sum that only grows."""


class Gauge(_OwnTags, metrics.Gauge):
    """A value that goes up and down."""


class Histogram(_OwnTags, metrics.Histogram):
    """Counts of values by size."""
