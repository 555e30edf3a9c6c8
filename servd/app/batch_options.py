"""Options of `batch`, checked."""

from collections.abc import Callable
from typing import Any

_ON_ERROR = ("fail", "split")


class BatchOptions:
    """How batches form; changed by the setters, read by every queue from its next batch on."""

    def __init__(
        self,
        max_batch_size: Any,
        batch_wait_timeout_s: Any,
        max_concurrent_batches: Any,
        batch_size_fn: Callable[[list[Any]], int] | None,
        on_error: Any,
    ) -> None:
        self.max_batch_size = checked_size("max_batch_size", max_batch_size)
        self.batch_wait_timeout_s = checked_wait(batch_wait_timeout_s)
        self.max_concurrent_batches = checked_size("max_concurrent_batches", max_concurrent_batches)
        if batch_size_fn is not None and not callable(batch_size_fn):
            raise TypeError(f"batch_size_fn must be callable, got {type(batch_size_fn).__name__}")
        if on_error not in _ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(_ON_ERROR)}, got {on_error!r}")
        self.batch_size_fn = batch_size_fn
        self.on_error = on_error


def checked_size(name: str, value: Any) -> int:
    """A whole number of at least 1; integral floats are one.

    Raises:
        TypeError: no number. ValueError: less than 1.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def checked_wait(value: Any) -> float:
    """Seconds, at least 0.

    Raises:
        TypeError: no number. ValueError: negative.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"batch_wait_timeout_s must be a number of seconds, got {value!r}")
    if value < 0:
        raise ValueError(f"batch_wait_timeout_s must be at least 0, got {value}")
    return float(value)
