"""`traceparent` and `tracestate`: what is read, what is refused, and what goes on."""

import pytest

from servd.wire.trace_context import (
    RANDOM,
    SAMPLED,
    TraceContext,
    packed,
    read_state,
    read_trace,
    trace_in,
    trace_put_in,
    unpacked,
    with_trace,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("said", "flags"),
    [
        (GOOD, 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-02", 2),
        # bits that nobody knows go no further
        (f"00-{TRACE}-{SPAN}-ff", 3),
        (f"  {GOOD}\t", 1),
        # a later version may say more
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", 1),
    ],
)
def test_valid(said: str, flags: int) -> None:
    found = read_trace(said.encode())
    assert found == TraceContext(TRACE, SPAN, flags)
    assert found.traceparent == f"00-{TRACE}-{SPAN}-{flags:02x}"
    assert found.is_sampled == bool(flags & 1)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"01-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN[:-1]}g-01",
        f"00_{TRACE}_{SPAN}_01",
        # two headers
        f"{GOOD},{GOOD}",
        f"{GOOD}\n",
        "\xff" * 55,
    ],
)
def test_invalid(said: str) -> None:
    assert read_trace(said.encode("latin-1"), "a=1") is None
    assert trace_in([(b"traceparent", said.encode("latin-1"))]) is None


@pytest.mark.parametrize(
    ("said", "goes_on"),
    [
        ("", ""),
        ("a=1", "a=1"),
        (" rojo=00f067aa0ba902b7 ,\tcongo=t61rcWkgMzE,", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("fw529a3039@dt=FfAK,1tenant@a=x", "fw529a3039@dt=FfAK,1tenant@a=x"),
        ("a= b c", "a= b c"),
        # not valid as a whole
        ("a", ""),
        ("a=", ""),
        ("A=1", ""),
        ("1=1", ""),
        ("a=1,a=2", ""),
        ("a=1,b=x=y", ""),
        ("a@=1", ""),
        (f"{'a' * 257}=1", ""),
        (f"a={'x' * 257}", ""),
        ("a=\x7f", ""),
        ("a=ä", ""),
        (",".join(f"k{i}=1" for i in range(33)), ""),
        # too long: long members first, then the last ones
        (",".join(f"k{i}=1" for i in range(32)), ",".join(f"k{i}=1" for i in range(32))),
        (f"a=1,b={'x' * 256},c={'x' * 255},d=4", "a=1,d=4"),
        (",".join(f"k{i}={'x' * 100}" for i in range(6)), ",".join(f"k{i}={'x' * 100}" for i in range(4))),
    ],
)
def test_state(said: str, goes_on: str) -> None:
    assert read_state(said) == goes_on
    found = read_trace(GOOD, said)
    assert found == TraceContext(TRACE, SPAN, 1, goes_on), "the trace goes on whatever its state is"


@pytest.mark.parametrize("state", ["", "a=1"])
@pytest.mark.parametrize("flags", [0, SAMPLED, RANDOM | SAMPLED])
def test_what_a_process_has_put_in_another_reads(flags: int, state: str) -> None:
    trace = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", flags, state)
    assert trace_put_in(with_trace([(b"host", b"h"), (b"traceparent", b"x")], trace)) == trace
    assert trace_put_in([(b"traceparent", b"short")]) is None


def test_headers_of_a_request() -> None:
    trace = TraceContext(TRACE, SPAN, 1, "a=1,b=2")
    headers = [(b"traceparent", b"nonsense"), (b"host", b"h"), (b"tracestate", b"old=1"), (b"tracestate", b"old=2")]
    sent = with_trace(headers, trace)
    assert sent == [(b"host", b"h"), (b"traceparent", GOOD.encode()), (b"tracestate", b"a=1,b=2")]
    assert trace_in(sent) == trace
    split = [(b"traceparent", GOOD.encode()), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    assert trace_in(split) == trace
    assert trace_in([(b"host", b"h")]) is None
    assert with_trace([], TraceContext(TRACE, SPAN)) == [(b"traceparent", f"00-{TRACE}-{SPAN}-00".encode())]


@pytest.mark.parametrize("state", ["", "a=1,b= x y"])
def test_what_goes_with_a_handle_call(state: str) -> None:
    trace = TraceContext(TRACE, SPAN, 1, state)
    assert unpacked(packed(trace)) == trace
    assert unpacked(b"") is None
