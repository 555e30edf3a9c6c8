"""Numbers and paths that documents hold, with their bounds."""

import os
from typing import Annotated, Any

from pydantic import AfterValidator, Field

MAX_REPLICAS = 100_000
"""More than one host can hold; a slip of the finger must not exhaust the controller."""
MAX_THREADS = 10_000
MAX_COUNT = 2**63 - 1
"""Largest of the counts that travel with requests."""
Replicas = Annotated[int, Field(gt=0, le=MAX_REPLICAS)]
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def _check_absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"must be an absolute path on the daemon's host, got {path!r}")
    if "\0" in path:
        raise ValueError(f"no path holds the character of code 0, got {path!r}")
    return path


AbsolutePath = Annotated[str, AfterValidator(_check_absolute), Field(json_schema_extra={"pattern": "^/"})]
LocalFile = Annotated[str, Field(min_length=1), AfterValidator(os.path.abspath)]
"""A path of this program's, relative ones from where it runs."""
Passphrase = Annotated[str, Field(min_length=1, max_length=1024)]
"""Of a key; OpenSSL takes no longer ones."""


def whole(value: Any) -> int | None:
    """The whole number that a value stands for before it is checked; None if it stands for none."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None
