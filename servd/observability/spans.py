"""Spans of this process: what records them, if anything does, and what the application's OpenTelemetry knows of the place in a
trace. Nothing is loaded for that before somebody needs it.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

from servd.ground import entry
from servd.observability.trace_context import TraceContext
from servd.observability.trace_settings import MISSING, Sampling, TraceSettings, trace_settings

LIBRARY = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
"""What must be there to record anything."""
RECORDER = "servd.observability.otel_spans"
FLUSH_LIMIT_S = 2.0
"""What the end of a process may wait for the last spans to leave."""

_API = "opentelemetry.trace"
_CONTEXT = "servd.observability.otel_context"

Attributes = Mapping[str, Any]

has_met_traces = False
"""Whether requests of this process have been part of a trace; else nobody looks at each of them."""

logger = logging.getLogger(__name__)


class Span(Protocol):
    """One that is open. context: for those below it."""

    context: TraceContext

    def note(self, attributes: Attributes) -> None:
        """Add attributes; None as a value adds nothing."""
        ...

    def fail(self, error: BaseException) -> None:
        """What it stands for failed with this."""
        ...

    def fail_as(self, kind: str) -> None:
        """What it stands for failed. kind: of error, a word."""
        ...

    def end(self, at: float | None = None) -> None:
        """Close it; later calls do nothing. at: monotonic seconds, by default now."""
        ...


class Spans(Protocol):
    """What records spans.

    name: of the deployment, or what else runs here. begins: calls of this process that are part of no trace begin one.
    """

    sampling: Sampling
    name: str
    begins: bool

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
        """Open a span that is recorded, below `parent`, or as the first of a trace.

        kind: "server", "client" or "internal". began: monotonic seconds, by default now.
        """
        ...

    def enter(self, span: Span) -> None:
        """Let spans of the application's be below this one, in the current context."""
        ...

    def serve_application(self, in_request: Callable[[], bool]) -> None:
        """Record spans of the application's too, unless it has set something up that does.

        in_request: whether the code that runs serves a request: what is part of no trace then was decided against.
        """
        ...

    def flush(self, limit_s: float) -> None:
        """Send what waits, within the limit; this process is about to end."""
        ...


_installed: list[Spans] = []


def installed() -> Spans | None:
    """What records the spans of this process; None where nobody does."""
    return _installed[0] if _installed else None


def install(spans: Spans | None) -> None:
    """Record spans of this process with these from now on; None: no more."""
    _installed[:] = [] if spans is None else [spans]


def wanted() -> TraceSettings | None:
    """What the environment asks for; None where it asks for nothing, and for what cannot be, of which a line tells."""
    try:
        return trace_settings()
    except ValueError as error:
        logger.warning("traces_off reason=%s", error)
        return None


def preload() -> None:
    """Load what records spans, where that is wanted: once for all that this process will fork. No thread starts."""
    if wanted() is not None:
        _recorder()


def begin(name: str, instance_id: str, attributes: Attributes, *, begins: bool = False) -> Spans | None:
    """Record the spans of this process where the environment asks for that; threads start with the first span.

    Args:
        instance_id: of the process. attributes: of all its spans that are servd's.
    """
    settings = wanted()
    recorder = _recorder() if settings is not None else None
    if settings is None or recorder is None:
        return None
    spans: Spans = recorder.OtelSpans(settings, name, instance_id, attributes, begins)
    install(spans)
    logger.info("traces_on endpoint=%s ratio=%g", settings.shown, settings.sampling.ratio)
    return spans


def _recorder() -> ModuleType | None:
    try:
        return entry.load(RECORDER)
    # an application may bring along whatever edition of the library
    except (ImportError, AttributeError) as error:
        logger.warning("traces_off reason=%s (%s)", MISSING, error)
        return None


def end(limit_s: float = FLUSH_LIMIT_S) -> None:
    """Send what waits; the process is about to end."""
    if _installed:
        _installed[0].flush(limit_s)


def is_api_loaded() -> bool:
    """Whether somebody here may have spans of OpenTelemetry."""
    return _API in sys.modules


def meet_traces() -> None:
    """A request is part of a trace."""
    global has_met_traces
    has_met_traces = True


def here() -> TraceContext | None:
    """The innermost span of the current context that OpenTelemetry knows; None without."""
    return _context().current() if _API in sys.modules else None


def current_context() -> Any:
    """As OpenTelemetry's API has it; None where there is nothing in it, or nobody has loaded it."""
    return _context().as_it_is() if _API in sys.modules else None


def enter(trace: TraceContext, span: Span | None) -> None:
    """Let spans of the application's be below this place, in the current context, if it can have any."""
    if span is not None and _installed:
        _installed[0].enter(span)
    elif _API in sys.modules:
        _context().enter(trace)


def _context() -> ModuleType:
    return entry.load(_CONTEXT)
