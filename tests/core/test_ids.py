"""Random ids: the application's random numbers are its own."""

import random
from collections.abc import Callable

import pytest

from servd.ground.ids import random_hex, random_letters, random_uuid
from servd.observability.spans import Sampling


@pytest.mark.parametrize("draw", [lambda: random_hex(32), lambda: random_letters(20), random_uuid])
def test_an_application_that_seeds_random_numbers(draw: Callable[[], str]) -> None:
    drawn = set()
    expected = random.Random(7).random()
    for _ in range(2):
        random.seed(7)
        drawn.add(draw())
        assert random.random() == expected, "nobody else draws from its generator"
    assert len(drawn) == 2


def test_which_traces_begin_is_not_for_the_application_to_seed() -> None:
    sampling = Sampling(0.5)
    begun = set()
    for _ in range(200):
        random.seed(7)
        begun.add((sampling.begins_trace(), min(sampling.gap(), 2)))
    assert len(begun) == 4
