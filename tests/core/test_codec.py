"""Messages to bytes and back, whatever a user's JSON holds, and whatever bytes come instead."""

import itertools
from dataclasses import fields
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servd.exceptions import ProtocolError
from servd.wire.build_messages import BuildOrder
from servd.wire.codec import MAX_MESSAGE_BYTES, RecordReader, decode_message, encode_message, record
from servd.wire.messages import ProxyReport

FIXED = settings(max_examples=100, deadline=None, derandomize=True)
LONG = settings(FIXED, max_examples=50_000, derandomize=False)

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.binary()
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=10)
garbage = st.one_of(
    st.binary(max_size=60),
    # an envelope of ours around nonsense
    st.tuples(st.integers(0, 127), st.binary(max_size=20)).map(
        lambda found: b"\xc7" + bytes([len(found[1]), found[0]]) + found[1]
    ),
    st.tuples(st.integers(0, 80), st.integers(0, 80), st.binary(max_size=3)).map(
        lambda cut: encode_message(AN_ORDER)[: cut[0]] + cut[2] + encode_message(AN_ORDER)[cut[1] :]
    ),
)
AN_ORDER = BuildOrder("f", "b", "app", "m:a", {"x": 1}, {})


@pytest.mark.parametrize("value", [0, -1, 2**63, -(2**63) - 1, 2**64, 10**300, -(10**300), 1.5, None, "ü", {"a": True}])
def test_values_of_documents_survive(value: Any) -> None:
    order = BuildOrder("f", "b", "app", "m:a", {"x": value}, {})
    assert decode_message(encode_message(order)) == order


def decoded(data: bytes) -> None:
    """Decode; nonsense is a `ProtocolError` and nothing else."""
    try:
        decode_message(data)
    except ProtocolError:
        pass


@given(garbage)
@FIXED
def test_nonsense_is_a_protocol_error(data: bytes) -> None:
    decoded(data)


@pytest.mark.long
@given(garbage)
@LONG
def test_nonsense_is_a_protocol_error_for_long(data: bytes) -> None:
    decoded(data)


@given(st.lists(values, max_size=5), st.lists(st.integers(0, 1000), max_size=8))
@FIXED
def test_records_survive_however_the_stream_is_cut(found: list[Any], places: list[int]) -> None:
    data = b"".join(record(value) for value in found)
    edges = sorted({0, len(data), *(place * len(data) // 1000 for place in places)})
    reader = RecordReader()
    assert [value for start, end in itertools.pairwise(edges) for value in reader.feed(data[start:end])] == found


def test_records_that_are_too_large_are_refused_by_their_length() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        RecordReader().feed((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"))


def test_fields_that_do_not_fit_are_a_protocol_error() -> None:
    data = encode_message(AN_ORDER).replace(b"BuildOrder", b"LogConfigs")
    with pytest.raises(ProtocolError):
        decode_message(data)


def test_what_another_edition_added_at_the_end_is_left_out_and_what_it_lacks_has_its_default() -> None:
    def as_written(*values: Any) -> bytes:
        return msgpack.packb(msgpack.ExtType(1, msgpack.packb(values)))

    known = ProxyReport("p", True, 1, 2)
    whole = [getattr(known, field.name) for field in fields(known)]
    assert decode_message(as_written("ProxyReport", *whole, "of tomorrow")) == known
    assert decode_message(as_written("ProxyReport", "p", True)) == ProxyReport("p", True)
    with pytest.raises(ProtocolError):
        decode_message(as_written("ProxyReport", "p"))


def test_messages_that_another_edition_knows_are_skipped_on_a_line() -> None:
    unknown = msgpack.packb(msgpack.ExtType(1, msgpack.packb(("Tomorrow", 1))))
    framed = len(unknown).to_bytes(4, "big") + unknown
    line = record(ProxyReport("a", True)) + framed + record(ProxyReport("b", True))
    assert RecordReader().feed(line) == [ProxyReport("a", True), ProxyReport("b", True)]


def test_a_message_of_an_older_protocol_is_renewed_however_deep_it_lies() -> None:
    order = BuildOrder("f", "b", "app", "m:a", {"x": ProxyReport("p", True)}, {})

    def renew(name: str, values: list[Any]) -> list[Any]:
        return [f"new {values[0]}", *values[1:]] if name == "ProxyReport" else values

    assert decode_message(encode_message(order), renew).args == {"x": ProxyReport("new p", True)}
