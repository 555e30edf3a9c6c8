"""Status codes of gRPC. Source: grpc.io, "Status codes and their use in gRPC"."""

import math
from enum import IntEnum


class Code(IntEnum):
    """How a call of gRPC ended."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_PUSHBACK_MS = 1000
_MOST_MS = 2**31 - 1


def pushback(seconds: float | None = None) -> tuple[str, str]:
    """Trailing metadata of a refusal: when a client that tries again should do so.

    Args:
        seconds: None where nobody said.
    """
    ms = _PUSHBACK_MS if seconds is None else math.ceil(min(seconds * 1000, _MOST_MS))
    return "grpc-retry-pushback-ms", str(ms)
