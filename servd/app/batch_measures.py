"""What is counted of batches, per batched function of this process."""

from bisect import bisect_left
from collections.abc import Sized
from weakref import WeakSet

from servd.observability.journal import LATENCY_BOUNDS_MS
from servd.observability.measures import family, labelled
from servd.wire.messages import MetricFamily


class Distribution:
    """Values in the buckets that all histograms have."""

    def __init__(self) -> None:
        self._total = 0.0
        self._buckets = [0] * (len(LATENCY_BOUNDS_MS) + 1)

    def __repr__(self) -> str:
        return f"Distribution({self.count})"

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self._buckets)

    def add(self, value: float) -> None:
        """Note one value, at least 0."""
        self._total += value
        self._buckets[bisect_left(LATENCY_BOUNDS_MS, value)] += 1

    def sample(self) -> tuple[float, tuple[int, ...]]:
        """Their sum, and how many are in each bucket."""
        return self._total, tuple(self._buckets)


class BatchMeasures:
    """Of one batched function, all its instances together. Used on the loops of its queues; read from any thread.

    queues: of items that wait.
    """

    def __init__(self) -> None:
        self.queues: WeakSet[Sized] = WeakSet()
        self.sizes = Distribution()
        self.waits_ms = Distribution()
        self.runs_ms = Distribution()

    def __repr__(self) -> str:
        return f"BatchMeasures({self.sizes.count} batches)"


_measures: dict[str, BatchMeasures] = {}


def measures_of(function: str) -> BatchMeasures:
    """The measures of a batched function, by its qualified name."""
    return _measures.setdefault(function, BatchMeasures())


def batch_metrics(**tags: str) -> list[MetricFamily]:
    """What was counted. tags: the replica's."""
    found = [(labelled(**tags, function_name=name), one) for name, one in _measures.copy().items()]
    return [
        family("serve_batches_processed", [(pairs, one.runs_ms.count) for pairs, one in found]),
        family("serve_actual_batch_size", [(pairs, one.sizes.sample()) for pairs, one in found]),
        family("serve_batch_wait_time_ms", [(pairs, one.waits_ms.sample()) for pairs, one in found]),
        family("serve_batch_execution_time_ms", [(pairs, one.runs_ms.sample()) for pairs, one in found]),
        family("serve_batch_queue_length", [(pairs, sum(map(len, list(one.queues)))) for pairs, one in found]),
    ]
