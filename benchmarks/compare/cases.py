"""What is measured: the cases, their requests, and the aims."""

import json
from dataclasses import dataclass
from typing import Literal

Way = Literal["wrk", "upload", "download", "websocket", "calls", "start"]

COUNTS = (1, 8, 32, 128, 512)
CHUNKS = 100
MEGABYTE = 1_000_000


def json_text() -> bytes:
    """A JSON object of about 1 KB."""
    items = [
        {"id": number, "name": f"item {number}", "price": number * 1.5, "tags": ["a", "b"]} for number in range(16)
    ]
    return json.dumps({"items": items}).encode()


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is measured.

    connections: of the client, one measurement each; for handle calls the calls in flight.
    scale: what one request counts, in `unit`.
    body: what is posted; None = a GET without one.
    answer: must be in the answer's body; its length matters where it is a number. Of WebSockets the length of a message.
    """

    name: str
    title: str
    way: Way
    unit: str
    connections: tuple[int, ...]
    scale: float = 1.0
    body: bytes | None = None
    content_type: str = "application/octet-stream"
    answer: bytes | int = b"hello"


CASES = (
    Case("noop", "no-op", "wrk", "requests/s", COUNTS),
    Case("fastapi", "FastAPI no-op", "wrk", "requests/s", COUNTS),
    Case("json", "JSON echo, 1 KB", "wrk", "requests/s", (32,), 1.0, json_text(), "application/json", b"item 15"),
    Case("up1", "1 MB up", "wrk", "MB/s", (8,), 1.0, bytes(MEGABYTE), answer=b"1000000"),
    Case("down1", "1 MB down", "wrk", "MB/s", (8,), 1.0, answer=MEGABYTE),
    Case("up100", "100 MB up", "upload", "MB/s", (1,), 100.0, answer=b"100000000"),
    Case("down100", "100 MB down", "download", "MB/s", (1,), 100.0, answer=100 * MEGABYTE),
    Case("compose", "two deployments", "wrk", "requests/s", (1, 32), 1.0),
    Case("calls", "handle calls", "calls", "calls/s", (1, 64)),
    Case("stream", f"stream of {CHUNKS} chunks", "wrk", "chunks/s", (8,), CHUNKS, answer=CHUNKS * 100),
    Case("websocket", "WebSocket echo", "websocket", "messages/s", (32,), answer=16),
    Case("websocket64", "WebSocket echo, 64 KiB", "websocket", "messages/s", (32,), answer=65_536),
    Case("start", "start to first 200", "start", "s (less is better)", (0,)),
    Case("memory", "memory, one no-op app", "start", "MB PSS (less is better)", (0,)),
)
BY_NAME = {case.name: case for case in CASES}


@dataclass(frozen=True, slots=True)
class Aim:
    """A ratio that servd is to reach: median over rounds of servd's figure by the other's of the same round.

    measure: "value", "p50_ms" or "cpu_us"; "tail" is servd's p99 by its p50.
    """

    case: str
    connections: int
    measure: Literal["value", "p50_ms", "cpu_us", "tail"]
    system: str
    bound: float
    is_floor: bool = True


AIMS = (
    Aim("noop", 32, "value", "limit", 0.8),
    Aim("noop", 32, "value", "uvicorn", 1.1),
    Aim("fastapi", 32, "value", "uvicorn", 1.35),
    Aim("noop", 1, "p50_ms", "limit", 1.3, is_floor=False),
    Aim("noop", 128, "tail", "servd", 3.0, is_floor=False),
    Aim("noop", 32, "cpu_us", "limit", 1.3, is_floor=False),
    Aim("noop", 32, "value", "mosec", 2.5),
    Aim("noop", 32, "value", "mosec-batch", 2.5),
    Aim("noop", 32, "value", "ray", 60.0),
    Aim("noop", 32, "value", "ray-haproxy", 5.0),
)
