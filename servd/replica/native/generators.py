"""Generators of random numbers around a fork: each replica draws others.

How this works: a forked child has a copy of each generator, and would draw what its siblings draw. Those that were made without
a seed have one from the operating system; which they are is noted while the application runs before the fork, and each child
seeds them anew. One that was given a seed draws the same in each replica, forked or spawned. The global ones are seeded anew
whatever they were given, as the interpreter does with its own.
"""

import os
import random
import secrets
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from servd.replica.native.objects import living

_python: Any = random.Random
_system: Any = secrets

_unseeded: dict[int, weakref.ReferenceType[Any]] = {}
"""Those of Python's that took their seed from the operating system, by identity."""
_drawn: set[int] = set()
"""What numpy has got as seeds from there."""
_found: list[Any] = []
"""numpy's sources of bits, which know no weak references."""
_is_noting = False


@contextmanager
def unseeded_noted() -> Iterator[None]:
    """Around code of the user's that runs before the first fork."""
    global _is_noting
    seed, set_state, draw = _python.seed, _python.setstate, _system.randbits

    def note(generator: Any, a: Any = None, *args: Any, **kwargs: Any) -> None:
        if a is None:
            _unseeded[id(generator)] = weakref.ref(generator)
        else:
            _unseeded.pop(id(generator), None)
        seed(generator, a, *args, **kwargs)

    def note_state(generator: Any, state: Any) -> None:
        _unseeded.pop(id(generator), None)
        set_state(generator, state)

    def note_drawn(bits: int) -> int:
        found: int = draw(bits)
        # whoever has imported this function keeps it, for the time after and for the next time
        if _is_noting:
            _drawn.add(found)
        return found

    _is_noting = True
    _python.seed, _python.setstate, _system.randbits = note, note_state, note_drawn
    try:
        yield
    finally:
        _is_noting = False
        _python.seed, _python.setstate, _system.randbits = seed, set_state, draw


def note_generators() -> None:
    """To be called in a process that replicas are forked from, before the first."""
    kind = getattr(sys.modules.get("numpy.random.bit_generator"), "BitGenerator", None)
    sources = living(kind) if isinstance(kind, type) else []
    _found[:] = [source for source in sources if _is_unseeded(source)]


def reseed() -> None:
    """In a forked child: numbers that no other process draws."""
    for reference in list(_unseeded.values()):
        if (generator := reference()) is not None:
            # past a class of the user's
            _python.seed(generator)
    for source in _found:
        # in its place: what draws from it has its address
        type(source).__init__(source)
    # SQLite's own looks whose process it is when a file is opened
    if callable(connect := getattr(sys.modules.get("sqlite3"), "connect", None)):
        # another module may bear that name
        with suppress(Exception):
            connect(os.devnull).close()
    # numpy imports it at the first look: not here, for nothing, in every child
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()
    # another module may bear that name
    if callable(seed := getattr(sys.modules.get("torch"), "seed", None)):
        seed()


def _is_unseeded(source: Any) -> bool:
    # others may want arguments
    is_numpys = type(source).__module__.startswith("numpy.random.")
    entropy = getattr(source.seed_seq, "entropy", None)
    return is_numpys and isinstance(entropy, int) and entropy in _drawn
