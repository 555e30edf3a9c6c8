"""The SDK's queue of spans, which gets several at a time: to put one into it, a few hundred times a second, takes longer than to
record it.

How this works: a bundle is in the queue from its first span on, and takes more until it is full or sent. So all leave in time,
and the queue, which counts bundles, holds as many spans as its variables say.
"""

import os
import threading
from typing import Any

from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_EXPORT_BATCH_SIZE, OTEL_BSP_MAX_QUEUE_SIZE
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanContext, TraceFlags

_MOST_BUNDLED = 32
_QUEUE_SIZE, _BATCH_SIZE = 2048, 512


class Bundle:
    """Spans that go through the queue as one. size: the most that it takes."""

    __slots__ = ("_left", "_lock", "_spans")

    context = SpanContext(1, 1, False, TraceFlags(TraceFlags.SAMPLED))
    """What the queue looks at."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()
        self._spans: list[Any] = []

    def __repr__(self) -> str:
        return f"Bundle({len(self._spans)} spans)"

    def add(self, span: Any) -> bool:
        """Take one; whether there was room."""
        with self._lock:
            if self._left <= 0:
                return False
            self._left -= 1
            self._spans.append(span)
            return True

    def take(self) -> list[Any]:
        """All of them; it takes no more."""
        with self._lock:
            self._left = 0
            return self._spans


def bundled_queue(exporter: SpanExporter) -> tuple[BatchSpanProcessor, int]:
    """The queue with its thread, and how many spans a bundle for it takes.

    Raises:
        ValueError: the variables ask for what cannot be.
    """
    queue, batch = _number(OTEL_BSP_MAX_QUEUE_SIZE, _QUEUE_SIZE), _number(OTEL_BSP_MAX_EXPORT_BATCH_SIZE, _BATCH_SIZE)
    # of several bundles each, so that what waits for the last one of a message is little
    size = max(1, min(_MOST_BUNDLED, batch // 4))
    if not 0 < batch <= queue:
        # the library says what is wrong
        return BatchSpanProcessor(exporter), 1
    return BatchSpanProcessor(exporter, queue // size, max_export_batch_size=batch // size), size


def _number(variable: str, default: int) -> int:
    """As the library reads it."""
    try:
        return int(os.environ.get(variable, default))
    except ValueError:
        return default
