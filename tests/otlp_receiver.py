"""A collector of traces for tests: takes OTLP over HTTP in protobuf, and can be slow, refuse, or be away for a while."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage


@dataclass(frozen=True)
class Got:
    """A span that has arrived. attributes, resource: values by name. links: ids of spans. error: its status is an error."""

    name: str
    trace_id: str
    id: str
    parent: str
    kind: int
    began: int
    ended: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    links: tuple[str, ...]
    events: tuple[dict[str, Any], ...]
    error: bool
    state: str


SERVER, CLIENT = SpanMessage.SPAN_KIND_SERVER, SpanMessage.SPAN_KIND_CLIENT


class Receiver:
    """What has arrived so far. gate: requests are answered while it is set. answer: body of those that are taken."""

    def __init__(self) -> None:
        self.spans: list[Got] = []
        self.requests = 0
        self.status = 200
        self.answer = b""
        self.gate = threading.Event()
        self.gate.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                receiver.gate.wait()
                receiver.requests += 1
                if receiver.status == 200 and self.path == "/v1/traces":
                    receiver.spans += spans_in(data)
                self.send_response(receiver.status if self.path == "/v1/traces" else 404)
                self.send_header("content-length", str(len(receiver.answer)))
                if receiver.status in range(300, 400):
                    self.send_header("location", "https://me:cret@elsewhere/v1/traces?key=cret")
                self.end_headers()
                self.wfile.write(receiver.answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def of(self, trace_id: str) -> list[Got]:
        """Spans of a trace, the earliest first."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.began)


@contextmanager
def a_receiver() -> Iterator[Receiver]:
    """One that answers."""
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.gate.set()
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


def spans_in(data: bytes) -> list[Got]:
    """Spans of one request."""
    found = []
    for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
        about = _values(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                found.append(_got(span, about))
    return found


def _got(span: Any, resource: dict[str, Any]) -> Got:
    return Got(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        resource,
        tuple(link.span_id.hex() for link in span.links),
        tuple({"name": event.name, **_values(event.attributes)} for event in span.events),
        span.status.code == 2,
        span.trace_state,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
