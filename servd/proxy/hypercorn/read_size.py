"""How much of a client to read at a time."""

_LONG_S = 0.005
_LEAST_READ_BYTES = 1024
MOST_READ_BYTES = 64 * 1024


def next_read(read_bytes: int, took_s: float) -> int:
    """How much of a client to read next: what will not take long if it is like the last.

    Frames of a few bytes take a thousand times as long as a large body.

    Args:
        read_bytes: what was read last.
        took_s: what that took, seconds.
    """
    likely = int(read_bytes * _LONG_S / took_s) if took_s > 0 else MOST_READ_BYTES
    return min(max(likely, _LEAST_READ_BYTES), MOST_READ_BYTES)
