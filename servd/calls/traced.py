"""Requests that are part of a trace: their contexts, the calls that are made for them, and batches of them.

How this works: who takes a request of a trace in gives it a `TracedContext`. Where spans are recorded that opens one for as long
as the request runs, and what the request calls is below it, or below whatever span of its own the application has opened
inside. Processes in which no request is part of a trace, nor any application has OpenTelemetry, do none of this
(`spans.has_met_traces`).
"""

import contextvars
from collections.abc import Sequence
from typing import Any, TypeVar

from servd.calls.outgoing import BroadcastTicket, CallTicket, Outgoing
from servd.calls.request_context import RequestContext, current_request
from servd.exceptions import RemoteFailure, RequestCancelledError
from servd.ground.clock import SystemClock
from servd.ground.quick_dataclass import dataclass
from servd.observability import spans
from servd.observability.spans import Attributes, Span
from servd.wire.records import TRACED, Outbox
from servd.wire.trace_context import TraceContext, packed

_now = SystemClock().now
_Ticket = TypeVar("_Ticket", bound=CallTicket)


class TracedContext(RequestContext):
    """A request that is part of a trace. trace: where it is, itself included if it is recorded."""

    __slots__ = ("span", "trace")

    trace: TraceContext
    span: Span | None

    def end(self) -> None:
        """The request has ended, and with it its span."""
        super().end()
        if self.span is not None:
            if self.cancellations:
                self.span.note({"servd.cancelled": True})
            self.span.end()


class _Traced(CallTicket):
    """A handle call that is part of a trace."""

    __slots__ = ()

    _trace: TraceContext
    _span: Span | None

    def record(self, call_id: int, flags: int, outbox: Outbox) -> tuple[Any, ...]:
        note_wait(self, self._span)
        kind, call_id, flags, method, parts, about = super().record(call_id, flags | TRACED, outbox)
        return kind, call_id, flags, method, [*parts, packed(self._trace)], about

    def _finish(self, result: list[Any] | Exception) -> None:
        span, peer = self._span, self.peer
        if span is not None:
            if peer is not None:
                span.note({"servd.called_replica": peer.replica_id})
            if isinstance(result, RequestCancelledError):
                span.note({"servd.cancelled": True})
            elif isinstance(result, Exception):
                span.fail_as("UserCodeError" if isinstance(result, RemoteFailure) else type(result).__name__)
            span.end()
        super()._finish(result)

    def _take_back(self) -> None:
        super()._take_back()
        if self._span is not None:
            self._span.note({"servd.cancelled": True})
            self._span.end()


class _TracedTicket(_Traced):
    __slots__ = ("_span", "_trace")


class _TracedBroadcastTicket(_Traced, BroadcastTicket):
    __slots__ = ("_span", "_trace")


def note_wait(call: Outgoing, span: Span | None) -> None:
    """A request is sent now: if it has waited in line, that is a span. span: of the request; its `waits_since` begins at 0."""
    recorder = spans.installed()
    if recorder is not None and span is not None and call.waits_since:
        recorder.start("wait for replica", span.context, "internal", attributes={}, began=call.waits_since).end()
        call.waits_since = 0.0


def new_ticket(kind: type[_Ticket], deployment: str, call: tuple[Any, ...]) -> _Ticket:
    """A ticket for a call, which is part of a trace if whoever calls is, or if it begins one.

    Args:
        deployment: full name.
        call: what `CallTicket` takes.
    """
    _, _, method, _, context, *_ = call
    parent = spans.here() or context.trace
    recorder = spans.installed()
    begins = parent is None and recorder is not None and recorder.begins and recorder.sampling.begins_trace()
    if parent is None and not begins:
        return kind(*call)
    traced_kind: Any = _TracedBroadcastTicket if issubclass(kind, BroadcastTicket) else _TracedTicket
    ticket = traced_kind(*call)
    ticket.waits_since, ticket._span = 0.0, None
    if recorder is not None and (parent is None or parent.is_sampled):
        about = {"servd.called": deployment, "servd.method": method, "servd.request_id": context.request_id}
        ticket._span = recorder.start(f"{deployment}.{method}", parent, "client", attributes=about)
    ticket._trace = parent if ticket._span is None else ticket._span.context
    return ticket  # type: ignore[no-any-return]


def begun(
    context: RequestContext, trace: TraceContext, method: str, attributes: Attributes
) -> tuple[TracedContext, contextvars.Context]:
    """A request that begins to run: its context, and the variables that its task shall have.

    Args:
        context: as of a request without a trace.
        trace: what came with it.
        method: of the deployment, for the span's name.
    """
    spans.meet_traces()
    traced, recorder = _with_trace(context, trace), spans.installed()
    if recorder is not None and trace.is_sampled:
        about = {"servd.method": method, "servd.request_id": context.request_id, **attributes}
        traced.span = recorder.start(f"{recorder.name}.{method}", trace, "server", attributes=about)
        traced.trace = traced.span.context
    variables = contextvars.copy_context()
    variables.run(spans.enter, traced.trace, traced.span)
    return traced, variables


def _with_trace(context: RequestContext, trace: TraceContext) -> TracedContext:
    traced = TracedContext(
        context.request_id,
        context.route,
        context.app_name,
        context.multiplexed_model_id,
        context.deadline,
        context.depth,
        context.ancestors,
        context.pattern,
    )
    traced.trace, traced.span = trace, None
    return traced


@dataclass(frozen=True, slots=True)
class Waiting:
    """An item of a trace that waits for its batch. since: monotonic seconds."""

    trace: TraceContext
    since: float


def waiting() -> Waiting | None:
    """What is to be known of an item that comes to wait now; None of one without a trace."""
    trace = spans.here() or current_request.get().trace
    return None if trace is None else Waiting(trace, _now())


def begun_batch(request: RequestContext, name: str, items: Sequence[Waiting | None]) -> RequestContext:
    """What a batch runs for: if some of its items are part of traces, below the first of them, with links to all.

    Args:
        request: as of a batch without a trace.
        name: of the function.
        items: of the batch, in order.
    """
    known = [item for item in items if item is not None]
    if not known:
        # its task has the variables of whichever item let it form
        spans.leave()
        return request
    sampled = [item for item in known if item.trace.is_sampled]
    first = (sampled or known)[0].trace
    traced, recorder = _with_trace(request, first), spans.installed()
    if recorder is not None and sampled:
        links = [item.trace for item in sampled]
        about = {"servd.batch_size": len(items), "servd.function": name}
        span = traced.span = recorder.start(f"batch {name}", first, "internal", attributes=about, links=links)
        traced.trace = span.context
        for item in sampled:
            below = recorder.start(
                "wait for batch", item.trace, "internal", attributes={}, links=[span.context], began=item.since
            )
            below.end()
    spans.enter(traced.trace, traced.span)
    return traced


def ids() -> tuple[str, str]:
    """Ids of the trace and of the span in which the current request is, for logs; "" without."""
    trace = current_request.get().trace
    if spans.has_met_traces:
        trace = spans.here() or trace
    return ("", "") if trace is None else (trace.trace_id, trace.span_id)
