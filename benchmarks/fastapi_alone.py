"""What FastAPI and Starlette take of a request by themselves, without a server: `python -m benchmarks.fastapi_alone`.

Calls the applications of `benchmarks.compare` in this process, one request after the other, with a `receive` and a `send` that do
nothing, and prints CPU time per request, median and range of the rounds. No server can spend less on the same application.
The last line is of requests of which FastAPI records spans by OpenTelemetry's SDK, until they are encoded to be sent.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import uvloop
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks.compare.apps import asgi_app

SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"127.0.0.1:8000")],
    "client": ("127.0.0.1", 50_000),
    "server": ("127.0.0.1", 8000),
}

NOT_TRACED = {"fastapi.telemetry": None}
"""In a scope that has this key FastAPI records nothing."""
QUEUE_SPANS = 1_000_000


class Encoding(SpanExporter):
    """Sends nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Make the message."""
        encode_spans(spans).SerializePartialToString()
        return SpanExportResult.SUCCESS


async def receive() -> dict[str, Any]:
    """A request without a body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: dict[str, Any]) -> None:
    """The answer goes nowhere."""


async def cpu_us(app: Any, scope: dict[str, Any], sending: BatchSpanProcessor, requests: int) -> float:
    """Microseconds of this process's CPU for each of so many requests."""
    began = time.process_time()
    for _ in range(requests):
        await app(dict(scope), receive, send)
    sending.force_flush()
    return (time.process_time() - began) / requests * 1e6


async def measured(rounds: int, requests: int) -> dict[str, list[float]]:
    """Microseconds of each round of each application; they take turns."""
    sending = BatchSpanProcessor(Encoding(), max_queue_size=QUEUE_SPANS)
    provider = TracerProvider()
    provider.add_span_processor(sending)
    trace.set_tracer_provider(provider)
    cases = {
        "Starlette": (asgi_app.starlette_app, SCOPE),
        "FastAPI": (asgi_app.fastapi_app, SCOPE | NOT_TRACED),
        "FastAPI, traced": (asgi_app.fastapi_app, SCOPE),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (app, scope) in cases.items():
            found[name].append(await cpu_us(app, scope, sending, requests))
    return found


def main() -> None:
    """Print one line for each application."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=10_000, help="of a round")
    options = parser.parse_args()
    for name, times in uvloop.run(measured(options.rounds, options.requests)).items():
        print(f"{name}: {statistics.median(times):.1f} us per request ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
