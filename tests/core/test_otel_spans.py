"""Spans by OpenTelemetry's SDK: what is recorded below what, when its thread starts, and what is said when nobody takes them."""

import asyncio
import contextvars
import gc
import logging
import logging.config
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="needs OpenTelemetry: pip install 'servd-serve[otel]'")

from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from servd.batching import batch
from servd.calls import driver_line
from servd.ground.clock import SystemClock
from servd.observability.otel import context as otel_context
from servd.observability.otel.session import SpanSession
from servd.observability.otel.spans import OtelSpans
from servd.observability.spans import Sampling, TraceSettings, begin, enter, here, installed, preload
from servd.wire.trace_context import TraceContext
from tests.odd_errors import KINDS, raise_odd
from tests.otlp_receiver import Receiver, a_receiver

PARENT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1, "a=1")
SETTINGS = TraceSettings("http://127.0.0.1:9/v1/traces", Sampling())
EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
WORKER = "OtelBatchSpanRecordProcessor"


class Kept(SpanExporter):
    """Keeps what it is given, unless told to fail; one attempt at a time, while the gate is open."""

    def __init__(self) -> None:
        self.is_asked = threading.Event()
        self.spans: list[ReadableSpan] = []
        self.fails = False
        self.gate = threading.Event()
        self.gate.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.is_asked.set()
        self.gate.wait()
        if self.fails:
            logging.getLogger(EXPORTER).error("it is away")
            return SpanExportResult.FAILURE
        self.spans += spans
        return SpanExportResult.SUCCESS


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.gate.set()


@pytest.fixture
def spans(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtelSpans]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "fruit")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=a")
    made = OtelSpans(SETTINGS, "D", "one", {"servd.deployment": "D"}, False, kept)
    yield made
    kept.gate.set()
    made.flush(5.0)


def workers() -> int:
    return sum(thread.name == WORKER for thread in threading.enumerate())


def test_a_span_and_what_is_below(spans: OtelSpans, kept: Kept) -> None:
    before = workers()
    root = spans.start("root", None, "server", attributes={"x": 1, "nothing": None})
    linked = spans.start("linked", PARENT, "client", attributes={}, links=[root.context], began=0.0)
    assert workers() == before, "nothing runs before a span has ended"
    linked.fail_as("Odd")
    for span in (root, linked, root):
        span.end(at=12.0)
    assert workers() == before + 1
    spans.flush(5.0)
    assert workers() == before
    by_name = {span.name: span for span in kept.spans}
    assert len(kept.spans) == len(by_name) == 2
    first, second = by_name["root"], by_name["linked"]
    assert dict(first.attributes or {}) == {"servd.deployment": "D", "x": 1}
    assert (first.parent, first.kind, first.resource.attributes["service.name"]) == (
        None,
        trace.SpanKind.SERVER,
        "fruit",
    )
    assert (first.resource.attributes["service.instance.id"], first.resource.attributes["team"]) == ("one", "a")
    assert second.parent is not None
    assert second.context is not None
    assert otel_context.place_of(second.parent) == PARENT
    assert (second.context.trace_state.to_header(), second.status.is_ok) == ("a=1", False)
    assert [otel_context.place_of(link.context) for link in second.links] == [root.context]
    assert second.end_time is not None
    assert second.start_time is not None
    assert second.end_time - second.start_time == pytest.approx(12e9, abs=1000)


@pytest.mark.parametrize("kind", KINDS, ids=range(len(KINDS)))
def test_an_error_whatever_its_class_does(spans: OtelSpans, kept: Kept, kind: type[Exception]) -> None:
    span = spans.start("s", None, "internal", attributes={})
    try:
        raise_odd(kind, "cause")
    except Exception as error:
        span.fail(error)
        span.end()
        span.fail(error)
    span.note({"late": 1})
    spans.flush(5.0)
    (found,) = kept.spans
    (event,) = found.events
    assert event.attributes is not None
    assert not found.status.is_ok
    assert event.attributes["exception.type"]
    assert isinstance(event.attributes["exception.stacktrace"], str)


def test_spans_of_the_application_follow_the_one_above(
    spans: OtelSpans, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up: list[Any] = []
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", set_up.append)
    monkeypatch.setattr("servd.observability.spans.leaves_frameworks_out", False)
    is_in_request = False
    spans.serve_application(lambda: is_in_request)
    tracer = set_up[0].get_tracer("users")
    ours = spans.start("ours", PARENT, "server", attributes={})

    def inside(place: TraceContext | None) -> bool:
        variables = context.attach(otel_context.below(place))
        try:
            with tracer.start_as_current_span("theirs") as span:
                here = otel_context.current()
                assert here is not None, "ids go on, recorded or not"
                assert place is None or here.trace_id == place.trace_id
                return bool(span.is_recording())
        finally:
            context.detach(variables)

    assert inside(ours.context)
    assert not inside(TraceContext(PARENT.trace_id, PARENT.span_id, 0))
    assert inside(None)
    is_in_request = True
    assert not inside(None), "that this request is part of no trace was decided where it came in"
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: set_up[0])
    spans.serve_application(lambda: True)
    assert len(set_up) == 1, "the application's own stays"
    ours.end()
    spans.flush(5.0)
    assert sorted(span.name for span in kept.spans) == ["ours", "theirs", "theirs"]
    below = next(span for span in kept.spans if span.name == "theirs" and span.parent is not None)
    assert below.parent is not None
    assert otel_context.place_of(below.parent).span_id == ours.context.span_id


async def test_a_batch_without_a_trace_is_in_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.observability.spans.has_met_traces", True)
    places: list[TraceContext | None] = []

    @batch(max_batch_size=1, max_concurrent_batches=1)
    async def same(items: list[int]) -> list[int]:
        places.append(here())
        return items

    variables = contextvars.copy_context()
    variables.run(enter, PARENT, None)
    # the first one lets the second begin
    first = asyncio.create_task(same(1), context=variables)
    await asyncio.gather(first, asyncio.create_task(same(2)))
    assert places == [PARENT, None]


def test_looking_for_a_trace_leaves_the_garbage_collector_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    was_on = gc.isenabled()
    gc.disable()
    try:
        before = gc.get_freeze_count()
        assert here() is None
        preload()
        # of what was frozen before something may have gone
        assert gc.get_freeze_count() <= before
        assert not gc.isenabled()
    finally:
        if was_on:
            gc.enable()


def one_span(spans: OtelSpans) -> None:
    spans.start("s", None, "internal", attributes={}).end()


def a_hundred_while_one_is_sent(spans: OtelSpans, kept: Kept) -> None:
    """Behind the one there is room for 16."""
    kept.gate.clear()
    kept.is_asked.clear()
    one_span(spans)
    # the library counts one as dropped for which its thread makes room in that moment
    assert kept.is_asked.wait(5.0)
    for _ in range(99):
        one_span(spans)


def test_a_clock_that_is_set_shows_in_the_next_span(
    spans: OtelSpans, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = spans.start("first", None, "internal", attributes={}, began=0.0)
    wall_time = SystemClock.wall_time
    monkeypatch.setattr(SystemClock, "wall_time", staticmethod(lambda: wall_time() + 3600))
    second = spans.start("second", None, "internal", attributes={}, began=0.0)
    for span in (first, second):
        span.end(at=1.0)
    spans.flush(5.0)
    begun = {span.name: span.start_time or 0 for span in kept.spans}
    assert begun["second"] - begun["first"] == pytest.approx(3600e9, abs=1e9)
    assert [(span.end_time or 0) - (span.start_time or 0) for span in kept.spans] == [pytest.approx(1e9, abs=1000)] * 2


def silence_all() -> None:
    logging.config.dictConfig({"version": 1})
    assert logging.getLogger(EXPORTER).disabled


def level_out_of_reach() -> None:
    logging.getLogger(EXPORTER).setLevel(logging.CRITICAL + 1)
    logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.CRITICAL + 1)


class OwnKind(logging.Logger):
    """As of an application that calls `logging.setLoggerClass`."""


def another_kind() -> None:
    logging.getLogger(EXPORTER).__class__ = OwnKind


@pytest.mark.parametrize("configure", [silence_all, level_out_of_reach, another_kind, lambda: logging.disable()])
def test_what_an_application_configures_of_loggers_hides_no_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kept: Kept, configure: Callable[[], None]
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    kept.fails = True
    kinds = {name: type(logging.getLogger(name)) for name in (EXPORTER, "opentelemetry.sdk._shared_internal")}
    is_late = configure is not another_kind
    if not is_late:
        configure()
    made = OtelSpans(SETTINGS, "D", "one", {}, False, kept)
    try:
        if is_late:
            configure()
        a_hundred_while_one_is_sent(made, kept)
        kept.gate.set()
        assert made._late.force_flush()
        assert made._out.trouble == "it is away"
        assert made._out.quiet.take_dropped() == 100
    finally:
        logging.disable(logging.NOTSET)
        made.flush(5.0)
        for name, kind in kinds.items():
            logging.getLogger(name).setLevel(logging.NOTSET)
            logging.getLogger(name).__class__ = kind
    assert "it is away" not in caplog.text.replace("reason=it is away", "")


def test_an_endpoint_that_is_away_is_told_of_once(
    spans: OtelSpans, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept.fails = True
    a_hundred_while_one_is_sent(spans, kept)
    queue: Any = spans._late._queue
    assert len(queue._batch_processor._queue) <= 16, "memory is bounded"
    kept.gate.set()
    queue.force_flush()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"traces_not_exported endpoint={SETTINGS.endpoint} reason=it is away"]
    kept.fails = False
    one_span(spans)
    queue.force_flush()
    assert "traces_exported_again" in caplog.records[-1].getMessage()
    # those for which there was no room, and those that were refused
    assert int(caplog.records[-1].getMessage().rpartition("dropped=")[2]) == 100
    assert len(caplog.records) == 2
    # of somebody else's spans the library goes on telling
    logging.getLogger(EXPORTER).error("theirs")
    assert caplog.records[-1].getMessage() == "theirs"


def test_spans_for_which_there_was_no_room_are_told_of_now_and_then(
    spans: OtelSpans, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        a_hundred_while_one_is_sent(spans, kept)
        kept.gate.set()
        assert spans._late.force_flush()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1, "not again within a minute"
    spans.flush(5.0)
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(" dropped=")[0] for line in told] == [f"traces_dropped endpoint={SETTINGS.endpoint}"] * 2
    assert sum(int(line.rpartition("=")[2]) for line in told) + len(kept.spans) == 200


@pytest.mark.parametrize("is_raised", [False, True])
def test_reasons_do_not_show_who_sends(
    spans: OtelSpans, kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, is_raised: bool
) -> None:
    text = "http://me:cret@c: Max retries exceeded with url: /x?key=cret (Caused by: it is away)"

    def export(_: Sequence[ReadableSpan]) -> SpanExportResult:
        if is_raised:
            raise OSError(text)
        logging.getLogger(EXPORTER).error("%s", text)
        return SpanExportResult.FAILURE

    monkeypatch.setattr(kept, "export", export)
    one_span(spans)
    assert spans._late.force_flush()
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.endswith("http://c: Max retries exceeded with url: /x (Caused by: it is away)")


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ("Authorization: Bearer cret", "traces_headers_left_out"),
        ("Authorization=Bearer%20cret%0d%0acret", "traces_not_exported"),
        ("cret%0acret=x", "traces_not_exported"),
    ],
)
def test_headers_that_cannot_be_do_not_show(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, headers: str, told: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
    made = OtelSpans(SETTINGS, "D", "one", {}, False)
    if told == "traces_not_exported":
        one_span(made)
        assert made._late.force_flush()
    (line,) = (record.getMessage() for record in caplog.records)
    made.flush(5.0)
    assert line.startswith(f"{told} endpoint={SETTINGS.endpoint} reason=")
    assert "eader" in line
    assert "cret" not in caplog.text


def test_a_driver_that_is_closed_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    at_exit: list[Any] = []
    monkeypatch.setattr(driver_line, "atexit", SimpleNamespace(register=at_exit.append, unregister=at_exit.remove))
    library: Any = logging.getLogger("opentelemetry.sdk.trace.export")
    before = getattr(library, "listeners", ())
    line = driver_line.DriverLine(str(tmp_path))
    try:
        assert (len(library.listeners), len(at_exit)) == (len(before) + 1, 1)
    finally:
        line.close()
    assert (library.listeners, len(at_exit)) == (before, 0)


def test_a_slow_endpoint_holds_the_end_up_no_longer_than_allowed(spans: OtelSpans, kept: Kept) -> None:
    kept.gate.clear()
    one_span(spans)
    spans.flush(0.05)
    assert kept.spans == []


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [("OTEL_BSP_MAX_QUEUE_SIZE", "100", "max_queue_size"), ("OTEL_BSP_SCHEDULE_DELAY", "-3", "schedule_delay_millis")],
)
def test_a_queue_that_cannot_be_fails_no_request(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    made = OtelSpans(SETTINGS, "D", "one", {}, False, kept)
    monkeypatch.setattr("servd.observability.spans._installed", made)
    one_span(made)
    one_span(made)
    assert installed() is None, "replicas hand traces on"
    assert not made.sampling.wants(PARENT), "nobody is told that spans are recorded"
    made.flush(5.0)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("traces_off reason=")
    assert says in line


def test_a_library_that_cannot_be_loaded_fails_no_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: str) -> None:
        raise TypeError("Descriptors cannot be created directly.")

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("importlib.import_module", refuse)
    preload()
    assert begin("D", "one", {}) is None
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all(line.startswith("traces_off reason=") and "TypeError: Descriptors" in line for line in lines)


def test_variables_that_the_library_refuses_turn_traces_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "many")
    assert begin("D", "one", {}) is None
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("traces_off reason=")
    assert "OTEL_SPAN_LINK_COUNT_LIMIT" in line


def exported(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is said of one span that is sent there."""
    made = OtelSpans(TraceSettings(f"{receiver.url}/v1/traces", Sampling()), "D", "one", {}, False)
    try:
        one_span(made)
        assert made._late.force_flush()
        return [record.getMessage().replace(receiver.url, "URL") for record in caplog.records]
    finally:
        made.flush(5.0)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (301, "301 Moved Permanently: name the address https://elsewhere/v1/traces"),
        (400, "400 Bad Request"),
        # it is tried again and again until then, and the library says at last only that
        (503, "503 Service Unavailable"),
    ],
)
def test_the_reason_is_what_the_collector_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int, reason: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    with a_receiver() as receiver:
        receiver.status = status
        assert exported(receiver, caplog) == [f"traces_not_exported endpoint=URL/v1/traces reason={reason}"]


def test_the_reason_is_why_nobody_could_be_reached(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    with a_receiver() as receiver:
        receiver.server.server_close()
        (line,) = exported(receiver, caplog)
    assert "Connection refused" in line


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", []),
        (b"hello", []),
        (b"\x0a\x00", []),
        (b"\x0a\x0c\x08\x07\x12\x08no quota", ["traces_refused endpoint=URL/v1/traces spans=7 reason=no quota"]),
        (b"\x0a\x02\x08\x01", ["traces_refused endpoint=URL/v1/traces spans=1 reason=none given"]),
    ],
)
def test_what_a_collector_takes_in_part_is_told(
    caplog: pytest.LogCaptureFixture, answer: bytes, told: list[str]
) -> None:
    with a_receiver() as receiver:
        receiver.answer = answer
        assert exported(receiver, caplog) == told


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "zstd"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "'10s'"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team fruit", "team fruit"),
    ],
)
def test_a_variable_that_the_library_leaves_out_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    OtelSpans(SETTINGS, "D", "one", {}, False).flush(1.0)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"traces_variable_left_out endpoint={SETTINGS.endpoint} reason=")
    assert told in line


def test_the_certificate_of_the_variable_counts_whatever_is_set_for_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/the/hosts.pem")
    session = SpanSession(lambda *_: None)
    assert session.merge_environment_settings("https://c", {}, None, None, None)["verify"] == "/the/hosts.pem"
    session.verify = "/own.pem"
    assert session.merge_environment_settings("https://c", {}, None, None, None)["verify"] == "/own.pem"
