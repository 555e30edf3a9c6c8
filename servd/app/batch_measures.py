"""What is counted of batches, per batched function of this process."""

from collections.abc import Sized
from typing import Any
from weakref import WeakSet

from servd.observability.measures import Distribution, family, labelled
from servd.wire.messages import MetricFamily


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


def all_queues() -> list[Any]:
    """Every `BatchQueue` of this process."""
    return [queue for one in list(_measures.values()) for queue in list(one.queues)]


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
