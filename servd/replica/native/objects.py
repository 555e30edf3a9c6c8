"""What of an application's a process can find that is about to fork, or to end, though nobody has told of it."""

import gc
from typing import Any


def living(*kinds: type) -> list[Any]:
    """All objects of these types that the collector sees: none of those that were there at a fork, whose memory is frozen."""
    # of the type alone: `isinstance` asks the object too
    return [item for item in gc.get_objects() if issubclass(type(item), kinds)] if kinds else []
