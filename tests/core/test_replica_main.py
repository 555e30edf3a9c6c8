import gc
from collections.abc import Iterator

import pytest

from servd.replica.main import search_less_often


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def test_a_replica_looks_for_cycles_less_often_than_python_would(thresholds: tuple[int, int, int]) -> None:
    search_less_often()
    # 700 until Python 3.12, 2000 from 3.13 on
    assert gc.get_threshold()[0] >= 5 * thresholds[0]
    assert gc.get_threshold()[1:] == thresholds[1:]


def test_what_the_users_code_has_set_stays() -> None:
    gc.set_threshold(50, 5, 5)
    search_less_often()
    assert gc.get_threshold() == (50, 5, 5)
