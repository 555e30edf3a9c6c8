#!/bin/bash
# Guess, before looking: OpenTelemetry's OTLP exporter over HTTP follows a redirect of its collector (as one that moved to https answers),
# or counts it as a failure, logs it, and says so by what `export` returns.
# Seen: neither. It does not follow it, and returns SpanExportResult.SUCCESS without a line in any log: the spans are gone, and code
# behind it that keeps what failed has nothing to keep. Status codes 301, 302, 307 and 308 alike. A 404 is a failure, and logged.
# Exits 0 as long as that is so.
set -eu
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install -q opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2
cat > "$directory/export.py" <<'END_OF_EXPORT'
import http.server
import importlib.metadata
import logging
import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

asked, logged, results = [], [], []


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        asked.append(self.path)
        status = 200 if self.path == "/moved" else int(self.path[1:])
        self.send_response(status)
        if 300 < status < 400:
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/moved")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):
        pass


class Noting(OTLPSpanExporter):
    def export(self, spans):
        results.append(super().export(spans).name)


class Lines(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())


logging.getLogger().addHandler(Lines())
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("opentelemetry-exporter-otlp-proto-http", importlib.metadata.version("opentelemetry-exporter-otlp-proto-http"))
for status in (200, 301, 302, 307, 308, 404):
    asked.clear(), logged.clear(), results.clear()
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = Noting(endpoint=f"http://127.0.0.1:{server.server_port}/{status}")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("x").start_span("a").end()
    print(status, "asked for", asked, "gave", results, "logged", len(logged), "lines")
    assert asked == [f"/{status}"]
    assert results == ["FAILURE" if status == 404 else "SUCCESS"]
    assert bool(logged) == (status == 404)
END_OF_EXPORT
"$directory/venv/bin/python" "$directory/export.py"
