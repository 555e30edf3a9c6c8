"""The only place that reads a clock."""

import os
import time
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import tzinfo

_DAEMONS_ZONE = "SERVD_DAEMON_TZ"
_HOSTS_ZONE = ":/etc/localtime"
_ZONES = "/usr/share/zoneinfo"
_UTC_NAMES = ("", "UTC", "UTC0", "GMT", "GMT0")

_zone = os.environ.pop(_DAEMONS_ZONE, os.environ.get("TZ"))
"""Of the daemon, as `TZ` names it; None = the host's. Later `TZ` may be what an application wants."""


class Clock(Protocol):
    """Source of time."""

    def now(self) -> float:
        """Monotonic seconds; only differences mean something."""
        ...

    def wall_time(self) -> float:
        """Seconds since the epoch, for what people read."""
        ...


class SystemClock:
    """The system's clocks."""

    # asked for every request: no Python call in between
    now = staticmethod(time.monotonic)
    wall_time = staticmethod(time.time)


def worked() -> float:
    """CPU time of this thread, seconds: what others do meanwhile does not count."""
    return time.thread_time()


def block_for(seconds: float) -> None:
    """Block this thread; for processes without an event loop."""
    time.sleep(seconds)


def local_time(second: float | None = None) -> time.struct_time:
    """Local time of a wall clock's second, or now, in the daemon's zone, whatever an application makes of `TZ`: lines of all
    processes are put in order by it.
    """
    if os.environ.get("TZ") == _zone or (zone := _zone_of(_zone)) is None:
        return time.localtime(second)
    # here and below: nobody else needs it
    from datetime import datetime

    return datetime.fromtimestamp(time.time() if second is None else second, zone).timetuple()


def local_stamp(second: float) -> str:
    """`2023-06-20 12:00:00`, local time, of a wall clock's second; see `local_time`."""
    return _stamp(local_time(int(second)))


def stamp_at_offset(second: float, offset_s: float) -> str:
    """The same for a zone of which the offset is known, seconds east of UTC."""
    return _stamp(time.gmtime(int(second + offset_s)))


def utc_offset_s(second: float | None = None) -> int:
    """Seconds by which this process's local time is ahead of UTC at a wall clock's second, or now."""
    return time.localtime(second).tm_gmtoff


def with_daemons_zone(variables: Mapping[str, str]) -> dict[str, str]:
    """These variables of an application's processes, and what they need to know the zone of this one if they have another."""
    told = {_DAEMONS_ZONE: _HOSTS_ZONE if _zone is None else _zone} if "TZ" in variables else {}
    return {**variables, **told}


def _stamp(moment: time.struct_time) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", moment)


@cache
def _zone_of(name: str | None) -> "tzinfo | None":
    """The zone that a value of `TZ` names; None where that is no file's."""
    from datetime import UTC
    from zoneinfo import ZoneInfo

    try:
        with open(os.path.join(_ZONES, (_HOSTS_ZONE if name is None else name).removeprefix(":")), "rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return UTC if name in (None, _HOSTS_ZONE, *_UTC_NAMES) else None
