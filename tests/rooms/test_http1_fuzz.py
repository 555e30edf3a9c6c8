"""Whatever bytes come, and however they are cut, the HTTP/1.1 lane answers the same and falls over nothing."""

import asyncio
import itertools
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servd.proxy.forwarder import Forwarder
from servd.proxy.http1 import HttpConnection
from servd.proxy.limits import Limits
from servd.proxy.listener import Listener
from tests.fakes import a_caller
from tests.rooms.test_hostile_http import NEXT, PARTS, REQUESTS

Heard = tuple[list[tuple[bytes, bytes]], bool]
FIXED = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LONG = settings(FIXED, max_examples=20_000, derandomize=False)


class FakeTransport(asyncio.Transport):
    """Takes what is written; gives pieces to its protocol while nobody has paused it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_closed = self.is_paused = False

    def write(self, data: Any) -> None:
        assert not self.is_closed, "written after the end"
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)


class Lane:
    """A listener without routes on a loop of its own: the proxy itself answers everything, so no other process has a say."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        self.caller = a_caller()
        self.listener = Listener(Forwarder(self.caller, "", Limits(head_bytes=2000, body_bytes=3000)), self._hand_over)

    def _hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        # as far as this lane is concerned, a kind of answer
        transport.write(b"HTTP/1.1 101 \r\n\r\n" + data[:40])
        transport.close()

    def hear(self, pieces: list[bytes]) -> Heard:
        """Statuses and bodies that come for these pieces, and whether the connection ended."""
        return self.loop.run_until_complete(self._hear(pieces))

    async def _hear(self, pieces: list[bytes]) -> Heard:
        connection, transport = HttpConnection(self.listener), FakeTransport()
        connection.connection_made(transport)
        waiting = deque(piece for piece in pieces if piece)
        while not transport.is_closed:
            if waiting and not transport.is_paused:
                connection.data_received(waiting.popleft())
            else:
                before = len(transport.written)
                for _ in range(3):
                    await asyncio.sleep(0)
                if len(transport.written) == before and (not waiting or transport.is_paused):
                    break
        answers = re.findall(
            rb"HTTP/1\.1 (\d+) [^\r]*\r\n(?:[^\r]+\r\n)*\r\n((?:(?!HTTP/1\.1 ).)*)", transport.written, re.S
        )
        # of two faults in one head, either may be named
        answers = [(status, body if status in (b"101", b"404") else b"") for status, body in answers]
        is_over = transport.is_closed
        connection.connection_lost(None)
        assert not self.listener.connections
        return answers, is_over


@pytest.fixture(scope="module")
def lane() -> Iterator[Lane]:
    made = Lane()
    yield made
    made.caller.close()
    made.loop.close()


def mutated(data: bytes, accidents: list[tuple[int, int, bytes]]) -> bytes:
    """These bytes, with parts replaced: where (in thousandths), how many, by what."""
    for place, size, new in accidents:
        at = place * len(data) // 1000
        data = data[:at] + new + data[at + size :]
    return data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """These bytes in pieces, cut at these places (in thousandths)."""
    edges = sorted({0, len(data), *(place * len(data) // 1000 for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


accident = st.tuples(
    st.integers(0, 1000),
    st.sampled_from([0, 0, 1, 2, 10]),
    st.one_of(st.sampled_from([b"", *PARTS]), st.binary(max_size=4)),
)
requests = st.builds(mutated, st.sampled_from([*REQUESTS, NEXT]), st.lists(accident, max_size=3))
streams = st.lists(requests, min_size=1, max_size=3).map(b"".join)
places = st.lists(st.integers(0, 1000), max_size=12)


def check(lane: Lane, data: bytes, places: list[int]) -> None:
    whole = lane.hear([data])
    pieces = lane.hear(cut(data, places))
    assert pieces == whole
    assert {status for status, _ in whole[0]} <= {
        b"100", b"101", b"200", b"400", b"404", b"408", b"413", b"414", b"431", b"501"
    }  # fmt: skip


@given(streams, places)
@FIXED
def test_pieces_make_no_difference(lane: Lane, data: bytes, places: list[int]) -> None:
    check(lane, data, places)


@pytest.mark.long
@given(streams, places)
@LONG
def test_pieces_make_no_difference_for_long(lane: Lane, data: bytes, places: list[int]) -> None:
    check(lane, data, places)


def test_a_bad_request_behind_the_last_answer_of_a_connection(lane: Lane) -> None:
    unwanted = b"POST /first HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\r\n"
    broken = b"POST /first HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"
    answers, is_over = lane.hear([unwanted + broken])
    assert ([status for status, _ in answers], is_over) == ([b"404"], True)


@given(st.binary(max_size=300), places)
@FIXED
def test_noise_is_refused(lane: Lane, data: bytes, places: list[int]) -> None:
    check(lane, data, places)
