"""Requests that come with a trace, or begin one, at the process that takes them in from outside."""

from functools import partial
from typing import Any

from servd.observability.spans import NEVER, Attributes, Span, Spans, meet_traces
from servd.wire.grpc.codes import Code
from servd.wire.trace_context import SAMPLED, TRACEPARENT, TraceContext

BEGINS = b":begins"
"""Among the headers of a request that begins a trace: no header has such a name."""
SAID = frozenset((TRACEPARENT, BEGINS))
"""Names of which one is there in a request that may be part of a trace."""
RESPONSE = b"traceresponse"

_PATH_CHARACTERS = 1024
_GAPS_AT_ONCE = 32


class TracedId(bytes):
    """The id of a request that is part of a trace, which goes wherever the id goes.

    trace: for whoever serves it. span: what is recorded of it here, None where nothing is.
    """

    trace: TraceContext
    span: Span | None

    @property
    def response(self) -> bytes:
        """Value of the header `traceresponse`, as of the W3C draft: of what is recorded here, else what the client sent."""
        return self.trace.traceparent.encode()

    def end(self, note: tuple[Any, ...]) -> None:
        """The request has ended as its note in the journal says."""
        if self.span is not None:
            self.span.end(note[4], partial(_told, note))


def _told(note: tuple[Any, ...]) -> tuple[Attributes, str]:
    """What the span of a request says in the end; see `spans.Ending`."""
    (_, app, deployment, _), _, status, _, _, _, path, _, client, replica = note
    about: dict[str, Any] = {
        "servd.application": app or None,
        "servd.deployment": (deployment.removeprefix(f"{app}_") if app else deployment) or None,
        "servd.replica": replica or None,
        "client.address": client or None,
    }
    if isinstance(status, int):
        about["http.response.status_code"] = status
        about["url.path"] = path[:_PATH_CHARACTERS].decode(errors="backslashreplace")
        failed = status >= 500
    else:
        about["rpc.grpc.status_code"] = int(Code[status])
        failed = status in _FAILED
    return about, str(status) if failed else ""


# those that are the server's fault. Source: OpenTelemetry, semantic conventions of gRPC
_FAILED = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


def traced_id(request_id: str | bytes, trace: TraceContext, span: Span | None = None) -> TracedId:
    """The id with its place."""
    made = TracedId(request_id.encode() if isinstance(request_id, str) else request_id)
    made.trace, made.span = trace, span
    return made


class HeadTraces:
    """Finds the traces of requests, or begins some. spans: what records them, None for nobody.

    until_next: which of the requests to come begins a trace, counted down by who takes them in; at 0 `begins_now` is to be asked.
    """

    def __init__(self, spans: Spans | None = None) -> None:
        self._spans = spans
        self._gaps: list[int] = []
        self.until_next = self._gap()

    def __repr__(self) -> str:
        return f"HeadTraces({self._spans})"

    @property
    def can_begin(self) -> bool:
        """Whether requests without a trace may begin one."""
        return self._spans is not None and self._spans.sampling.ratio > 0

    def begins(self) -> bool:
        """Whether this request begins a trace if its client has begun none; counts on."""
        self.until_next -= 1
        return self.until_next <= 0 and self.begins_now()

    def begins_now(self) -> bool:
        """Whether the request to which `until_next` has come begins a trace; counts on from there."""
        # that nothing is recorded any more may have turned out meanwhile
        can_begin = self.can_begin
        self.until_next = self._gap()
        return can_begin

    def _gap(self) -> int:
        if self._spans is None:
            return NEVER
        if not self._gaps:
            # each by itself would be drawn by code that is in no cache
            self._gaps = [self._spans.sampling.gap() for _ in range(_GAPS_AT_ONCE)]
        return self._gaps.pop()

    def taken_in(
        self,
        request_id: bytes,
        parent: TraceContext | None,
        name: str,
        attributes: Attributes,
        *,
        began: float,
        begins: bool,
    ) -> TracedId | None:
        """The id of a request that is part of a trace, with its place there; None for others.

        Args:
            parent: what its client says; None = nothing valid.
            name: for a span. began: monotonic seconds.
            begins: it begins a trace if its client has begun none.
        """
        spans = self._spans
        if parent is None and (spans is None or not begins):
            return None
        meet_traces()
        if spans is None:
            assert parent is not None
            return traced_id(request_id, parent)
        if parent is not None and not spans.sampling.wants(parent):
            return traced_id(
                request_id, TraceContext(parent.trace_id, parent.span_id, parent.flags & ~SAMPLED, parent.state)
            )
        about = {**attributes, "servd.request_id": request_id.decode()}
        span = spans.start(name, parent, "server", attributes=about, began=began)
        return traced_id(request_id, span.context, span)
