"""Latencies, counted in buckets that are at most an eighth of themselves wide: as fine as percentiles need. Pure.

How this works: a latency is a whole number of tenths of a millisecond. Up to 16 each has a bucket of its own; from there on each
doubling has eight. So some 200 numbers hold what is between a tenth of a millisecond and hours, and two of such lists are
added, or one taken from another, number by number.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise, zip_longest

MAX_TENTHS = 2**28 - 1
"""Seven hours: whatever took longer counts as this."""
MAX_BUCKETS = 208

_EXACT = 16
_EACH_DOUBLING = 8


def bucket_of(tenths: int) -> int:
    """The bucket of a latency, tenths of a millisecond, >= 0; in [0, MAX_BUCKETS)."""
    if tenths < _EXACT:
        return tenths
    tenths = min(tenths, MAX_TENTHS)
    shift = tenths.bit_length() - 4
    return _EACH_DOUBLING * shift + (tenths >> shift)


def first_of(bucket: int) -> int:
    """The least latency of a bucket, tenths of a millisecond; that of the next one ends it."""
    if bucket < _EXACT:
        return bucket
    shift = bucket // _EACH_DOUBLING - 1
    return (bucket - _EACH_DOUBLING * shift) << shift


def bucketed(tenths: Sequence[int]) -> list[int]:
    """Counts by bucket of counts by tenths: `tenths[n]` latencies took n. As long as it needs to be."""
    return [sum(tenths[first:end]) for first, end in _edges(len(tenths))]


@cache
def _edges(length: int) -> list[tuple[int, int]]:
    return list(pairwise(first_of(bucket) for bucket in range(bucket_of(length - 1) + 2)))


def added(counts: Iterable[Sequence[int]]) -> list[int]:
    """The sum of several counts by bucket, without zeros at its end."""
    found = [sum(column) for column in zip_longest(*counts, fillvalue=0)]
    while found and not found[-1]:
        found.pop()
    return found


def taken(counts: Sequence[int], before: Sequence[int]) -> list[int]:
    """What was counted since `before`."""
    return [now - then for now, then in zip_longest(counts, before, fillvalue=0)]


def quantiles_ms(counts: Sequence[int], shares: Iterable[float]) -> tuple[float | None, ...]:
    """Latencies under which these shares of all lie, milliseconds, in their order; within a bucket by proportion.

    Args:
        counts: by bucket.
        shares: in (0, 1], ascending.

    Returns:
        None for each where nothing was counted.
    """
    found: list[float | None] = []
    total = sum(counts)
    running = bucket = 0
    for share in shares:
        if not total:
            found.append(None)
            continue
        while running + counts[bucket] < share * total:
            running += counts[bucket]
            bucket += 1
        first, end = first_of(bucket), first_of(bucket + 1)
        part = (share * total - running) / counts[bucket]
        found.append(round((first + (end - first) * part) / 10, 2))
    return tuple(found)
