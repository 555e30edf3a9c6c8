"""Records spans with OpenTelemetry's SDK, and sends them by OTLP.

How this works: servd has decided which of its spans are recorded before it opens one, so its own tracer takes all of them; the
application's tracer follows the span above. Both feed one queue of the SDK's, of bounded length, with a thread that sends what
is in it; that begins with the first span that ends, since nothing may run in a process that forks, and most replicas at rest
need none.
"""

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanKind
from opentelemetry.util.types import Attributes as LibraryAttributes

from servd.exceptions import TransportError
from servd.ground.clock import SystemClock
from servd.ground.package import VERSION
from servd.observability.described import summary_of
from servd.observability.otel.bundles import Bundle, bundled_queue
from servd.observability.otel.context import CurrentSpan, enter_span
from servd.observability.otel.encoding import exporting
from servd.observability.otel.quiet import LeftOut, Quiet, in_short
from servd.observability.otel.session import SpanSession
from servd.observability.otel.span import GivenIds, OnceHashed, Origin, OtelSpan, UnseededIds, are_limited
from servd.observability.spans import (
    NOTHING_RECORDED,
    Attributes,
    Span,
    TraceSettings,
    install,
    installed,
    leave_frameworks_out,
)
from servd.wire.trace_context import TraceContext

SERVICE = "servd"
FLUSH_IN_TROUBLE_S = 0.2
"""What the end of a process waits for where the last spans did not get through."""

_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_CREDENTIALS = tuple(f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{name}CREDENTIAL_PROVIDER" for name in ("", "TRACES_"))
"""Variables that name a session of the user's own."""
_TELL_PERIOD_S = 60.0
_now = SystemClock().now

logger = logging.getLogger(__name__)


class OtelSpans:
    """What records the spans of this process; see `spans.Spans`. exporter: in place of the one for the settings' endpoint."""

    def __init__(
        self,
        settings: TraceSettings,
        name: str,
        instance_id: str,
        attributes: Attributes,
        begins: bool,
        exporter: SpanExporter | None = None,
    ) -> None:
        self.sampling = settings.sampling
        self.name = name
        self.begins = begins
        quiet = Quiet()
        with LeftOut() as left_out:
            self._resource = Resource.create({SERVICE_INSTANCE_ID: instance_id})
            exporter = exporter or _exporter(settings, quiet)
        for text in left_out.texts:
            logger.warning("traces_variable_left_out endpoint=%s reason=%s", settings.shown, text)
        if str(self._resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            self._resource = self._resource.merge(Resource({SERVICE_NAME: SERVICE}))
        self._resource = OnceHashed(self._resource)
        scope = InstrumentationScope("servd", VERSION)
        self._out = _Out(exporter, settings.shown, quiet, self._resource, scope)
        self._late = _LateQueue(self._out, self._turn_off)
        ids = GivenIds()
        tracer = self._provider(ALWAYS_ON, ids).get_tracer("servd", VERSION)
        self._origin = Origin(tracer, ids, scope, self._resource, dict(attributes), self._late.take)
        self._are_limited = are_limited()

    def __repr__(self) -> str:
        return f"OtelSpans({self.name}, {self._out})"

    def start(
        self,
        name: str,
        parent: TraceContext | None,
        kind: str,
        *,
        attributes: Attributes,
        links: Sequence[TraceContext] = (),
        began: float | None = None,
    ) -> Span:
        """Open a span."""
        span = OtelSpan(self._origin, name, parent, _KINDS[kind], attributes, began)
        if links or self._are_limited:
            span.sdk_span(links)
        return span

    def enter(self, span: Span) -> None:
        """Let what begins in the current context be below this span."""
        assert isinstance(span, OtelSpan)
        enter_span(CurrentSpan(span))

    def serve_application(self, in_request: Callable[[], bool]) -> None:
        """Take spans of the application's too, unless it has a provider of its own."""
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            follows = _Follows(self.sampling.ratio, in_request, self._late)
            trace.set_tracer_provider(self._provider(follows, UnseededIds()))
            leave_frameworks_out()

    def flush(self, limit_s: float) -> None:
        """Send what waits. A thread of its own: the library's limit is not one for each attempt to send."""
        thread = threading.Thread(target=self._late.shutdown, name="servd-last-spans", daemon=True)
        thread.start()
        thread.join(min(limit_s, FLUSH_IN_TROUBLE_S) if self._out.trouble else limit_s)

    def _turn_off(self) -> None:
        # what can't be sent must not be called recorded, to clients or to those who are called
        self.sampling = NOTHING_RECORDED
        if installed() is self:
            install(None)

    def _provider(self, sampler: Sampler, ids: IdGenerator) -> TracerProvider:
        provider = TracerProvider(sampler, self._resource, shutdown_on_exit=False, id_generator=ids)
        provider.add_span_processor(self._late)
        return provider


class _Follows(Sampler):
    """For the application's spans: recorded as the span above is. Without one, by the ratio, unless a request runs."""

    def __init__(self, ratio: float, in_request: Callable[[], bool], queue: "_LateQueue") -> None:
        self._first = TraceIdRatioBased(ratio)
        self._in_request = in_request
        self._queue = queue

    def should_sample(
        self,
        parent_context: context.Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: LibraryAttributes = None,
        links: Sequence[Link] | None = None,
        trace_state: trace.TraceState | None = None,
    ) -> SamplingResult:
        above = trace.get_current_span(parent_context).get_span_context()
        if self._queue.is_over:
            is_wanted = False
        elif above.is_valid:
            is_wanted = above.trace_flags.sampled
        elif self._in_request():
            is_wanted = False
        else:
            return self._first.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        return SamplingResult(
            Decision.RECORD_AND_SAMPLE if is_wanted else Decision.DROP,
            attributes if is_wanted else None,
            above.trace_state,
        )

    def get_description(self) -> str:
        return f"Follows({self._first.get_description()})"


class _LateQueue(SpanProcessor):
    """The SDK's queue and its thread, from the first span on that ends.

    on_failure: called where they cannot begin. is_over: they take no more.
    """

    def __init__(self, out: "_Out", on_failure: Callable[[], None]) -> None:
        self._out = out
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._queue: BatchSpanProcessor | None = None
        self._bundle = Bundle(0)
        self._bundled = 1
        self.is_over = False

    def on_start(self, span: Any, parent_context: context.Context | None = None) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self.take(span)

    def take(self, span: Any) -> None:
        """One that has ended, whoever's it is."""
        if self._bundle.add(span):
            return
        with self._lock:
            if self._queue is None and not self.is_over:
                self._begin()
            queue = self._queue
            if queue is None or self._bundle.add(span):
                return
            bundle = self._bundle = Bundle(self._bundled)
            bundle.add(span)
        with self._out.quiet:
            # it looks at the context alone
            queue.on_end(cast(ReadableSpan, bundle))

    def _begin(self) -> None:
        try:
            self._queue, self._bundled = bundled_queue(self._out)
            self._out.quiet.bundled = self._bundled
            forget = weakref.WeakMethod(self._forget_bundle)
            os.register_at_fork(after_in_child=lambda: (found := forget()) and found())
        # variables that cannot be meant, no room for a thread: no request fails for that
        except Exception as error:
            self.is_over = True
            self._on_failure()
            logger.warning("traces_off reason=no queue for spans (OTEL_BSP_...): %s", summary_of(error))

    def _forget_bundle(self) -> None:
        # in a child the queue is empty, and who held a lock is not there
        self._lock, self._bundle = threading.Lock(), Bundle(0)

    def shutdown(self) -> None:
        with self._lock:
            self.is_over = True
            queue = self._queue
        if queue is not None:
            with self._out.quiet:
                queue.shutdown()  # type: ignore[no-untyped-call]
        self._out.quiet.leave()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        queue = self._queue
        return queue is None or queue.force_flush(timeout_millis)


def _exporter(settings: TraceSettings, quiet: Quiet) -> SpanExporter:
    with quiet:
        session = None if any(map(os.environ.get, _CREDENTIALS)) else SpanSession(quiet.refuse)
        made = OTLPSpanExporter(endpoint=settings.endpoint, session=session)
    if quiet.has_odd_headers:
        logger.warning(
            "traces_headers_left_out endpoint=%s reason=headers of the endpoint cannot be read "
            "(OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_TRACES_HEADERS): name=value, further ones behind a comma",
            settings.shown,
        )
    return made


class _Out(SpanExporter):
    """Sends, and tells once that it cannot, and once that it can again; of those for which there was no room now and then.

    trouble: why spans do not get through, "" if they do.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        endpoint: str,
        quiet: Quiet,
        resource: Resource,
        scope: InstrumentationScope,
    ) -> None:
        self._exporter = exporter
        self._export = exporting(exporter, resource, scope)
        self._endpoint = endpoint
        self._silent_until = self._quiet_about_refused_until = 0.0
        self.trouble = ""
        self.quiet = quiet

    def __repr__(self) -> str:
        return f"_Out({self._endpoint}{f', {self.trouble}' if self.trouble else ''})"

    def export(self, bundles: Sequence[Any]) -> SpanExportResult:
        spans = [span for bundle in bundles for span in bundle.take()]
        with self.quiet:
            self.quiet.said = ""
            try:
                result = self._export(spans)
            except TransportError as error:
                self.quiet.said = in_short(str(error))
                result = SpanExportResult.FAILURE
            except Exception as error:
                self.quiet.said = in_short(summary_of(error))
                result = SpanExportResult.FAILURE
            said = self.quiet.said
        if result is not SpanExportResult.SUCCESS:
            self.quiet.drop(len(spans))
            if not self.trouble:
                self.trouble = said or "refused"
                logger.warning("traces_not_exported endpoint=%s reason=%s", self._endpoint, self.trouble)
        elif self.trouble:
            self.trouble = ""
            logger.info("traces_exported_again endpoint=%s dropped=%d", self._endpoint, self.quiet.take_dropped())
        elif _now() >= self._silent_until:
            self._tell_dropped()
        if _now() >= self._quiet_about_refused_until:
            self._tell_refused()
        return result

    def shutdown(self) -> None:
        self._tell_dropped()
        self._tell_refused()
        self._exporter.shutdown()

    def _tell_dropped(self) -> None:
        dropped = self.quiet.take_dropped()
        if dropped:
            self._silent_until = _now() + _TELL_PERIOD_S
            logger.warning("traces_dropped endpoint=%s dropped=%d", self._endpoint, dropped)

    def _tell_refused(self) -> None:
        refused, why = self.quiet.take_refused()
        if refused or why:
            self._quiet_about_refused_until = _now() + _TELL_PERIOD_S
            logger.warning(
                "traces_refused endpoint=%s spans=%d reason=%s", self._endpoint, refused, why or "none given"
            )

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002
        return True
