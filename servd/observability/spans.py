"""Spans of this process: what records them, if anything does, and what the application's OpenTelemetry knows of the place in a
trace. Nothing is loaded for that before somebody needs it.
"""

import contextlib
import functools
import importlib
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import urlsplit

from servd.ground.ids import SYSTEM
from servd.ground.quick_dataclass import dataclass
from servd.observability.described import summary_of
from servd.wire.trace_context import TraceContext

ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
RATIO = "TRACING_SAMPLING_RATIO"
"""Of servd and of Ray Serve (`RAY_SERVE_...`); it wins over `OTEL_TRACES_SAMPLER`."""
MISSING = "exporting traces needs OpenTelemetry: pip install 'servd-serve[otel]'"

_BASE_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PATH = "/v1/traces"
_HTTP = "http/protobuf"
_SAMPLERS = ("always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off",
             "parentbased_traceidratio")  # fmt: skip
_DIGITS = 16
_QUERY = re.compile(r"[?#][^\s'\"]*")
_HEADER = re.compile(r"(?<=header )(value|name)\b.*", re.IGNORECASE | re.DOTALL)
_USER = re.compile(r"(?<=//)[^\s'\"]*@|^(?!\w+://)[^\s'\"]*@")
LIBRARY = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
"""What must be there to record anything."""
RECORDER = "servd.observability.otel.spans"
NEVER = sys.maxsize // 2
"""More requests than there will be."""
FLUSH_LIMIT_S = 2.0
"""What the end of a process may wait for the last spans to leave."""

_API = "opentelemetry.trace"
_CONTEXT = "servd.observability.otel.context"
_OTHER_SIGNALS = frozenset(("opentelemetry.sdk.metrics", "opentelemetry.sdk._logs"))

Attributes = Mapping[str, Any]

Ending = Callable[[], tuple[Attributes, str]]
"""Attributes, and the kind of error, a word, "" for none: of a span that is over, asked for when it is sent."""

has_met_traces = False
"""Whether requests of this process may be part of a trace; else nobody looks at each of them."""

leaves_frameworks_out = False
"""Whether a web framework that traces by itself wherever a provider is set up shall leave out requests of which nothing is
recorded: servd has set it up, for the sake of those that are."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which traces are recorded. ratio: of those that begin here, in [0, 1]. follows_parent: others as their callers have it."""

    ratio: float = 1.0
    follows_parent: bool = True

    def begins_trace(self) -> bool:
        """Whether a request that is part of no trace begins one; another answer each time."""
        return SYSTEM.random() < self.ratio

    def gap(self) -> int:
        """How many requests further on the next one begins a trace, as if each were asked: >= 1, `NEVER` at most."""
        if self.ratio >= 1:
            return 1
        if self.ratio <= 0:
            return NEVER
        return int(min(1 + math.log(1 - SYSTEM.random()) / math.log1p(-self.ratio), NEVER))

    def wants(self, parent: TraceContext) -> bool:
        """Whether a request that is part of a trace already is recorded.

        Source: OpenTelemetry, TraceIdRatioBased: by the low 64 bits of the trace's id, so that all who use a ratio agree.
        """
        if self.follows_parent:
            return parent.is_sampled
        return int(parent.trace_id[-_DIGITS:], 16) < self.ratio * 16.0**_DIGITS


NOTHING_RECORDED = Sampling(0.0, follows_parent=False)
"""No trace is, whatever its caller says."""


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """endpoint: full URL to which spans are posted, as OTLP in protobuf."""

    endpoint: str
    sampling: Sampling

    @property
    def shown(self) -> str:
        """The endpoint for logs: who it is that sends is nobody's business."""
        parts = urlsplit(self.endpoint)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


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

    def end(self, at: float | None = None, ending: Ending | None = None) -> None:
        """Close it; later calls do nothing. at: monotonic seconds, by default now. ending: the last that is said of it."""
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


_installed: Spans | None = None


def installed() -> Spans | None:
    """What records the spans of this process; None where nobody does."""
    return _installed


def install(spans: Spans | None) -> None:
    """Record spans of this process with these from now on; None: no more."""
    global _installed
    _installed = spans


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
    try:
        spans: Spans = recorder.OtelSpans(settings, name, instance_id, attributes, begins)
    # what the library makes of its variables
    except Exception as error:
        logger.warning("traces_off reason=%s", summary_of(error))
        return None
    install(spans)
    if left_out := propagators_left_out():
        logger.warning("traces_variable_left_out endpoint=%s reason=%s", settings.shown, left_out)
    logger.info("traces_on endpoint=%s ratio=%g", settings.shown, settings.sampling.ratio)
    return spans


def _recorder() -> ModuleType | None:
    try:
        return importlib.import_module(RECORDER)
    # an application may bring along whatever edition of the library, or of protobuf, which raises TypeError
    except Exception as error:
        logger.warning("traces_off reason=%s (%s)", MISSING, summary_of(error))
        return None


def end() -> None:
    """Send what waits; the process is about to end."""
    if (recorder := _installed) is not None:
        recorder.flush(FLUSH_LIMIT_S)


async def end_beside() -> None:
    """As `end`, beside the loop; without a thread to spare what waits is lost."""
    # commands read settings of traces, and have no loop
    import asyncio

    if _installed is not None:
        with contextlib.suppress(RuntimeError):
            await asyncio.to_thread(end)


def meet_traces() -> None:
    """A request is part of a trace, or may be."""
    global has_met_traces
    has_met_traces = True


def expect_traces() -> None:
    """As `meet_traces`, if the application has loaded OpenTelemetry, or spans are recorded here."""
    if _API in sys.modules or _installed is not None:
        meet_traces()


def leave_frameworks_out() -> None:
    """The provider is servd's. Where the application has metrics or logs of the library's, frameworks report for those too."""
    global leaves_frameworks_out
    leaves_frameworks_out = not _OTHER_SIGNALS.intersection(sys.modules)


def here() -> TraceContext | None:
    """The innermost span of the current context that OpenTelemetry knows; None without."""
    return _context().current() if _API in sys.modules else None


def current_context() -> Any:
    """As OpenTelemetry's API has it; None where there is nothing in it, or nobody has loaded it."""
    return _context().as_it_is() if _API in sys.modules else None


def enter(trace: TraceContext, span: Span | None) -> None:
    """Let spans of the application's be below this place, in the current context, if it can have any."""
    # any thread may find that there is no room for one that sends
    if span is not None and (recorder := _installed) is not None:
        recorder.enter(span)
    elif _API in sys.modules:
        _context().enter(trace)


def leave() -> None:
    """Let spans of the application's be in no trace, in the current context, if it can have any."""
    if _API in sys.modules:
        _context().leave()


@functools.cache
def _context() -> ModuleType:
    return importlib.import_module(_CONTEXT)


def trace_settings(environment: Mapping[str, str] | None = None) -> TraceSettings | None:
    """What the environment asks for, by default this process's; None: nothing is recorded.

    Raises:
        ValueError: it asks for what cannot be; the text names the variable.
    """
    given = os.environ if environment is None else environment
    said = {name: value.strip() for name, value in given.items() if value.strip()}
    endpoint = said.get(ENDPOINT) or said.get(_BASE_ENDPOINT, "")
    if not endpoint or said.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    exporters = [name.strip().lower() for name in said.get("OTEL_TRACES_EXPORTER", "otlp").split(",")]
    if not {"otlp", "otlp_proto_http"}.intersection(exporters):
        if exporters != ["none"]:
            raise ValueError(f"OTEL_TRACES_EXPORTER={said['OTEL_TRACES_EXPORTER']}: servd exports traces by otlp only")
        return None
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if name in said:
            if said[name] != _HTTP:
                raise ValueError(f"{name}={said[name]}: servd exports traces as {_HTTP} only (collectors: port 4318)")
            break
    if ENDPOINT not in said:
        endpoint = f"{_checked_url(endpoint, _BASE_ENDPOINT).rstrip('/')}{_PATH}"
    return TraceSettings(_checked_url(endpoint, ENDPOINT), _sampling(said))


def propagators_left_out() -> str:
    """What servd does not do of the propagators that the environment names, for people; "" where it does what counts."""
    named = [name.strip() for name in os.environ.get("OTEL_PROPAGATORS", "").lower().split(",")]
    if named == [""] or "tracecontext" in named:
        return ""
    return f"OTEL_PROPAGATORS={','.join(named)}: servd reads and passes on traces as tracecontext only"


def traces_endpoint(url: str, name: str) -> str:
    """The endpoint behind an option's value: of a bare address the path is the usual one.

    Raises:
        ValueError: it is no such URL. name: of the option, for the text.
    """
    return f"{url.rstrip('/')}{_PATH}" if not urlsplit(_checked_url(url, name)).path.strip("/") else url


def variables_for(endpoint: str) -> dict[str, str]:
    """What lets a process and those that it starts send spans there, whatever else their environment says."""
    return {
        ENDPOINT: endpoint,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": _HTTP,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_SDK_DISABLED": "false",
    }


def _checked_url(url: str, name: str) -> str:
    """The URL; name: of where it was given, for the text.

    Raises:
        ValueError: it has no scheme http or https, or no host.
    """
    try:
        parts = urlsplit(url)
        is_fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_fine = False
    if not is_fine:
        raise ValueError(f"{name}: {without_secrets(url)!r} is no URL such as http://127.0.0.1:4318")
    return url


def without_secrets(text: str) -> str:
    """A text with URLs, sound or not, or about a header, for logs: all that may be a name, a password or a key is left out."""
    return _USER.sub("", _QUERY.sub("", _HEADER.sub(r"\1", text)))


def ratio_of(text: str, name: str) -> float:
    """The share of traces to record.

    Raises:
        ValueError: no number in [0, 1]. name: of where it was given, for the text.
    """
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, it is {text!r}")
    return ratio


def _sampling(said: Mapping[str, str]) -> Sampling:
    for name in (f"SERVD_{RATIO}", f"RAY_SERVE_{RATIO}"):
        if name in said:
            return Sampling(ratio_of(said[name], name))
    sampler = said.get("OTEL_TRACES_SAMPLER", "parentbased_always_on").lower()
    if sampler not in _SAMPLERS:
        raise ValueError(f"OTEL_TRACES_SAMPLER must be one of {', '.join(_SAMPLERS)}, it is {sampler!r}")
    kind = sampler.removeprefix("parentbased_")
    ratio = {"always_on": 1.0, "always_off": 0.0}.get(kind)
    if ratio is None:
        ratio = ratio_of(said.get("OTEL_TRACES_SAMPLER_ARG", "1"), "OTEL_TRACES_SAMPLER_ARG")
    return Sampling(ratio, follows_parent=kind != sampler)
