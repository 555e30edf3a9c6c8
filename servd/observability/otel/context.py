"""The place in a trace as OpenTelemetry's API keeps it: what an application's own spans are put below."""

from collections.abc import Mapping
from typing import Any, Protocol

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.util.types import AnyValue, Attributes

from servd.wire.trace_context import TraceContext


class _Kept(Protocol):
    """A span of servd's that the library knows nothing of before `sdk_span` is asked for. context: of itself."""

    context: TraceContext
    is_over: bool

    def sdk_span(self) -> Span: ...


class CurrentSpan(Span):
    """What an application finds as the span above its own; what it says goes to the library's. place: of the span."""

    def __init__(self, kept: _Kept) -> None:
        self._kept = kept

    def __repr__(self) -> str:
        return f"CurrentSpan({self._kept})"

    def __getattr__(self, name: str) -> Any:
        # what the library's spans have beside the API: `name`, `attributes`, ...
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._kept.sdk_span(), name)

    @property
    def place(self) -> TraceContext:
        return self._kept.context

    def get_span_context(self) -> SpanContext:
        return span_context(self._kept.context, is_remote=False)

    def is_recording(self) -> bool:
        return not self._kept.is_over

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        self._kept.sdk_span().set_attributes(attributes)

    def set_attribute(self, key: str, value: AnyValue) -> None:
        self._kept.sdk_span().set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        self._kept.sdk_span().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        self._kept.sdk_span().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self._kept.sdk_span().update_name(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._kept.sdk_span().set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        self._kept.sdk_span().record_exception(exception, attributes, timestamp, escaped)

    def end(self, end_time: int | None = None) -> None:
        self._kept.sdk_span().end(end_time)


def span_context(place: TraceContext, *, is_remote: bool = True) -> SpanContext:
    """As the API has it."""
    return SpanContext(
        int(place.trace_id, 16),
        int(place.span_id, 16),
        is_remote,
        TraceFlags(place.flags),
        TraceState.from_header([place.state]) if place.state else None,
    )


def place_of(found: SpanContext) -> TraceContext:
    """As servd has it."""
    state = found.trace_state.to_header() if found.trace_state else ""
    return TraceContext(f"{found.trace_id:032x}", f"{found.span_id:016x}", int(found.trace_flags), state)


def below(place: TraceContext | None) -> context.Context:
    """A context whose spans are below this place."""
    empty = context.Context()
    return empty if place is None else trace.set_span_in_context(NonRecordingSpan(span_context(place)), empty)


def current() -> TraceContext | None:
    """The innermost span of the current context, None without."""
    here = context.get_current()
    if not here:
        return None
    span = trace.get_current_span(here)
    if isinstance(span, CurrentSpan):
        return span.place
    found = span.get_span_context()
    return place_of(found) if found.is_valid else None


def enter(place: TraceContext) -> None:
    """Let what begins in the current context be below this place."""
    context.attach(trace.set_span_in_context(NonRecordingSpan(span_context(place))))


# the library's name for it, which it keeps to itself
(_SPAN_KEY,) = trace.set_span_in_context(trace.INVALID_SPAN, context.Context())


def enter_span(span: Span) -> None:
    """Let what begins in the current context be below this span."""
    # as the library does it, in fewer steps: of all that a traced request does this is done most
    context.attach(context.Context({**context.get_current(), _SPAN_KEY: span}))


def leave() -> None:
    """Let what begins in the current context be below nothing."""
    if context.get_current():
        context.attach(context.Context())


def as_it_is() -> context.Context | None:
    """The current context, None for an empty one."""
    return context.get_current() or None
