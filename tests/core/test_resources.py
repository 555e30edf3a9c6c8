"""Placement of replicas on devices and CPUs."""

import pytest

from servd.controller.plan.resources import Held, Need, Pool, place, shortage


@pytest.mark.parametrize(
    ("need", "held", "pool", "expected"),
    [
        (Need(), [], Pool(), Held()),
        (Need(cpus=4), [], Pool(), Held(4)),  # without a pool num_cpus is accounting
        (Need(cpus=4), [], Pool(cpus=3), None),
        (Need(cpus=1), [Held(2)], Pool(cpus=3), Held(1)),
        (Need(cpus=1.5), [Held(2)], Pool(cpus=3), None),
        (Need(gpus=1), [], Pool(), None),
        (Need(gpus=1), [], Pool(gpus=2), Held(0, 1.0, (0,))),
        (Need(gpus=1), [Held(0, 0.1, (0,))], Pool(gpus=2), Held(0, 1.0, (1,))),
        (Need(gpus=2), [Held(0, 0.1, (0,))], Pool(gpus=2), None),
        (Need(gpus=2), [Held(0, 0.1, (0,))], Pool(gpus=3), Held(0, 1.0, (1, 2))),
        (Need(gpus=0.5), [Held(0, 0.5, (1,))], Pool(gpus=2), Held(0, 0.5, (1,))),  # shares gather
        (Need(gpus=0.6), [Held(0, 0.5, (1,))], Pool(gpus=2), Held(0, 0.6, (0,))),
        (Need(gpus=0.1), [Held(0, 0.1, (0,))] * 9, Pool(gpus=1), Held(0, 0.1, (0,))),
        (Need(gpus=0.1), [Held(0, 0.1, (0,))] * 10, Pool(gpus=1), None),
    ],
)
def test_place(need: Need, held: list[Held], pool: Pool, expected: Held | None) -> None:
    assert place(need, held, pool) == expected


def test_shortage_names_what_is_needed_and_what_is_free() -> None:
    text = shortage(Need(cpus=2, gpus=1), [Held(1, 0.5, (0,))], Pool(cpus=2, gpus=1))
    assert text == "a replica needs num_cpus 2 (1 of 2 free) and num_gpus 1 (0.5 of 1 free)"
