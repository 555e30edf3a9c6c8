"""Bounds of the data port, from the environment."""

from typing import Self

from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import is_on, variable

WHOLE_BODY_BYTES = 1024 * 1024
"""Request bodies up to this size are read whole before they are sent on; larger ones are streamed."""
_MOST_PROBE_S = 32_767
_MOST_PROBES = 127


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may do, and whether it is told where its time went. Times in seconds; 0 = no bound for `body_bytes` and
    `request_s`.

    head_s: from the first byte of a request to the end of its head. idle_s: without a request, or without a byte of its body.
    request_s: time limit of a whole request.
    probe_after_s, probe_every_s, probes: keep-alive probes of the kernel, once a client's host has been silent for so long
    (0 = none, and nobody looks), so far apart; as many without an answer end the connection. Whole seconds.
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
    probe_after_s: int = 30
    probe_every_s: int = 10
    probes: int = 3
    ws_ping_interval_s: float = 20.0
    ws_ping_timeout_s: float = 20.0

    @classmethod
    def from_environment(cls) -> Self:
        """`SERVD_HTTP_MAX_HEADER_BYTES`, `..._MAX_BODY_BYTES`, `..._HEADER_TIMEOUT_S`, `..._IDLE_TIMEOUT_S`,
        `..._MAX_CONNECTIONS`, `..._PROBE_AFTER_S`, `..._PROBE_EVERY_S`, `..._PROBES`, `..._WS_PING_INTERVAL_S`,
        `..._WS_PING_TIMEOUT_S`, `..._SERVER_TIMING` and `SERVD_REQUEST_PROCESSING_TIMEOUT_S`.

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
            probe_after_s=int(variable("HTTP_PROBE_AFTER_S", "30")),
            probe_every_s=int(variable("HTTP_PROBE_EVERY_S", "10")),
            probes=int(variable("HTTP_PROBES", "3")),
            ws_ping_interval_s=float(variable("HTTP_WS_PING_INTERVAL_S", "20")),
            ws_ping_timeout_s=float(variable("HTTP_WS_PING_TIMEOUT_S", "20")),
        )
        if min(limits.head_bytes, limits.body_bytes, limits.head_s, limits.idle_s, limits.request_s) < 0:
            raise ValueError(f"limits of the data port must not be negative: {limits}")
        if min(limits.ws_ping_interval_s, limits.ws_ping_timeout_s) < 0:
            raise ValueError(f"times of WebSocket pings must not be negative: {limits}")
        if limits.probe_after_s < 0 or min(limits.probe_every_s, limits.probes) < 1:
            raise ValueError(f"keep-alive probes need at least one, a second apart: {limits}")
        if max(limits.probe_after_s, limits.probe_every_s) > _MOST_PROBE_S or limits.probes > _MOST_PROBES:
            raise ValueError(f"Linux takes {_MOST_PROBE_S} s and {_MOST_PROBES} keep-alive probes at most: {limits}")
        return limits
