"""Ports for what tests start."""

import os
import random
import socket

_FIRST, _LAST = 10_000, 32_000
_WORKERS = 8
"""Parallel workers with ports of their own; more of them share."""

_rng = random.Random()
_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody holds: not one that the system hands out, nor another worker's, nor one given before."""
    room = (_LAST - _FIRST) // _WORKERS
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    while True:
        port = _FIRST + worker * room + _rng.randrange(room)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
