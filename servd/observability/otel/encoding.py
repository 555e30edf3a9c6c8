"""Spans of servd's as OTLP has them in protobuf, and the way to the library's client for that.

The library's encoder makes objects of Python's for each attribute, which takes several times as long, and keeps the loop from
running for as long.

How this works: what all spans of a process have in common, and what the library says of a span's flags, is read off what the
library's encoder makes of an example. Others' spans, and those that say what is not known here, are its business still; two
messages one behind the other are one message that has the spans of both.
"""

import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

from servd.exceptions import TransportError
from servd.observability.described import summary_of
from servd.observability.otel.span import EndedSpan
from servd.wire.grpc.protobuf import varint

_MOST_KNOWN = 1024
_LONGEST_KNOWN = 64
_OWN_METRICS = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
"""The library counts what its exporters send, if that is asked for: then they are to do it all by themselves."""
_UNIQUE = frozenset(("servd.request_id",))
"""Attributes whose values don't come again."""
_SHORT = [bytes((number,)) for number in range(128)]
_TIMES = struct.Struct("<BQBQ")
_EXAMPLE = SpanContext(1, 1, True, TraceFlags(TraceFlags.SAMPLED))

Export = Callable[[Sequence[Any]], SpanExportResult]
"""Sends `EndedSpan`s and others'. Raises `TransportError` where it is known why they do not get through."""


def exporting(exporter: SpanExporter, resource: Resource, scope: InstrumentationScope) -> Export:
    """What sends spans through an exporter; resource, scope: of servd's own."""
    send = _sender(exporter)
    if send is None:
        return lambda spans: exporter.export([one.readable() if type(one) is EndedSpan else one for one in spans])
    encoder = SpanEncoder(resource, scope)

    def export(spans: Sequence[Any]) -> SpanExportResult:
        result = send(encoder.encode(spans))
        if not result.success and (why := _why(result)):
            raise TransportError(why)
        return SpanExportResult.SUCCESS if result.success else SpanExportResult.FAILURE

    return export


def _why(result: Any) -> str:
    """What the last attempt came to, "" where that is not known: the library says at last only that it has tried for long."""
    status, reason, error = (getattr(result, name, None) for name in ("status_code", "reason", "error"))
    if status:
        return f"{status} {reason or ''}".rstrip()
    return "" if error is None else str(error) if isinstance(error, TransportError) else summary_of(error)


def _sender(exporter: SpanExporter) -> Callable[[bytes], Any] | None:
    """The part of the library's exporter that sends bytes, retries, and logs what goes wrong; None of editions without it."""
    if type(exporter) is not OTLPSpanExporter or os.environ.get(_OWN_METRICS, "").strip().lower() == "true":
        return None
    send = getattr(getattr(exporter, "_client", None), "export", None)
    return send if callable(send) else None


class SpanEncoder:
    """Encodes spans, those of servd's as ones of this resource and scope."""

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        root, below = (
            ReadableSpan("x", _EXAMPLE, parent, resource, instrumentation_scope=scope, start_time=1, end_time=1)
            for parent in (None, _EXAMPLE)
        )
        [around] = encode_spans([root, below]).resource_spans
        [spans] = around.scope_spans
        self._root_flags, self._flags = (b"\x85\x01" + struct.pack("<I", one.flags) for one in spans.spans)
        self._scope = _field(b"\x0a", spans.scope.SerializeToString())
        self._scope_end = _text(b"\x1a", spans.schema_url)
        self._resource = _field(b"\x0a", around.resource.SerializeToString())
        self._resource_end = _text(b"\x1a", around.schema_url)
        self._known: dict[tuple[str, str], bytes] = {}

    def __repr__(self) -> str:
        return f"SpanEncoder({len(self._known)} known attributes)"

    def encode(self, spans: Sequence[Any]) -> bytes:
        """The whole message."""
        own: list[bytes] = [self._scope]
        others: list[ReadableSpan] = []
        for one in spans:
            if type(one) is not EndedSpan:
                others.append(one)
                continue
            try:
                own.append(_field(b"\x12", self._span(one)))
            except (ValueError, TypeError):
                # a text that is none, numbers of any size: the library leaves out what cannot be
                others.append(one.readable())
        theirs = bytes(encode_spans(others).SerializePartialToString()) if others else b""
        if len(own) == 1:
            return theirs
        own.append(self._scope_end)
        return theirs + _field(b"\x0a", self._resource + _field(b"\x12", b"".join(own)) + self._resource_end)

    def _span(self, one: EndedSpan) -> bytes:
        span, (attributes, status) = one.span, one.said()
        if span.context.state:
            raise ValueError("what tracing systems say to themselves is the library's business")
        above = b"" if span.parent is None else b"\x22\x08" + bytes.fromhex(span.parent.span_id)
        parts = [
            b"\x0a\x10",
            bytes.fromhex(span.context.trace_id),
            b"\x12\x08",
            bytes.fromhex(span.context.span_id),
            above,
            _text(b"\x2a", span.name),
            b"\x30",
            # the wire has another value before the library's first
            _SHORT[span.kind.value + 1],
            _TIMES.pack(0x39, span.began, 0x41, one.ended),
        ]
        known = self._known
        for key, value in attributes.items():
            if type(value) is not str:
                parts.append(_attribute(key, _number(value)))
            elif key in _UNIQUE:
                parts.append(_attribute(key, _field(b"\x0a", value.encode())))
            else:
                parts.append(known.get((key, value)) or self._learn(key, value))
        code = status.status_code.value
        failed = _text(b"\x12", status.description or "") + (b"\x18" + _SHORT[code] if code else b"")
        parts += (_field(b"\x7a", failed), self._flags if above else self._root_flags)
        return b"".join(parts)

    def _learn(self, key: str, value: str) -> bytes:
        made = _attribute(key, _field(b"\x0a", value.encode()))
        if len(value) <= _LONGEST_KNOWN:
            if len(self._known) >= _MOST_KNOWN:
                # clients choose what they ask for
                self._known.clear()
            self._known[key, value] = made
        return made


def _attribute(key: str, value: bytes) -> bytes:
    return _field(b"\x4a", _text(b"\x0a", key) + _field(b"\x12", value))


def _number(value: Any) -> bytes:
    """A value that is no text; raises TypeError for those that are none of these kinds either."""
    kind = type(value)
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if kind is int:
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{value} has more than 64 bits")
        return b"\x18" + varint(value & (2**64 - 1))
    if kind is float:
        return b"\x21" + struct.pack("<d", value)
    raise TypeError(f"{kind.__name__} is no kind of value that spans of servd's have")


def _text(tag: bytes, value: str) -> bytes:
    return _field(tag, value.encode()) if value else b""


def _field(tag: bytes, data: bytes) -> bytes:
    size = len(data)
    return b"".join((tag, _SHORT[size] if size < 128 else varint(size), data))
