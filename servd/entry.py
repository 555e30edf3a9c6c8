"""Where a started process enters: by name, so that whoever starts it does not load its code."""

import importlib
from typing import Any


def call(target: str, *args: Any) -> None:
    """Call `module:function` with `args`; the target of every process that servd spawns."""
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(*args)
