"""Times of log lines: the daemon's local time, whatever an application or a command has for `TZ`."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from servd.commands import log_files
from servd.commands.log_files import seconds_ahead, wish_of
from servd.ground.clock import utc_offset_s, with_daemons_zone

SetZone = Callable[[str | None], None]
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()
LINE = """
import logging, os, time
from servd.ground import clock
from servd.observability.line_formatter import LineFormatter
{begin}
record = logging.makeLogRecord({{"created": {second!r}, "levelname": "INFO", "msg": "hello"}})
print(LineFormatter("replica", "r", None).format(record)[5:21], clock.local_stamp({second!r})[:16], sep="|")
print(os.environ.get("SERVD_DAEMON_TZ"))
"""


@pytest.fixture
def set_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[SetZone]:
    """Sets this process's zone; None = the host's."""

    def set_it(name: str | None) -> None:
        if name is None:
            monkeypatch.delenv("TZ", raising=False)
        else:
            monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_it
    monkeypatch.undo()
    time.tzset()


def lines_of(environment: dict[str, str], begin: str = "", second: float = NOON) -> list[str]:
    """What a process with that environment writes of a second, after `begin`."""
    code = LINE.format(begin=begin, second=second)
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


@pytest.mark.parametrize(
    ("daemons", "applications", "expected"),
    [
        ("Europe/Berlin", "America/New_York", "2026-07-01 14:00"),
        (":Asia/Tokyo", "UTC", "2026-07-01 21:00"),
        ("", "Asia/Tokyo", "2026-07-01 12:00"),
        # no file's, and so nothing that another process could read
        ("CET-1CEST,M3.5.0,M10.5.0/3", "Asia/Tokyo", "2026-07-01 21:00"),
        ("Europe/Berlin", "Europe/Berlin", "2026-07-01 14:00"),
    ],
)
def test_lines_of_an_application_have_the_daemons_time(
    set_zone: SetZone, monkeypatch: pytest.MonkeyPatch, daemons: str, applications: str, expected: str
) -> None:
    monkeypatch.setattr("servd.ground.clock._zone", daemons)
    line, left = lines_of(with_daemons_zone({"TZ": applications}))
    assert line == f"{expected}|{expected}"
    # nothing that a program which it starts would take for its own
    assert left == "None"
    assert with_daemons_zone({"A": "b"}) == {"A": "b"}


def test_an_application_that_changes_its_zone_later_leaves_that_of_its_lines() -> None:
    begin = "os.environ['TZ'] = 'America/New_York'; time.tzset()"
    assert lines_of({"TZ": "Europe/Berlin"}, begin)[0] == "2026-07-01 14:00|2026-07-01 14:00"
    # winter: an hour less
    assert lines_of({"TZ": "Europe/Berlin"}, begin, NOON + 200 * 86400)[0].endswith("13:00")


def since(monkeypatch: pytest.MonkeyPatch, now: float, span: str, ahead_s: float = 0.0) -> str:
    clock: Any = type("Clock", (), {"wall_time": staticmethod(lambda: now)})
    monkeypatch.setattr(log_files, "SystemClock", clock)
    return wish_of(None, None, span, ahead_s).since


def test_the_hour_that_comes_twice_is_shown_twice_rather_than_not_at_all(
    set_zone: SetZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_zone("Europe/Berlin")
    zone = ZoneInfo("Europe/Berlin")
    after = datetime(2026, 10, 25, 2, 5, fold=1, tzinfo=zone).timestamp()
    assert since(monkeypatch, after, "10m") == "2026-10-25 01:55:00"
    assert since(monkeypatch, after, "1m") == "2026-10-25 02:04:00"
    spring = datetime(2026, 3, 29, 3, 5, tzinfo=zone).timestamp()
    assert since(monkeypatch, spring, "10m") == "2026-03-29 01:55:00"


def test_a_command_in_another_zone_than_the_daemon_means_the_same_lines(
    set_zone: SetZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_zone("Asia/Tokyo")
    assert utc_offset_s() == 9 * 3600
    ahead_s = seconds_ahead({"utc_offset_s": 7200})
    assert ahead_s == -7 * 3600
    assert since(monkeypatch, NOON, "10m", ahead_s) == "2026-07-01 13:50:00"
    assert seconds_ahead(None) == seconds_ahead({}) == 0
