"""What `servd logs` does: lines of the log files that a target means, in order of time, and what is added to them."""

import glob
import heapq
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from servd.exceptions import ConfigError
from servd.ground import process
from servd.ground.clock import SystemClock, block_for, local_stamp, stamp_at_offset, utc_offset_s
from servd.ground.names import in_file_name, without_controls
from servd.ground.settings import FORK_SERVER_FILE
from servd.observability.log_lines import NO_END, Line, Source, Wish, in_order, moment

POLL_S = 0.2
RENEW_S = 5.0
_ROOTS = {
    "controller": ("serve/controller_*.log",),
    "proxy": ("serve/http_proxy_*.log",),
    "daemon": ("daemon.log",),
    "fork_server": (f"serve/{FORK_SERVER_FILE}",),
}
_PRINTED = "daemon.log"
_LONGEST_S = 1e9
_MOST_REMEMBERED = 20_000
"""Lines whose copies are known; they are written at about the same time."""
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def patterns(status: dict[str, Any] | None, target: str | None, *, with_proxies: bool = False) -> tuple[str, ...]:
    """Glob patterns below the log directory.

    Args:
        status: servd's own, to know deployments by their names; None while no daemon answers.
        target: None = everything; `controller`, `proxy`, `fork_server`, `daemon`; APP, APP/DEPLOYMENT, a full name, a
            replica id.
        with_proxies: the proxies' files too, of whatever a target means.
    """
    if target is None:
        return (_PRINTED, "serve/*.log")
    if target in _ROOTS:
        return _ROOTS[target]
    apps = (status or {"applications": {}})["applications"]
    shared = _ROOTS["proxy"] if with_proxies else ()
    found = []
    for name, app in apps.items():
        for full_name, deployment in app["deployments"].items():
            if target in (name, f"{name}/{deployment['name']}", full_name):
                plain = glob.escape(in_file_name(full_name))
                found.append(f"serve/deployment_{plain}_{plain}#*.log")
    if target in apps:
        # what its import said
        shared = (*_ROOTS["fork_server"], *shared)
    return (*(found or _of_gone(target)), *shared)


def _of_gone(target: str) -> tuple[str, ...]:
    """Files of replicas of which no daemon knows: they are left."""
    plain = glob.escape(in_file_name(target))
    deployment, _, suffix = target.rpartition("#")
    # a name may hold a # too
    name = f"serve/deployment_*_{glob.escape(in_file_name(deployment))}#{glob.escape(suffix)}"
    replica = (f"{name}.log", f"{name}.before-*.log")
    app = (f"serve/deployment_{plain}_*_{plain}_*#*.log",)
    return (*(replica if deployment else app), f"serve/deployment_{plain}_{plain}#*.log")


def seconds_ahead(status: dict[str, Any] | None) -> float:
    """By how much local time in the lines of a daemon is ahead of that of this process. status: as of `patterns`."""
    told = None if status is None else status.get("utc_offset_s")
    # one of an edition before does not say it
    return 0 if told is None else told - utc_offset_s()


def wish_of(request: str | None, level: str | None, since: str | None, ahead_s: float = 0.0) -> Wish:
    """The wish behind options of a command; None = not given. ahead_s: as `seconds_ahead` gives it.

    Raises:
        ConfigError: there is no such level, or no such span of time.
    """
    rank = 0
    if level is not None:
        known = logging.getLevelNamesMapping()
        if (rank := known.get(level.upper(), -1)) < 0:
            raise ConfigError(f"{level!r} is no level, give one of DEBUG, INFO, WARNING, ERROR, CRITICAL")
    begin = ""
    if since is not None:
        now = SystemClock().wall_time()
        begun_at = now - seconds_of(since)
        # an hour comes twice at the end of summer time: rather lines of both than of none
        begin = stamp_at_offset(begun_at, min(utc_offset_s(begun_at), utc_offset_s(now)) + ahead_s)
    return Wish(request or "", rank, begin)


def seconds_of(text: str) -> float:
    """Seconds of a span of time as people type it: `90`, `90s`, `10m`, `2h`, `1d`.

    Raises:
        ConfigError: it is something else, or below 0.
    """
    unit = _UNITS_S.get(text[-1:])
    try:
        number = float(text[:-1] if unit else text) * (unit or 1)
    except ValueError:
        number = -1.0
    # not a number and infinity are neither
    if not 0 <= number < _LONGEST_S:
        raise ConfigError(f"{text!r} is no span of time; give one such as 90s, 10m, 2h or 1d")
    return number


def show_logs(
    log_dir: str,
    wanted: tuple[str, ...],
    wish: Wish,
    *,
    app: str = "",
    lines: int | None,
    follow: bool,
    ahead_s: float = 0.0,
    renew: Callable[[], tuple[str, ...]] | None = None,
    write: Callable[[str], object] = sys.stdout.write,
) -> None:
    """Print the last `lines` lines of all files together, in order of time; with `follow` go on until interrupted.

    Control characters of lines are shown as text: no line shall command a terminal.

    Args:
        app: of files that several applications share, only lines that name this one; "" = all.
        lines: None = all that are wanted.
        ahead_s: as `seconds_ahead` gives it.
        renew: gives the patterns anew, every `RENEW_S`, while it goes on: an application may get further deployments.

    Raises:
        ConfigError: there is no such file, and none is waited for.
    """
    process.raise_file_limit()
    sources: dict[str, Source] = {}

    def found() -> list[str]:
        return [path for path in files(log_dir, wanted) if path not in sources]

    for path in (paths := found()):
        sources[path] = _source(path, wish, app, ahead_s, is_followed=follow)
    if not paths and not follow:
        raise ConfigError(f"there are no log files {' or '.join(wanted)} in {log_dir}; `servd status` lists names")
    until = local_stamp(SystemClock().wall_time() + ahead_s + 1)
    histories = [_with_path(path, in_order(source.lines(lines), until)) for path, source in sources.items()]
    once = _Once()
    history: Iterable[tuple[Line, str]] = filter(once.is_new, heapq.merge(*histories, key=partial(_moment, until)))
    for line, path in history if lines is None else deque(history, maxlen=lines):
        write(_shown(line, path, is_one_of_many=len(sources) > 1))
    try:
        clock = SystemClock()
        renewed_at = clock.now()
        while follow:
            sys.stdout.flush()
            block_for(POLL_S)
            if renew is not None and clock.now() - renewed_at >= RENEW_S:
                wanted, renewed_at = renew(), clock.now()
            for path in found():
                sources[path] = _source(path, wish, app, ahead_s, is_followed=True)
            added = [line for path, source in sources.items() for line in _with_path(path, source.more())]
            for line, path in filter(once.is_new, sorted(added, key=partial(_moment, NO_END))):
                write(_shown(line, path, is_one_of_many=len(sources) > 1))
    finally:
        for source in sources.values():
            source.close()


class _Once:
    """Leaves out what `daemon.log` and another file both have: with `--log-to-stderr` it has all that is logged once more."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], bool] = {}

    def is_new(self, found: tuple[Line, str]) -> bool:
        """Whether the line is in no file of the other kind. found: with its path."""
        line, path = found
        if not line.is_named:
            return True
        is_copy, key = os.path.basename(path) == _PRINTED, (line.time, hash(line.text))
        if self._seen.setdefault(key, is_copy) != is_copy:
            return False
        if len(self._seen) > _MOST_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return True


def _with_path(path: str, lines: Iterable[Line]) -> Iterator[tuple[Line, str]]:
    for line in lines:
        yield line, path


def _moment(until: str, line: tuple[Line, str]) -> tuple[bool, str, bool]:
    return moment(line[0].time, line[1], until)


def _shown(line: Line, path: str, *, is_one_of_many: bool) -> str:
    text = f"{without_controls(line.text)}\n"
    # a head names who speaks
    return text if line.is_named or not is_one_of_many else f"{os.path.basename(path).removesuffix('.log')}: {text}"


def files(log_dir: str, wanted: Iterable[str]) -> list[str]:
    """Files that fit a pattern, oldest change first."""
    found = {path for pattern in wanted for path in glob.glob(pattern, root_dir=log_dir)}
    paths = [os.path.join(log_dir, path) for path in found]
    return sorted((path for path in paths if os.path.isfile(path)), key=lambda path: (_changed_at(path), path))


def _changed_at(path: str) -> float:
    try:
        return os.path.getmtime(path)
    except OSError:
        # removed this moment
        return 0.0


def _source(path: str, wish: Wish, app: str, ahead_s: float, *, is_followed: bool) -> Source:
    name = os.path.basename(path)
    begin = ""
    if name == _PRINTED:
        # its lines have no time: they stand where the last one was printed
        begin = local_stamp(_changed_at(path) + ahead_s)
    elif app and not name.startswith("deployment_"):
        wish = replace(wish, app=app)
    return Source(path, wish, begin=begin, is_followed=is_followed)
