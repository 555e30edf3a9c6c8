"""A span of servd's: the library would say the same, and what an application says of it counts."""

import dataclasses
import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="needs OpenTelemetry: pip install 'servd-serve[otel]'")

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

from servd.observability.otel import context as otel_context
from servd.observability.otel.encoding import SpanEncoder, exporting
from servd.observability.otel.span import EndedSpan, OtelSpan
from servd.observability.otel.spans import OtelSpans
from servd.observability.spans import Sampling, TraceSettings
from servd.wire.trace_context import TraceContext
from tests.otlp_receiver import spans_in

PARENT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1, "a=1,b=2")
SETTINGS = TraceSettings("http://127.0.0.1:9/v1/traces", Sampling())


class Kept(SpanExporter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def make(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], OtelSpans]]:
    made: list[OtelSpans] = []
    monkeypatch.setenv("OTEL_SERVICE_NAME", "fruit")
    # they leave when they are asked for
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")

    def new() -> OtelSpans:
        made.append(OtelSpans(SETTINGS, "D", "one", {"servd.deployment": "D"}, False, kept))
        return made[-1]

    yield new
    for spans in made:
        spans.flush(5.0)


def opened(spans: OtelSpans, parent: TraceContext | None = PARENT) -> tuple[OtelSpan, trace.Span]:
    """One, and what the application finds as the current span in it."""
    span = spans.start("s", parent, "server", attributes={"x": 1})
    assert isinstance(span, OtelSpan)
    return span, otel_context.CurrentSpan(span)


def sent(spans: OtelSpans, kept: Kept) -> list[ReadableSpan]:
    assert spans._late.force_flush()
    found, kept.spans = kept.spans, []
    return found


def without_ids(span: ReadableSpan) -> Any:
    """What it says, its own ids apart."""
    said = json.loads(span.to_json())
    said["context"].pop("span_id")
    if span.parent is None:
        said["context"].pop("trace_id")
    return said


def nothing(span: OtelSpan) -> None:
    pass


def notes(span: OtelSpan) -> None:
    span.note({"y": "ü", "nothing": None, "z": 1.5})
    span.note({"x": 2, "is": True})


def a_failure(span: OtelSpan) -> None:
    span.fail_as("502", "bad")
    span.note({"y": 1})


@pytest.mark.parametrize("parent", [None, PARENT, TraceContext(PARENT.trace_id, PARENT.span_id, 3)])
@pytest.mark.parametrize("happens", [nothing, notes, a_failure])
@pytest.mark.parametrize("is_late", [False, True])
def test_the_library_says_the_same(
    make: Callable[[], OtelSpans],
    kept: Kept,
    parent: TraceContext | None,
    happens: Callable[[OtelSpan], None],
    is_late: bool,
) -> None:
    spans = make()
    for is_librarys in (False, True):
        span = spans.start("s", parent, "server", attributes={"x": 1, "nothing": None}, began=3.0)
        assert isinstance(span, OtelSpan)
        # of a process whose wall clock stood still between the two
        span._offset_s, span.began = 100.0, 103_000_000_000
        if is_librarys and not is_late:
            span.sdk_span()
        happens(span)
        if is_librarys and is_late:
            span.sdk_span()
        span.end(at=4.0)
        span.end(at=5.0)
    first, second = sent(spans, kept)
    assert without_ids(first) == without_ids(second)
    one, other = (encode_spans([span]).resource_spans[0] for span in (first, second))
    assert one.resource == other.resource
    assert one.scope_spans[0].scope == other.scope_spans[0].scope
    ours, theirs = one.scope_spans[0].spans[0], other.scope_spans[0].spans[0]
    assert ours.span_id != theirs.span_id
    for pair in (ours, theirs):
        pair.span_id = b""
        if parent is None:
            pair.trace_id = b""
        # no two are of one key
        pair.attributes.sort(key=lambda one: one.key)
    assert ours == theirs


def odd_texts(span: OtelSpan) -> None:
    span.note({"text": "\ud800", "": "", "long": "ä" * 300, "number": -(2**40), "no": False, "huge": 2**70})


def same_words(span: OtelSpan) -> None:
    span.note({"one": 1, "is": True, "float": 1.0, "word": "1", "servd.request_id": "r"})


def a_status(span: OtelSpan) -> None:
    span.fail_as("Odd", "ü" * 200)


@pytest.mark.parametrize("parent", [None, PARENT, TraceContext(PARENT.trace_id, PARENT.span_id, 3)])
@pytest.mark.parametrize("happens", [nothing, notes, a_failure, odd_texts, same_words, a_status])
@pytest.mark.parametrize("ending", [None, ({"status": 503, "y": None}, ""), ({"status": 503}, "503")])
def test_what_is_sent_is_what_the_library_would_send(
    make: Callable[[], OtelSpans],
    parent: TraceContext | None,
    happens: Callable[[OtelSpan], None],
    ending: tuple[dict[str, Any], str] | None,
) -> None:
    spans = make()
    taken: list[Any] = []
    origin = dataclasses.replace(spans._origin, take=taken.append)
    for _ in range(2):
        # the second time all is known
        span = OtelSpan(origin, "s", parent, trace.SpanKind.CLIENT, {"x": 1, "nothing": None}, None)
        happens(span)
        span.end(None, None if ending is None else lambda: ending)
    spans._origin.ids.place = PARENT
    theirs: Any = spans._origin.tracer.start_span("theirs")
    taken.append(theirs)
    encoder = SpanEncoder(origin.resource, origin.scope)
    sent = ExportTraceServiceRequest.FromString(encoder.encode(taken))
    expected = encode_spans([one.readable() if isinstance(one, EndedSpan) else one for one in taken])
    assert every_span(sent) == every_span(expected)
    assert {str(one.resource) for one in sent.resource_spans} == {str(one.resource) for one in expected.resource_spans}


def every_span(message: ExportTraceServiceRequest) -> list[tuple[Any, ...]]:
    """Each with what it is of, in the order of ids."""
    found = [
        (span.span_id, scope.scope, scope.schema_url, around.resource, around.schema_url, span)
        for around in message.resource_spans
        for scope in around.scope_spans
        for span in scope.spans
    ]
    return sorted(found, key=lambda one: one[0])


def test_the_librarys_exporter_is_given_bytes(make: Callable[[], OtelSpans], monkeypatch: pytest.MonkeyPatch) -> None:
    spans = make()
    exporter = OTLPSpanExporter(endpoint="http://127.0.0.1:9/v1/traces")
    sent: list[bytes] = []

    def send(data: bytes) -> Any:
        sent.append(data)
        return SimpleNamespace(success=len(sent) == 1)

    # editions without this part encode by themselves
    monkeypatch.setattr(exporter._client, "export", send)
    export = exporting(exporter, spans._origin.resource, spans._origin.scope)
    taken: list[Any] = []
    OtelSpan(dataclasses.replace(spans._origin, take=taken.append), "s", None, trace.SpanKind.SERVER, {}, None).end()
    assert [export(taken), export(taken)] == [SpanExportResult.SUCCESS, SpanExportResult.FAILURE]
    assert [span.name for span in spans_in(sent[0])] == ["s"]


def test_a_library_whose_exporter_is_another_encodes_itself(make: Callable[[], OtelSpans], kept: Kept) -> None:
    spans = make()
    origin = spans._origin
    taken: list[Any] = []
    OtelSpan(dataclasses.replace(origin, take=taken.append), "s", None, trace.SpanKind.SERVER, {}, None).end()
    assert exporting(kept, origin.resource, origin.scope)(taken) is SpanExportResult.SUCCESS
    assert [span.name for span in kept.spans] == ["s"]


@pytest.mark.parametrize(("queue", "batch", "bundled"), [("2048", "512", 32), ("40", "40", 10), ("1", "1", 1)])
def test_as_many_spans_wait_as_the_variables_say(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, queue: str, batch: str, bundled: int
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", queue)
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", batch)
    spans = OtelSpans(SETTINGS, "D", "one", {}, False, kept)
    is_asked, gate = threading.Event(), threading.Event()

    def export(found: Sequence[ReadableSpan]) -> SpanExportResult:
        is_asked.set()
        gate.wait()
        return Kept.export(kept, found)

    monkeypatch.setattr(kept, "export", export)
    made = 0
    # a full batch wakes its thread
    while not is_asked.wait(0 if made < int(batch) else 0.2):
        opened(spans)[0].end()
        made += 1
    assert made <= int(batch) + 1
    for _ in range(2 * int(queue)):
        opened(spans)[0].end()
    gate.set()
    spans.flush(5.0)
    dropped = made + 2 * int(queue) - len(kept.spans)
    assert dropped
    assert len(kept.spans) <= int(batch) + int(queue) + bundled


@pytest.mark.slow
def test_a_child_of_a_process_that_sends_does_so_too(make: Callable[[], OtelSpans], kept: Kept) -> None:
    spans = make()
    opened(spans)[0].end()
    assert len(sent(spans, kept)) == 1
    opened(spans)[0].end()
    child = os.fork()
    if not child:
        opened(spans)[0].end()
        found = sent(spans, kept)
        os._exit(len(found))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1, "what its parent has is its parent's"
    assert len(sent(spans, kept)) == 1


def test_what_an_application_says_of_the_current_span(make: Callable[[], OtelSpans], kept: Kept) -> None:
    spans = make()
    span, current = opened(spans)
    span.note({"before": 1})
    assert current.is_recording()
    assert otel_context.place_of(current.get_span_context()) == span.context
    current.set_attribute("users", "1")
    current.set_attributes({"more": 2})
    current.add_event("seen", {"k": "v"})
    current.add_link(otel_context.span_context(PARENT))
    current.record_exception(ValueError("odd"))
    current.set_status(StatusCode.ERROR, "theirs")
    current.update_name("renamed")
    seen: Any = current
    assert (seen.name, seen.attributes["users"]) == ("renamed", "1")
    assert not hasattr(current, "_nothing_of_the_kind")
    span.note({"after": 1})
    span.end()
    (found,) = sent(spans, kept)
    assert dict(found.attributes or {}) == {
        "servd.deployment": "D",
        "x": 1,
        "before": 1,
        "users": "1",
        "more": 2,
        "after": 1,
    }
    assert (found.name, found.status.description) == ("renamed", "theirs")
    assert [event.name for event in found.events] == ["seen", "exception"]
    assert len(found.links) == 1
    assert found.context is not None
    assert otel_context.place_of(found.context) == span.context
    assert found.parent is not None
    assert otel_context.place_of(found.parent) == PARENT


@pytest.mark.parametrize("is_librarys", [False, True])
def test_what_comes_after_the_end_is_not_recorded(make: Callable[[], OtelSpans], kept: Kept, is_librarys: bool) -> None:
    spans = make()
    span, current = opened(spans)
    if is_librarys:
        current.set_attribute("early", 1)
    span.end()
    assert not current.is_recording()
    current.set_attribute("late", 1)
    current.add_event("late")
    current.end()
    span.note({"late": 1})
    span.fail_as("late")
    span.fail(ValueError("late"))
    (found,) = sent(spans, kept)
    assert "late" not in (found.attributes or {})
    assert (len(found.events), found.status.is_ok) == (0, True)
    assert sent(spans, kept) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1"), ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")],
)
def test_limits_of_the_environment_hold(
    make: Callable[[], OtelSpans], kept: Kept, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    spans = make()
    span, _ = opened(spans)
    span.note({"url.path": "/longer"})
    span.end()
    (found,) = sent(spans, kept)
    assert found.attributes is not None
    assert len(found.attributes) == 1 if "COUNT" in variable else found.attributes["url.path"] == "/lo"


def test_an_application_that_seeds_random_numbers_gets_other_ids(
    make: Callable[[], OtelSpans], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up: list[Any] = []
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", set_up.append)
    monkeypatch.setattr("servd.observability.spans.leaves_frameworks_out", False)
    spans = make()
    spans.serve_application(lambda: False)
    tracer = set_up[0].get_tracer("users")
    ids: list[int | str] = []
    for _ in range(2):
        random.seed(1)
        span, _current = opened(spans, None)
        ids += (span.context.trace_id, span.context.span_id)
        theirs = tracer.start_span("theirs").get_span_context()
        ids += (theirs.trace_id, theirs.span_id)
        assert theirs.trace_flags.random_trace_id
    assert len(set(ids)) == len(ids)


def test_threads_of_the_application_say_something_at_the_same_time(make: Callable[[], OtelSpans], kept: Kept) -> None:
    spans = make()
    together = threading.Barrier(5, timeout=10)
    for _ in range(20):
        span, current = opened(spans)

        def say(name: str, current: trace.Span = current) -> None:
            together.wait()
            current.set_attribute(name, 1)

        threads = [threading.Thread(target=say, args=(f"t{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        together.wait()
        span.note({"ours": 1})
        for thread in threads:
            thread.join()
        span.end()
        (found,) = sent(spans, kept)
        assert {"t0", "t1", "t2", "t3", "ours"} <= set(found.attributes or {})
