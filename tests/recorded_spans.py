"""Stands in for what records spans."""

from collections.abc import Callable, Sequence

from servd.observability.spans import Attributes, Ending, Sampling, Span
from servd.wire.trace_context import TraceContext


class Recorder:
    """Records spans in a list; those without a parent have the trace id 1."""

    def __init__(self, ratio: float = 1.0) -> None:
        self.sampling = Sampling(ratio)
        self.name = "recorder"
        self.begins = False
        self.spans: list[RecordedSpan] = []

    def start(
        self,
        name: str,
        parent: TraceContext | None,
        kind: str,
        *,
        attributes: Attributes,
        links: Sequence[TraceContext] = (),
        began: float | None = None,
    ) -> "RecordedSpan":
        trace_id = f"{1:032x}" if parent is None else parent.trace_id
        self.spans.append(RecordedSpan(TraceContext(trace_id, "00000000000000a1", 1), attributes))
        return self.spans[-1]

    def enter(self, span: Span) -> None:
        pass

    def serve_application(self, in_request: Callable[[], bool]) -> None:
        pass

    def flush(self, limit_s: float) -> None:
        pass


class RecordedSpan:
    """told: its attributes, also how it failed, and when it ended."""

    def __init__(self, context: TraceContext, told: Attributes) -> None:
        self.context = context
        self.told = dict(told)

    def note(self, attributes: Attributes) -> None:
        self.told |= attributes

    def fail(self, error: BaseException) -> None:
        self.told["failed"] = str(error)

    def fail_as(self, kind: str) -> None:
        self.told["failed"] = kind

    def end(self, at: float | None = None, ending: Ending | None = None) -> None:
        about, kind = ({}, "") if ending is None else ending()
        self.told |= about
        if kind:
            self.told["failed"] = kind
        self.told["ended"] = at
