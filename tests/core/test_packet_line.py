import random

import pytest

from servd.exceptions import ProtocolError
from servd.wire.packet_line import InOrder


@pytest.mark.parametrize(
    ("come", "taken"),
    [
        ([None, None, None], [[0], [1], [2]]),
        ([0, 1, 2], [[0], [1], [2]]),
        ([None, 1, 2], [[0], [1], [2]]),
        # the first by the line overtakes what had no number yet
        ([2, None, None], [[], [0], [1, 2]]),
        ([1, 0, 2], [[], [0, 1], [2]]),
        ([3, 1, 2, 0], [[], [], [], [0, 1, 2, 3]]),
        ([1, 3, 0, 2], [[], [], [0, 1], [2, 3]]),
    ],
)
def test_each_is_taken_in_its_turn(come: list[int | None], taken: list[list[int]]) -> None:
    order: InOrder[int] = InOrder()
    plain = iter(range(len(come)))
    assert [list(order.take(n, next(plain) if n is None else n)) for n in come] == taken


@pytest.mark.parametrize("come", [[0, 0], [1, 1], [None, 0]])
def test_none_comes_twice(come: list[int | None]) -> None:
    order: InOrder[str] = InOrder()
    order.take(come[0], "")
    with pytest.raises(ProtocolError, match=f"envelope {come[1]} came twice"):
        order.take(come[1], "")


@pytest.mark.parametrize("seed", range(5))
def test_two_ways_that_keep_their_own_order_give_one(seed: int) -> None:
    rng = random.Random(seed)
    numbers = list(range(200))
    ways: list[list[int]] = [[], []]
    for number in numbers:
        rng.choice(ways).append(number)
    order: InOrder[int] = InOrder()
    taken: list[int] = []
    while any(ways):
        way = rng.choice([way for way in ways if way])
        number = way.pop(0)
        taken += order.take(number, number)
    assert taken == numbers
