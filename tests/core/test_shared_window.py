"""The window that the bodies of one HTTP/2 connection share."""

from servd.proxy.hypercorn.shared_window import MOST_WINDOW_BYTES, STUCK_TURNS, WINDOW_BYTES, SharedWindow

FRAME = 16 * 1024


def test_it_opens_again_by_what_is_released_many_bytes_at_a_time() -> None:
    window = SharedWindow()
    for _ in range(WINDOW_BYTES // FRAME):
        window.hold(1, FRAME)
    opened = [window.release(1, FRAME) for _ in range(WINDOW_BYTES // FRAME)]
    assert sum(opened) == WINDOW_BYTES
    assert sorted(set(opened)) == [0, WINDOW_BYTES // 4]


def test_no_stream_releases_more_than_it_holds() -> None:
    window = SharedWindow()
    window.hold(1, WINDOW_BYTES)
    window.hold(3, FRAME)
    assert window.release(3, WINDOW_BYTES) == 0
    assert window.held(3) == 0
    assert window.release(1, 2 * WINDOW_BYTES) == WINDOW_BYTES + FRAME
    window.forget(1)
    assert window.release(1, FRAME) == 0


def test_half_of_it_held_is_little_left() -> None:
    window = SharedWindow()
    window.hold(1, WINDOW_BYTES // 2 - 1)
    assert not window.is_half_held
    window.hold(3, 1)
    assert window.is_half_held
    assert window.turn(is_stuck=True) == (WINDOW_BYTES, 0)
    assert not window.is_half_held


def test_where_nothing_moves_it_widens_as_far_as_it_may_and_then_ever_more_are_turned_away() -> None:
    window = SharedWindow()
    window.hold(1, WINDOW_BYTES)
    turns = [window.turn(is_stuck=True) for _ in range(2 + STUCK_TURNS)]
    assert turns == [(WINDOW_BYTES, 0), (2 * WINDOW_BYTES, 0), *[(0, 0)] * (STUCK_TURNS - 1), (0, 1)]
    assert window.size == MOST_WINDOW_BYTES
    # what they held helped nobody
    window.release(1, FRAME)
    assert [window.turn(is_stuck=True) for _ in range(3)] == [(0, 0), (0, 3), (0, 9)]
    # it goes on
    assert {window.turn(is_stuck=False) for _ in range(STUCK_TURNS)} == {(0, 0)}
    assert [window.turn(is_stuck=True) for _ in range(STUCK_TURNS)] == [*[(0, 0)] * (STUCK_TURNS - 1), (0, 1)]


def test_what_moves_is_not_stuck() -> None:
    window = SharedWindow()
    window.hold(1, WINDOW_BYTES)
    for _ in range(10):
        window.release(1, 1)
        assert window.turn(is_stuck=True) == (0, 0)
    assert window.turn(is_stuck=False) == (0, 0)
    assert window.size == WINDOW_BYTES


def test_what_waited_for_more_of_its_like_opens_with_the_rest() -> None:
    window = SharedWindow()
    window.hold(1, WINDOW_BYTES)
    assert window.release(1, FRAME) == 0
    assert [window.turn(is_stuck=True) for _ in range(2)] == [(0, 0), (WINDOW_BYTES + FRAME, 0)]
