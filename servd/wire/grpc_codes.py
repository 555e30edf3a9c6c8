"""Status codes of gRPC. Source: grpc.io, "Status codes and their use in gRPC"."""

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


PUSHBACK = ("grpc-retry-pushback-ms", "1000")
"""Trailing metadata of a refusal: when a client that tries again should do so."""
