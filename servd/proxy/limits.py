"""Bounds of the data port, from the environment."""

from typing import Self

from servd.ground.keep_alive import KeepAlive
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import is_on, variable

WHOLE_BODY_BYTES = 1024 * 1024
"""Request bodies up to this size are read whole before they are sent on; larger ones are streamed."""

MUTE_S = 1.0
"""So long a handler may go on with a body that nobody gets, of an answer to HEAD say: its client has all of it, and asks on."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may do, and whether it is told where its time went. Times in seconds; 0 = no bound for `body_bytes` and
    `request_s`.

    head_s: from the first byte of a request to the end of its head. idle_s: without a request, or without a byte of its body.
    request_s: time limit of a whole request. unused_s: between two requests of a connection, 0 = `idle_s`.
    keep_alive: after which time without a word a client's host counts as gone.
    ws_ping_interval_s, ws_ping_timeout_s: between two pings of a WebSocket (0 = none), and from a ping to a sign of life
    (0 = for ever).
    """

    head_bytes: int = 64 * 1024
    body_bytes: int = 0
    head_s: float = 30.0
    idle_s: float = 75.0
    connections: int = 16_384
    request_s: float = 0.0
    server_timing: bool = False
    keep_alive: KeepAlive = KeepAlive()
    ws_ping_interval_s: float = 20.0
    ws_ping_timeout_s: float = 20.0
    unused_s: float = 0.0

    @classmethod
    def from_environment(cls) -> Self:
        """`SERVD_HTTP_MAX_HEADER_BYTES`, `..._MAX_BODY_BYTES`, `..._HEADER_TIMEOUT_S`, `..._IDLE_TIMEOUT_S`,
        `..._MAX_CONNECTIONS`, `..._WS_PING_INTERVAL_S`, `..._WS_PING_TIMEOUT_S`, `..._SERVER_TIMING`,
        `SERVD_REQUEST_PROCESSING_TIMEOUT_S`, and those of `KeepAlive`.

        Raises:
            ValueError: one of them is no number or negative.
        """
        limits = cls(
            head_bytes=int(variable("HTTP_MAX_HEADER_BYTES", "65536")),
            body_bytes=int(variable("HTTP_MAX_BODY_BYTES", "0")),
            head_s=float(variable("HTTP_HEADER_TIMEOUT_S", "30")),
            idle_s=float(variable("HTTP_IDLE_TIMEOUT_S", "75")),
            connections=int(variable("HTTP_MAX_CONNECTIONS", "16384")),
            request_s=float(variable("REQUEST_PROCESSING_TIMEOUT_S", "0")),
            server_timing=is_on("HTTP_SERVER_TIMING"),
            keep_alive=KeepAlive.from_environment(),
            ws_ping_interval_s=float(variable("HTTP_WS_PING_INTERVAL_S", "20")),
            ws_ping_timeout_s=float(variable("HTTP_WS_PING_TIMEOUT_S", "20")),
        )
        if min(limits.head_bytes, limits.body_bytes, limits.head_s, limits.idle_s, limits.request_s) < 0:
            raise ValueError(f"limits of the data port must not be negative: {limits}")
        if min(limits.ws_ping_interval_s, limits.ws_ping_timeout_s) < 0:
            raise ValueError(f"times of WebSocket pings must not be negative: {limits}")
        return limits
