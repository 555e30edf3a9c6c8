"""Where a started process enters: by name, so that whoever starts it does not load its code."""

import gc
import importlib
from types import ModuleType
from typing import Any

from servd.ground.edition import Stamp


def call(first: Stamp | str, *args: Any) -> None:
    """Call `module:function` with what follows; the target of every process that servd spawns.

    Args:
        first: who starts it; a servd of before stamps gives none, and the name of the function at once.
    """
    target, *rest = args if isinstance(first, Stamp) else (first, *args)
    module, _, function = target.partition(":")
    getattr(load(module), function)(*rest)


def load(module: str) -> ModuleType:
    """The module of that name, with all that it imports, in the least time."""
    # loading makes no garbage worth a search, and searches are a tenth of its time
    was_searching = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        if was_searching:
            gc.freeze()
            gc.enable()
