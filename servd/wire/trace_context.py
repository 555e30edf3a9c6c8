"""W3C Trace Context: what the headers `traceparent` and `tracestate` say, and how they go on. Pure.

Source: W3C Trace Context, level 2.
"""

import re
from collections.abc import Iterable, Sequence

from servd.ground.quick_dataclass import dataclass

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"
METADATA = (TRACEPARENT.decode(), TRACESTATE.decode())
"""The same names among metadata of gRPC."""
SAMPLED = 1
"""Flag: whoever made the span above records it."""
RANDOM = 2
"""Flag: the trace's id is random."""
MOST_MEMBERS = 32
"""Of a `tracestate`; one with more is no `tracestate`."""
LONGEST_STATE = 512
"""Characters of a `tracestate` that goes on."""

_KNOWN_FLAGS = SAMPLED | RANDOM
_LONG_MEMBER = 128
_PARENT_BYTES = 55
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_MEMBER = re.compile(r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})="
                     r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")  # fmt: skip
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace.

    trace_id: 32 hex digits. span_id: 16, of the span above what is to come. flags: `SAMPLED`, `RANDOM`.
    state: what tracing systems have to say to themselves, "" = nothing.
    """

    trace_id: str
    span_id: str
    flags: int = 0
    state: str = ""

    @property
    def is_sampled(self) -> bool:
        """Whether its spans are recorded."""
        return bool(self.flags & SAMPLED)

    @property
    def traceparent(self) -> str:
        """The header's value."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def read_trace(traceparent: str | bytes, tracestate: str | bytes = "") -> TraceContext | None:
    """What a pair of headers says; None where `traceparent` is not valid.

    A `traceparent` of a later version counts as far as this one reaches. Without a valid `tracestate` the trace goes on without
    it. Several headers of a name are to be joined by commas: of `traceparent` there may be one only.
    """
    found = _PARENT.fullmatch(_text(traceparent).strip(" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, further = found.groups()
    if version == "ff" or (version == "00" and further is not None) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS, read_state(_text(tracestate)))


def read_state(text: str) -> str:
    """A `tracestate` as it goes on: "" for none that is valid; of one that is too long, long members go first, then the last."""
    if not text:
        return ""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > MOST_MEMBERS or len(keys) < len(members) or not all(map(_MEMBER.fullmatch, members)):
        return ""
    if len(",".join(members)) > LONGEST_STATE:
        members = [member for member in members if len(member) <= _LONG_MEMBER]
    while len(",".join(members)) > LONGEST_STATE:
        members.pop()
    return ",".join(members)


def with_trace(headers: Iterable[tuple[bytes, bytes]], trace: TraceContext) -> list[tuple[bytes, bytes]]:
    """The headers with this trace in place of what they say of one. Names are in lower case."""
    pairs = [pair for pair in headers if pair[0] not in (TRACEPARENT, TRACESTATE)]
    pairs.append((TRACEPARENT, trace.traceparent.encode()))
    if trace.state:
        pairs.append((TRACESTATE, trace.state.encode()))
    return pairs


def trace_in(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
    """What headers say, None for nothing valid. Names are in lower case."""
    said: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in (TRACEPARENT, TRACESTATE):
            said[name] = f"{_text(said[name])},{_text(value)}".encode("latin-1") if name in said else value
    return read_trace(said[TRACEPARENT], said.get(TRACESTATE, b"")) if TRACEPARENT in said else None


def trace_put_in(headers: Sequence[tuple[bytes, bytes]]) -> TraceContext | None:
    """What headers say that come from `with_trace`: without a look at what they cannot say."""
    name, value = headers[-1]
    # the usual one is by itself, and as long as this
    if name != TRACEPARENT or len(value) != _PARENT_BYTES:
        return trace_in(headers)
    text = value.decode("latin-1")
    return TraceContext(text[3:35], text[36:52], int(text[53:], 16))


def trace_in_metadata(pairs: Iterable[tuple[str, str | bytes]]) -> TraceContext | None:
    """As `trace_in`, of metadata of gRPC."""
    return trace_in(
        (key.encode(), value.encode()) for key, value in pairs if key in METADATA and isinstance(value, str)
    )


def packed(trace: TraceContext) -> bytes:
    """As `traceparent`, a space and `tracestate`: what goes with a handle call."""
    return f"{trace.traceparent} {trace.state}".encode()


def unpacked(data: bytes) -> TraceContext | None:
    """The trace behind `packed`."""
    parent, _, state = _text(data).partition(" ")
    return read_trace(parent, state)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else bytes(value).decode("latin-1")
