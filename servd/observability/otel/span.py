"""One span of servd's, as little as possible while its request runs.

How this works: what servd says of a span is kept as it was said, and put together when it is sent, with hundreds of others: what
runs a few hundred times a second is in no cache, and takes several times as long as what runs for each request. The
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
from servd.observability.otel.context import below, span_context
from servd.observability.spans import Attributes, Ending
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
    attributes: dict[str, Any]
    take: Callable[["EndedSpan"], None]


def are_limited() -> bool:
    """Whether the environment limits what spans of servd's may say."""
    limits = SpanLimits()
    most = limits.max_span_attributes
    return limits.max_span_attribute_length is not None or (most is not None and most < _MOST_ATTRIBUTES)


class OtelSpan:
    """One that is open; see `spans.Span`. context: of itself. began: nanoseconds of the wall clock."""

    __slots__ = (
        "_lock",
        "_offset_s",
        "_said",
        "_sdk_span",
        "began",
        "context",
        "is_over",
        "kind",
        "name",
        "origin",
        "parent",
        "status",
    )

    def __init__(
        self,
        origin: Origin,
        name: str,
        parent: TraceContext | None,
        kind: SpanKind,
        attributes: Attributes,
        began: float | None,
    ) -> None:
        """attributes: it keeps them; None as a value adds nothing. began: monotonic seconds, by default now."""
        self.origin = origin
        self.name = name
        self.parent = parent
        self.kind = kind
        self._said = [attributes]
        self.status = _UNSET
        self._sdk_span: trace.Span | None = None
        # threads of the application may change it while the loop does
        self._lock = threading.Lock()
        # a clock that was set shows in the next one
        self._offset_s = _clock.wall_time() - _now()
        self.began = self._nanos(began)
        self.is_over = False
        # see `UnseededIds`
        if parent is None:
            ids = os.urandom(24).hex()
            self.context = TraceContext(ids[:32], ids[32:], SAMPLED | RANDOM)
        else:
            span_id = os.urandom(8).hex()
            self.context = TraceContext(parent.trace_id, span_id, SAMPLED | parent.flags & RANDOM, parent.state)

    def __repr__(self) -> str:
        return f"OtelSpan({self.context.traceparent}{', over' if self.is_over else ''})"

    def note(self, attributes: Attributes) -> None:
        """Add attributes."""
        with self._lock:
            if self.is_over:
                return
            if self._sdk_span is None:
                self._said.append(attributes)
            else:
                self._sdk_span.set_attributes(_known(attributes))

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
            if self.is_over:
                return
            self.status = Status(StatusCode.ERROR, text)
            if self._sdk_span is not None:
                self._sdk_span.set_status(self.status)

    def end(self, at: float | None = None, ending: Ending | None = None) -> None:
        """Close it."""
        ended = self._nanos(at)
        with self._lock:
            if self.is_over:
                return
            self.is_over = True
        if self._sdk_span is None:
            self.origin.take(EndedSpan(self, ended, ending))
            return
        if ending is not None:
            said, kind = ending()
            self._sdk_span.set_attributes(_known(said))
            if kind:
                self._sdk_span.set_attribute("error.type", kind)
                self._sdk_span.set_status(Status(StatusCode.ERROR))
        self._sdk_span.end(ended)

    def sdk_span(self, links: Sequence[TraceContext] = ()) -> trace.Span:
        """The library's own from now on, of the same place. Of one that is over nothing is recorded any more."""
        with self._lock:
            if self._sdk_span is None:
                if self.is_over:
                    return trace.NonRecordingSpan(span_context(self.context, is_remote=False))
                self.origin.ids.place = self.context
                self._sdk_span = self.origin.tracer.start_span(
                    self.name,
                    below(self.parent),
                    self.kind,
                    self.attributes(),
                    [Link(span_context(place)) for place in links],
                    self.began,
                )
                self._sdk_span.set_status(self.status)
            return self._sdk_span

    def attributes(self) -> dict[str, Any]:
        """All that was said of it so far, the last word on each."""
        found = dict(self.origin.attributes)
        for said in self._said:
            found.update(_known(said))
        return found

    def _nanos(self, at: float | None) -> int:
        return int(((_now() if at is None else at) + self._offset_s) * 1e9)


def _known(said: Attributes) -> dict[str, Any]:
    return {key: value for key, value in said.items() if value is not None}


class EndedSpan:
    """One that is over, and that the library knows nothing of. ended: nanoseconds of the wall clock."""

    __slots__ = ("_ending", "ended", "span")

    def __init__(self, span: OtelSpan, ended: int, ending: Ending | None) -> None:
        self.span = span
        self.ended = ended
        self._ending = ending

    def __repr__(self) -> str:
        return f"EndedSpan({self.span})"

    def said(self) -> tuple[dict[str, Any], Status]:
        """Its attributes, and whether it failed."""
        attributes, status = self.span.attributes(), self.span.status
        if self._ending is not None:
            more, kind = self._ending()
            attributes.update(_known(more))
            if kind:
                attributes["error.type"] = kind
                status = Status(StatusCode.ERROR)
        return attributes, status

    def readable(self) -> ReadableSpan:
        """As the library has it."""
        span, origin = self.span, self.span.origin
        attributes, status = self.said()
        return ReadableSpan(
            span.name,
            span_context(span.context, is_remote=False),
            None if span.parent is None else span_context(span.parent),
            origin.resource,
            attributes,
            kind=span.kind,
            status=status,
            start_time=span.began,
            end_time=self.ended,
            instrumentation_scope=origin.scope,
        )
