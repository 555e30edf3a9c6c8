"""Numbers that documents hold, with their bounds."""

from typing import Annotated, Any

from pydantic import Field

MAX_REPLICAS = 100_000
"""More than one host can hold; a slip of the finger must not exhaust the controller."""
MAX_THREADS = 10_000
MAX_COUNT = 2**63 - 1
"""Largest of the counts that travel with requests."""
Replicas = Annotated[int, Field(gt=0, le=MAX_REPLICAS)]
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def whole(value: Any) -> int | None:
    """The whole number that a value stands for before it is checked; None if it stands for none."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None
