"""Pings of WebSockets: when they are sent, and when a client that is silent is gone."""

import pytest

from servd.proxy.limits import Limits
from servd.wire.websocket.heartbeat import Heartbeat

SIGNS = {None: ".", "ping": "p", "gone": "g"}


def played(heartbeat: Heartbeat, seconds: str) -> str:
    """What a heartbeat wants at the end of each second. h: something was heard in it, x: nothing could be."""
    signs = ""
    for second in seconds:
        if second == "h":
            heartbeat.hear()
        signs += SIGNS[heartbeat.turn(is_excused=second == "x")]
    return signs


@pytest.mark.parametrize(
    ("interval_s", "timeout_s", "seconds", "expected"),
    [
        (3, 2, "........", "..p.g..."),
        (3, 2, "...h...h..", "..p..p...p"),
        (3, 2, "hhhhhh", "..p..p"),
        (3, 2, "...xxxxx..", "..p......g"),
        (3, 2, "...xxxh..", "..p.....p"),
        (3, 0, ".......", "..p..p."),
        (0, 2, ".......", "......."),
        (2.5, 1.5, "........", "..p.g..."),
    ],
)
def test_pings_and_ends(interval_s: float, timeout_s: float, seconds: str, expected: str) -> None:
    assert played(Heartbeat(interval_s, timeout_s), seconds) == expected


def test_a_silent_client_is_gone_within_a_minute_unless_told_otherwise() -> None:
    limits = Limits()
    signs = played(Heartbeat(limits.ws_ping_interval_s, limits.ws_ping_timeout_s), "." * 60)
    assert (signs.index("p"), signs.index("g")) == (19, 39)
