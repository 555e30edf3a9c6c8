"""What `servd logs` does: the last lines of the log files that a target means, and what is added to them."""

import glob
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from servd.exceptions import ConfigError
from servd.ground.clock import block_for
from servd.ground.names import in_file_name

POLL_S = 0.2
_CHUNK_BYTES = 64 * 1024
_ROOTS = {"controller": ("serve/controller_*.log",), "proxy": ("serve/http_proxy_*.log",), "daemon": ("daemon.log",)}


def patterns(status: dict[str, Any] | None, target: str | None) -> tuple[str, ...]:
    """Glob patterns below the log directory.

    Args:
        status: servd's own, to know deployments by their names; None while no daemon answers.
        target: None = everything; `controller`, `proxy`, `daemon`; APP, APP/DEPLOYMENT, a full name, a replica id.
    """
    if target is None:
        return ("daemon.log", "serve/*.log")
    if target in _ROOTS:
        return _ROOTS[target]
    found = []
    for name, app in (status or {"applications": {}})["applications"].items():
        for full_name, deployment in app["deployments"].items():
            if target in (name, f"{name}/{deployment['name']}", full_name):
                plain = glob.escape(in_file_name(full_name))
                found.append(f"serve/deployment_{plain}_{plain}#*.log")
    if found:
        return tuple(found)
    # of replicas that are gone: their files are left
    plain = glob.escape(in_file_name(target))
    deployment, _, suffix = target.rpartition("#")
    # a name may hold a # too
    replica = (f"serve/deployment_*_{glob.escape(in_file_name(deployment))}#{glob.escape(suffix)}.log",)
    return (*(replica if deployment else ()), f"serve/deployment_{plain}_{plain}#*.log")


def show_logs(
    log_dir: str,
    wanted: tuple[str, ...],
    *,
    lines: int,
    follow: bool,
    write: Callable[[str], object] = sys.stdout.write,
) -> None:
    """Print the last `lines` lines of each file; with `follow` go on until interrupted.

    Raises:
        ConfigError: there is no such file, and none is waited for.
    """
    tails: dict[str, Tail] = {}
    paths = files(log_dir, wanted)
    if not paths and not follow:
        raise ConfigError(f"there are no log files {' or '.join(wanted)} in {log_dir}; `servd status` lists names")
    for path in paths:
        tails[path] = Tail(path)
        for line in tails[path].last(lines):
            write(_labelled(path, line, len(paths) > 1))
    while follow:
        sys.stdout.flush()
        block_for(POLL_S)
        paths = files(log_dir, wanted)
        for path in paths:
            for line in tails.setdefault(path, Tail(path)).more():
                write(_labelled(path, line, len(paths) > 1))


def files(log_dir: str, wanted: Iterable[str]) -> list[str]:
    """Files that fit a pattern, oldest change first."""
    found = {path for pattern in wanted for path in glob.glob(pattern, root_dir=log_dir)}
    paths = [os.path.join(log_dir, path) for path in found]
    return sorted((path for path in paths if os.path.isfile(path)), key=lambda path: (os.path.getmtime(path), path))


def _labelled(path: str, line: str, is_one_of_many: bool) -> str:
    return f"{os.path.basename(path).removesuffix('.log')}: {line}" if is_one_of_many else line


class Tail:
    """One growing file, followed over its rotation."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 - lives as long as this object
        self._rest = b""

    def last(self, count: int) -> list[str]:
        """The last `count` lines; `more` goes on behind them."""
        kept: deque[str] = deque(maxlen=max(count, 0))
        kept.extend(self._read())
        return list(kept)

    def more(self) -> list[str]:
        """Lines added since the last call."""
        found = list(self._read())
        try:
            status, named = os.fstat(self._file.fileno()), os.stat(self._path)
        except OSError:
            return found
        if not os.path.samestat(status, named):
            self._file.close()
            self._file = open(self._path, "rb")  # noqa: SIM115
            found += self._read()
        elif status.st_size < self._file.tell():
            # it was begun anew
            self._file.seek(0)
            found += self._read()
        return found

    def _read(self) -> Iterable[str]:
        while chunk := self._file.read(_CHUNK_BYTES):
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace") + "\n"
