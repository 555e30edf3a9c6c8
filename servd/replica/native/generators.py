"""Generators of random numbers that libraries share with the application: each replica draws others."""

import sys


def reseed() -> None:
    """Global random state would be the same in every child; the interpreter's own is reseeded by itself."""
    # numpy imports it at the first look: not here, for nothing, in every child
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()
    # another module may bear that name
    if callable(seed := getattr(sys.modules.get("torch"), "seed", None)):
        seed()
