"""The runtime environment that a program gives to all that it runs from then on, as `ray.init(runtime_env=...)` does."""

import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from servd.documents import runtime_env
from servd.ground.descendants import MARK

_environment: dict[str, Any] = {}


def set_program_environment(given: Mapping[str, Any] | None) -> None:
    """Take this over; None = none. Relative paths start in the current directory. Without effect in a replica and in its build,
    whose application has an environment already.

    Raises:
        ValueError: it is no runtime environment; all faults are listed.
    """
    global _environment
    if os.environ.get(MARK):
        return
    env = _made_absolute(given or {})
    if faults := runtime_env.faults(env):
        listed = "; ".join(f"{'.'.join(map(str, where))}: {reason}" for where, reason in faults)
        raise ValueError(f"runtime_env: {listed}")
    _environment = env


def program_environment() -> dict[str, Any]:
    """What was taken over last; empty if nothing was."""
    return dict(_environment)


def _made_absolute(given: Mapping[str, Any]) -> dict[str, Any]:
    env = dict(given)
    if env.get("working_dir") is not None:
        env["working_dir"] = _absolute(env["working_dir"])
    if isinstance(env.get("py_modules"), list | tuple):
        env["py_modules"] = [_absolute(_directory_of(module)) for module in env["py_modules"]]
    return env


def _directory_of(module: Any) -> Any:
    """Where an imported package is; anything else as it is."""
    is_package = isinstance(module, ModuleType) and hasattr(module, "__path__")
    return next(iter(module.__path__), "") if is_package else module


def _absolute(path: Any) -> Any:
    is_relative = isinstance(path, str | os.PathLike) and not runtime_env.has_scheme(os.fspath(path))
    return os.path.abspath(os.path.expanduser(path)) if is_relative else path
