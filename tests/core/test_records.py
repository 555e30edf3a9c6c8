import re
from pathlib import Path

import msgpack
import pytest

from servd.exceptions import ProtocolError
from servd.wire import records
from servd.wire.records import (
    FRAME_BYTES,
    Outbox,
    answer_block,
    bodies_of,
    body_of,
    origin,
    read_answer_block,
    read_origin,
    unpack,
)


def test_large_bodies_travel_as_frames() -> None:
    outbox = Outbox()
    small, large = b"s" * 10, b"l" * FRAME_BYTES
    outbox.records.append((7, *outbox.attach_all([small, large, memoryview(b"view")])))
    blob, frames = outbox.seal()
    count, record = unpack(blob)
    assert count == len(frames) == 1
    assert bodies_of(record[1:], frames) == [small, large, b"view"]
    assert outbox.records == [0], "empty again"


@pytest.mark.parametrize("data", [b"", b"nonsense", msgpack.packb(7), msgpack.packb([]), msgpack.packb(["x", 1])])
def test_nonsense_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(data)


def test_a_missing_frame_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        body_of(3, [])


def test_text_that_has_no_utf8_goes_all_the_same() -> None:
    outbox = Outbox()
    for _ in range(2):
        outbox.records.append((1, "caf\udce9", outbox.attach(b"l" * FRAME_BYTES)))
        blob, frames = outbox.seal()
        assert (unpack(blob), frames) == ((1, (1, "caf?", 0)), [b"l" * FRAME_BYTES])
    assert read_answer_block(answer_block("caf\udce9", (("k", "v"),))) == ("caf?", (("k", "v"),))


def test_origin_round_trip() -> None:
    data = origin(("1.2.3.4", 5), None, "http", "1.1", "/root")
    assert read_origin(data) == (("1.2.3.4", 5), None, "http", "1.1", "/root")


def test_kinds_and_flags_are_told_apart() -> None:
    sections = Path(records.__file__).read_text().split("\n\n# ")
    both, to_replica, to_caller, flags = (
        [int(value) for value in re.findall(r"^[A-Z_]+ = \(?\s*(\d+)", section, re.MULTILINE)]
        for title in ("both ways", "caller -> replica", "replica -> caller", "flags of HTTP, CALL")
        for section in sections
        if section.startswith(title)
    )
    for values in (both + to_replica, both + to_caller, flags):
        assert len(values) == len(set(values)) > 4
    assert all(flag & (flag - 1) == 0 for flag in flags)
