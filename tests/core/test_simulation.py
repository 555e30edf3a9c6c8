"""Seeded histories of the core: crashes, lost and late news, failing code; and planted faults that must be caught."""

import pytest

from tests.simulation import FAULTS, Simulation, Violation


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_histories(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        Simulation(seed).run()


@pytest.mark.slow
@pytest.mark.parametrize("block", range(2))
def test_gentle_histories(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        Simulation(seed, gentle=True).run()


@pytest.mark.long
@pytest.mark.parametrize("block", range(20))
def test_many_histories(block: int) -> None:
    for seed in range(10_000 + block * 1000, 11_000 + block * 1000):
        Simulation(seed, gentle=seed % 5 == 0).run()


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str) -> None:
    for seed in range(50):
        try:
            Simulation(seed, mutate=FAULTS[fault]).run()
        except Violation:
            return
    pytest.fail(f"no history noticed: {fault}")
