"""Updates, changes of scale, deaths and troubles of the host cost no request that they may not cost."""

import pytest

from tests.faults.catalogue import SCENARIOS, play


def played(name: str, times: int) -> None:
    outcome = play(name, times)
    if outcome.reason:
        pytest.skip(outcome.reason)
    assert outcome.is_good, str(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.few])
def test_a_few_times(name: str) -> None:
    played(name, SCENARIOS[name].few)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.many and scenario.is_test])
def test_many_times(name: str) -> None:
    played(name, SCENARIOS[name].many)
