"""One span of servd's, as little as possible while its request runs.

How this works: what servd says of a span is kept as it was said, and becomes the library's words when the span ends. The
application finds `CurrentSpan` above its own spans; the first thing it says there, or an error, makes the library's own span of
the same place, which goes on instead. To record one of those takes several times as long.
"""

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from servd.ground.clock import SystemClock
from servd.ground.quick_dataclass import dataclass
from servd.observability.described import full_name_of, summary_of
from servd.observability.failure import bounded
from servd.observability.otel_context import below, span_context
from servd.observability.spans import Attributes
from servd.observability.tracebacks import user_traceback
from servd.wire.trace_context import RANDOM, SAMPLED, TraceContext

_TEXT_CHARACTERS = 500
_MOST_ATTRIBUTES = 32
"""More than servd says of a span."""
_clock = SystemClock()
_now = _clock.now
_UNSET = Status(StatusCode.UNSET)


class OnceHashed(Resource):
    """A resource whose hash is found once: the library asks for it for each span that it sends."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class GivenIds(threading.local, IdGenerator):
    """Gives the library's spans the place that they have already. place: of the one that this thread makes next."""

    def __init__(self) -> None:
        self.place = TraceContext("", "")

    def generate_span_id(self) -> int:
        return int(self.place.span_id, 16)

    def generate_trace_id(self) -> int:
        return int(self.place.trace_id, 16)

    def is_trace_id_random(self) -> bool:
        return True


class UnseededIds(IdGenerator):
    """Gives ids that are random though the application seeds `random`, which the library's own generator draws from."""

    def generate_span_id(self) -> int:
        return int.from_bytes(os.urandom(8), "big")

    def generate_trace_id(self) -> int:
        return int.from_bytes(os.urandom(16), "big")

    def is_trace_id_random(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Origin:
    """What all spans of a process have in common. tracer: has these ids. take: is given spans that have ended."""

    tracer: trace.Tracer
    ids: GivenIds
    scope: InstrumentationScope
    resource: Resource
    take: Callable[[ReadableSpan], None]


def are_limited() -> bool:
    """Whether the environment limits what spans of servd's may say."""
    limits = SpanLimits()
    most = limits.max_span_attributes
    return limits.max_span_attribute_length is not None or (most is not None and most < _MOST_ATTRIBUTES)


class OtelSpan:
    """One that is open; see `spans.Span`. context: of itself."""

    __slots__ = (
        "_attributes",
        "_began",
        "_kind",
        "_lock",
        "_name",
        "_offset_s",
        "_origin",
        "_parent",
        "_sdk_span",
        "_status",
        "context",
        "is_over",
    )

    def __init__(
        self,
        origin: Origin,
        name: str,
        parent: TraceContext | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        began: float | None,
    ) -> None:
        """attributes: it keeps them. began: monotonic seconds, by default now."""
        self._origin = origin
        self._name = name
        self._parent = parent
        self._kind = kind
        self._attributes = attributes
        self._status = _UNSET
        self._sdk_span: trace.Span | None = None
        # threads of the application may change it while the loop does
        self._lock = threading.Lock()
        # a clock that was set shows in the next one
        self._offset_s = _clock.wall_time() - _now()
        self._began = self._nanos(began)
        self.is_over = False
        # see `UnseededIds`
        span_id = os.urandom(8).hex()
        if parent is None:
            self.context = TraceContext(os.urandom(16).hex(), span_id, SAMPLED | RANDOM)
        else:
            self.context = TraceContext(parent.trace_id, span_id, SAMPLED | parent.flags & RANDOM, parent.state)

    def __repr__(self) -> str:
        return f"OtelSpan({self.context.traceparent}{', over' if self.is_over else ''})"

    def note(self, attributes: Attributes) -> None:
        """Add attributes."""
        said = {key: value for key, value in attributes.items() if value is not None}
        with self._lock:
            if self.is_over:
                return
            if self._sdk_span is None:
                self._attributes.update(said)
            else:
                self._sdk_span.set_attributes(said)

    def fail(self, error: BaseException) -> None:
        """It failed with this, whatever code the error's class has."""
        if self.is_over:
            return
        kind = full_name_of(type(error))
        text = bounded(summary_of(error), _TEXT_CHARACTERS)
        told = {
            "exception.type": kind,
            "exception.message": text,
            "exception.stacktrace": bounded(user_traceback(error)),
        }
        self.sdk_span().add_event("exception", told, self._nanos(None))
        self.fail_as(kind, text)

    def fail_as(self, kind: str, text: str | None = None) -> None:
        """It failed."""
        self.note({"error.type": kind})
        with self._lock:
            self._status = Status(StatusCode.ERROR, text)
            if self._sdk_span is not None and not self.is_over:
                self._sdk_span.set_status(self._status)

    def end(self, at: float | None = None) -> None:
        """Close it."""
        ended = self._nanos(at)
        with self._lock:
            if self.is_over:
                return
            self.is_over = True
        if self._sdk_span is None:
            self._origin.take(self._readable(ended))
        else:
            self._sdk_span.end(ended)

    def sdk_span(self, links: Sequence[TraceContext] = ()) -> trace.Span:
        """The library's own from now on, of the same place. Of one that is over nothing is recorded any more."""
        with self._lock:
            if self._sdk_span is None:
                if self.is_over:
                    return trace.NonRecordingSpan(span_context(self.context, is_remote=False))
                self._origin.ids.place = self.context
                self._sdk_span = self._origin.tracer.start_span(
                    self._name,
                    below(self._parent),
                    self._kind,
                    self._attributes,
                    [Link(span_context(place)) for place in links],
                    self._began,
                )
                self._sdk_span.set_status(self._status)
            return self._sdk_span

    def _readable(self, ended: int) -> ReadableSpan:
        origin = self._origin
        return ReadableSpan(
            self._name,
            span_context(self.context, is_remote=False),
            None if self._parent is None else span_context(self._parent),
            origin.resource,
            self._attributes,
            kind=self._kind,
            status=self._status,
            start_time=self._began,
            end_time=ended,
            instrumentation_scope=origin.scope,
        )

    def _nanos(self, at: float | None) -> int:
        return int(((_now() if at is None else at) + self._offset_s) * 1e9)
