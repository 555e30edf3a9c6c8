"""Updates, changes of scale and deaths under load cost no request that they may not cost."""

from pathlib import Path

import pytest

from tests.faults.scenarios import SCENARIOS


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, few, _) in SCENARIOS.items() if few])
def test_a_few_times(tmp_path: Path, name: str) -> None:
    scenario, few, _ = SCENARIOS[name]
    outcome = scenario(tmp_path, few)
    assert outcome.is_good, str(outcome)


@pytest.mark.long
@pytest.mark.parametrize("name", SCENARIOS)
def test_many_times(tmp_path: Path, name: str) -> None:
    scenario, _, many = SCENARIOS[name]
    outcome = scenario(tmp_path, many)
    assert outcome.is_good, str(outcome)
