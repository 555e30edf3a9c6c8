"""Directories that must take files: the daemon's own, and those that applications have chosen for their logs."""

import asyncio
import contextlib
import os
from collections.abc import Iterable, Mapping

from servd.controller.plan.targets import DeploymentTarget
from servd.ground.places import trouble_of
from servd.ground.settings import Settings

_MOST_NAMED = 3


class Places:
    """What is wrong with them, for people."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings) -> None:
        self._loop = loop
        self._own = (("state", settings.state_dir), ("log", settings.log_dir), ("socket", settings.socket_dir))
        self._looking: asyncio.Future[list[str]] | None = None
        self._found: list[str] = []

    def __repr__(self) -> str:
        return f"Places({self._own}, {self._found})"

    def look(self, targets: Iterable[DeploymentTarget]) -> list[str]:
        """What is wrong now with the daemon's own, and with the `logs_dir` of deployments as of the look before.

        To be called every second.
        """
        self._look_at_chosen(chosen(targets))
        own = [text for name, path in self._own if (text := trouble_of(f"{name} directory", path))]
        return [*own, *self._found]

    def _look_at_chosen(self, wanted: Mapping[str, str]) -> None:
        if self._looking is not None and self._looking.done():
            self._found, self._looking = self._looking.result(), None
        if not wanted:
            self._found = []
        if not wanted or self._looking is not None:
            return
        # elsewhere: one may lie on a host that does not answer. No thread may be left: the next look tries again
        with contextlib.suppress(RuntimeError):
            self._looking = self._loop.run_in_executor(None, _troubles, wanted)


def chosen(targets: Iterable[DeploymentTarget]) -> dict[str, str]:
    """Directories that deployments have chosen for their log files, and what each is called."""
    names: dict[str, list[str]] = {}
    for target in targets:
        if directory := (target.options.get("logging_config") or {}).get("logs_dir"):
            names.setdefault(str(directory), []).append(str(target.id))
    return {directory: f"log directory of {_listed(sorted(whose))}" for directory, whose in names.items()}


def _listed(names: list[str]) -> str:
    left_out = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {left_out} more" if left_out > 0 else "")


def _troubles(wanted: Mapping[str, str]) -> list[str]:
    # one that is not there will be made
    there = ((name, directory) for directory, name in wanted.items() if os.path.isdir(directory))
    return [text for name, directory in there if (text := trouble_of(name, directory))]
