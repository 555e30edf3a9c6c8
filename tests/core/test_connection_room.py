"""What clients send and do not take costs little: all requests of a connection share a room, small pieces are put together."""

import random
from typing import Any

import pytest

from servd.calls.outgoing import Outgoing
from servd.proxy.body_stream import BodyStream
from servd.proxy.http1_rules import size_of_head
from servd.proxy.limits import WHOLE_BODY_BYTES
from servd.wire.connection_room import ROOM_BYTES, SHARE_BYTES, ConnectionRoom, Share, Window
from servd.wire.records import CREDIT_BYTES, MEDIUM, MEDIUM_BYTES, NARROW

KIB = 1024


def test_one_request_alone_is_served_as_if_there_were_no_bound() -> None:
    room = ConnectionRoom()
    upload = Share(room)
    assert all(upload.keep(16 * KIB) for _ in range(WHOLE_BODY_BYTES // (16 * KIB)))
    upload.close()
    download = Share(room)
    assert download.open() == 0
    assert download.lent == CREDIT_BYTES
    # asked again after its replica died
    assert download.open() == 0
    download.close()
    assert room.left == ROOM_BYTES


def test_a_window_grows_once_with_a_large_part_and_tells_of_many_taken_bytes_at_once() -> None:
    room = ConnectionRoom()
    lasting, alone = Window(Share(room)), Window(Share())
    # one that lasts borrows nothing at once, beside others
    assert (lasting.open(lasts=True), alone.open(lasts=True)) == (NARROW, 0)
    assert lasting.took(2 * KIB - 1) == 0
    assert lasting.took(1) == 2 * KIB
    assert lasting.widened(2 * KIB - 1) == 0
    more = lasting.widened(2 * KIB)
    assert more == lasting.share.lent == (ROOM_BYTES - SHARE_BYTES) // 4
    assert lasting.widened(2 * KIB) == 0
    for window, size in ((lasting, (more + 4 * KIB) // 2), (alone, CREDIT_BYTES // 4)):
        assert window.took(size - 1) == 0
        assert window.took(1) == size
        assert alone.widened(CREDIT_BYTES) == 0


def test_further_answers_are_medium_and_then_narrow_and_some_find_more_room() -> None:
    room = ConnectionRoom()
    shares = [Share(room) for _ in range(40)]
    flags = [share.open() for share in shares]
    count = (ROOM_BYTES - 40 * SHARE_BYTES) // MEDIUM_BYTES
    assert flags == [MEDIUM] * count + [NARROW] * (40 - count)
    for share in shares[:count]:
        share.close()
    wide = [share.widen() for share in shares[count:]]
    assert wide[0] >= CREDIT_BYTES // 4
    assert all(wide[:5])
    assert room.taken == sum(wide)
    for share in shares[count:-1]:
        share.close()
    # asked again after its replica died
    assert shares[-1].open() == 0
    assert room.taken == CREDIT_BYTES


@pytest.mark.parametrize("count", [2, 8, 9, 20])
def test_the_first_answer_leaves_all_others_a_medium_one(count: int) -> None:
    room = ConnectionRoom()
    first, *others = [Share(room) for _ in range(count)]
    is_wide = first.open() == 0
    assert is_wide == (count <= 7)
    assert {share.open() for share in others} == {MEDIUM}


def test_ten_requests_at_a_time_have_a_medium_answer_each() -> None:
    room = ConnectionRoom()
    first, *others = [Share(room) for _ in range(10)]
    first.open()
    assert others[0].open() == MEDIUM
    first.close()
    # from now on nobody is alone
    assert {share.open() for share in others[1:]} == {MEDIUM}


def test_what_is_sent_on_or_over_makes_room_for_others() -> None:
    room = ConnectionRoom()
    told: list[int] = []
    share, other = Share(room, told.append), Share(room)
    most = room.left
    assert share.keep(most)
    assert told == [most]
    assert not other.keep(16 * KIB)
    # what nobody keeps is told of when it leaves, behind what is kept
    share.sent(most - 10)
    assert told == [most]
    share.sent(30)
    assert told == [most, 20]
    assert other.keep(16 * KIB)
    other.close()
    share.close()
    assert room.left == ROOM_BYTES


def test_a_small_body_is_kept_whoever_holds_the_rest() -> None:
    room = ConnectionRoom()
    greedy, small = Share(room), Share(room)
    assert greedy.keep(room.left + 2 * KIB)
    assert small.keep(2 * KIB)
    assert not small.keep(1)


def test_a_connection_with_one_request_at_a_time_has_no_bound_of_this_kind() -> None:
    share = Share()
    assert share.is_alone
    assert share.keep(10 * ROOM_BYTES)
    assert share.open() == 0
    share.sent(10)
    share.close()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_asked_the_room_is_never_exceeded_and_whole_in_the_end(seed: int) -> None:
    rng = random.Random(seed)
    room = ConnectionRoom()
    shares = [Share(room) for _ in range(30)]
    for _ in range(500):
        share = rng.choice(shares)
        what = rng.randrange(5)
        size = rng.choice([0, 1, 3 * KIB, 64 * KIB, 400 * KIB])
        if what == 0:
            share.keep(size)
        elif what == 1:
            share.sent(size)
        elif what == 2:
            share.open()
        elif what == 3:
            share.widen()
        elif size == 0:
            share.close()
            shares[shares.index(share)] = Share(room)
        assert 0 <= room.taken <= ROOM_BYTES - SHARE_BYTES * room.shares
    for share in shares:
        share.close()
    assert room.left == ROOM_BYTES


class Taking(Outgoing):
    """A call whose replica takes all that it is sent."""

    def __init__(self) -> None:
        self.peer: Any = None
        self.sent = bytearray()

    def send_body(self, _: Outgoing, data: bytes, more: bool) -> None:
        self.sent += data if more else b"."


def test_a_body_of_many_small_pieces_waits_as_a_few() -> None:
    rng = random.Random(1)
    call = Taking()
    left: list[int] = []
    stream = BodyStream(call, lambda: None, on_sent=left.append)
    body = b""
    for size in [1] * 20_000 + [5000, 1, 70_000, 1, 1]:
        piece = rng.randbytes(size)
        body += piece
        stream.feed(piece)
    stream.close()
    assert len(stream._pieces) < 8
    call.peer = call
    for credit in (1, 10, 30_000, 200_000):
        stream.add_credit(credit)
    assert bytes(call.sent) == body + b"."
    assert sum(left) == len(body)


def test_the_end_of_a_body_is_told_once() -> None:
    call = Taking()
    call.peer = call
    stream = BodyStream(call, lambda: None)
    stream.add_credit(10)
    stream.feed(b"abc")
    stream.close()
    # for what the handler took after the end had come
    stream.add_credit(3)
    assert bytes(call.sent) == b"abc."


def test_small_headers_count_more_than_their_bytes() -> None:
    assert size_of_head(b"/", [(b"a", b"")] * 2000) > 64 * KIB > size_of_head(b"/", [(b"a", b"b" * 60_000)])
