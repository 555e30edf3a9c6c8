"""FastAPI traces by itself where a provider is set up; requests of which nothing is recorded shall not pay for that."""

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="needs OpenTelemetry: pip install 'servd-serve[otel]'")
pytest.importorskip("fastapi.telemetry", reason="this FastAPI does not trace by itself")

from fastapi import FastAPI
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from servd.app import framework_telemetry
from servd.app.asgi_calls import call_app
from servd.calls.request_context import RequestContext, current_request
from servd.calls.traced import TracedContext
from servd.observability import spans
from servd.wire.trace_context import TraceContext

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Begun(SpanProcessor):
    """Counts spans that begin."""

    count = 0

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.count += 1


async def begun_for(trace: TraceContext | None, *, leaves_out: bool, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many spans FastAPI begins for a request."""
    monkeypatch.setattr(spans, "leaves_frameworks_out", leaves_out)
    provider, begun = TracerProvider(shutdown_on_exit=False), Begun()
    provider.add_span_processor(begun)
    app = FastAPI(telemetry={"tracer_provider": provider})

    @app.get("/")
    def root() -> str:
        return "x"

    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    context = RequestContext("id") if trace is None else TracedContext("id")
    if isinstance(context, TracedContext) and trace is not None:
        context.trace, context.span = trace, None
    token = current_request.set(context)
    try:
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "headers": [],
            "http_version": "1.1",
        }
        await call_app(app, scope, receive, send)
    finally:
        current_request.reset(token)
    assert sent[0]["status"] == 200
    return begun.count


@pytest.mark.parametrize("trace", [None, TraceContext(TRACE, "b7ad6b7169203331", 0)])
async def test_fastapi_begins_no_span_for_a_request_that_is_not_recorded(
    trace: TraceContext | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await begun_for(trace, leaves_out=True, monkeypatch=monkeypatch) == 0
    assert await begun_for(trace, leaves_out=False, monkeypatch=monkeypatch) > 0, "the provider is the application's"


async def test_spans_of_fastapi_are_there_for_one_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = TraceContext(TRACE, "b7ad6b7169203331", 1)
    assert await begun_for(trace, leaves_out=True, monkeypatch=monkeypatch) > 0


@pytest.mark.parametrize("module", ["opentelemetry.sdk.metrics", "opentelemetry.sdk._logs"])
def test_an_application_with_metrics_or_logs_has_them_of_all_requests(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("opentelemetry.sdk.metrics", "opentelemetry.sdk._logs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(spans, "leaves_frameworks_out", False)
    spans.leave_frameworks_out()
    assert spans.leaves_frameworks_out
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    spans.leave_frameworks_out()
    assert not spans.leaves_frameworks_out


ALONE = """
import sys
import time
from fastapi import FastAPI
from servd.app.framework_telemetry import _LOOK_EVERY_S, leave_out


def is_left_out():
    scope = {"type": "http"}
    leave_out(scope)
    return scope == {"type": "http", "fastapi.telemetry": None}


seen = [is_left_out()]
kind = sys.argv[1]
if kind in ("MeterProvider", "NoOpMeterProvider"):
    from opentelemetry import metrics

    class Own(getattr(metrics, kind)):
        def get_meter(self, *args, **kwargs): ...
else:
    __import__(kind)
# it does not look at each request
until = time.monotonic() + _LOOK_EVERY_S
while time.monotonic() < until:
    pass
print(*seen, is_left_out())
"""


@pytest.mark.parametrize(
    "kind", ["opentelemetry.sdk.trace", "opentelemetry.sdk.metrics", "MeterProvider", "NoOpMeterProvider", "json"]
)
def test_while_nobody_could_record_it_fastapi_does_not_look(kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE, kind], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    # before and after there is a class of providers
    assert done.stdout.split() == ["True", str(kind == "json")]


def test_without_fastapi_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framework_telemetry, "_kinds", [])
    monkeypatch.delitem(sys.modules, "fastapi.telemetry")
    scope: dict[str, Any] = {}
    framework_telemetry.leave_out(scope)
    assert not scope
    assert not framework_telemetry._kinds
