"""The place in a trace as OpenTelemetry's API keeps it: what an application's own spans are put below."""

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from servd.observability.trace_context import TraceContext


def span_context(place: TraceContext) -> SpanContext:
    """As the API has it."""
    state = TraceState.from_header([place.state]) if place.state else None
    return SpanContext(
        int(place.trace_id, 16),
        int(place.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(place.flags),
        trace_state=state,
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
    found = trace.get_current_span(here).get_span_context()
    return place_of(found) if found.is_valid else None


def enter(place: TraceContext) -> None:
    """Let what begins in the current context be below this place."""
    context.attach(trace.set_span_in_context(NonRecordingSpan(span_context(place))))


def leave() -> None:
    """Let what begins in the current context be below nothing."""
    if context.get_current():
        context.attach(context.Context())


def as_it_is() -> context.Context | None:
    """The current context, None for an empty one."""
    return context.get_current() or None
