"""The autoscaling formula and its delays, with the contract's examples."""

import math

import pytest

from servd.controller.plan.autoscaler import AUTOSCALING_DEFAULTS, Samples, decide, desired_replicas, first_target

CONFIG = {
    **AUTOSCALING_DEFAULTS,
    "max_replicas": 10,
    "target_num_ongoing_requests_per_replica": 2.0,
    "upscale_delay_s": 3.0,
    "downscale_delay_s": 6.0,
}


@pytest.mark.parametrize(
    ("ongoing", "smoothing", "low", "expected"),
    [
        ([4.0], 1.0, 1, 2),
        ([4, 4], 1.0, 1, 4),
        ([0, 0], 1.0, 1, 1),
        ([1, 1, 1], 1.0, 1, 2),
        ([100], 1.0, 1, 10),
        ([4, 4], 0.5, 0, 3),
        ([0], 0.5, 0, 0),
        ([0, 0], 0.1, 2, 2),
        ([0] * 4, 0.2, 1, 3),
        ([1] * 4, 0.1, 1, 3),
        ([1, 2], 0.1, 1, 2),
        ([0], 1.0, 0, 0),
    ],
)
def test_desired_replicas(ongoing: list[float], smoothing: float, low: int, expected: int) -> None:
    assert desired_replicas(ongoing, 2.0, low=low, high=10, smoothing=smoothing) == expected


@pytest.mark.parametrize(("ongoing", "expected"), [([0.0, 0.0], 1), ([1.0, 2.0], 10), ([1.0], 10)])
def test_desired_replicas_stays_within_bounds_where_the_error_is_infinite(ongoing: list[float], expected: int) -> None:
    assert desired_replicas(ongoing, 5e-324, low=1, high=10, smoothing=1e308) == expected


@pytest.mark.parametrize("smoothing", [0.01, 0.2, 0.5, 0.9, 1.0, 3.0])
@pytest.mark.parametrize("low", [0, 1, 4])
def test_every_smoothing_reaches_the_bounds(smoothing: float, low: int) -> None:
    count = 9
    for _ in range(9):
        count = desired_replicas([0.0] * count, 2.0, low=low, high=9, smoothing=smoothing) if count else 0
    assert count == low
    count = max(low, 1)
    for _ in range(9):
        count = desired_replicas([2.5] * count, 2.0, low=low, high=9, smoothing=smoothing)
    assert count == 9


@pytest.mark.parametrize(("ongoing", "target"), [([], 1.0), ([1.0], 0.0)])
def test_desired_replicas_needs_samples_and_a_target(ongoing: list[float], target: float) -> None:
    with pytest.raises(ValueError, match="need samples"):
        desired_replicas(ongoing, target, low=0, high=1)


def test_a_lean_must_hold_for_its_delay() -> None:
    first = decide(CONFIG, 1, [4.0], 0, 0, 0.0, now=100.0)
    assert (first.target, first.lean, first.wake_at) == (1, 1, 103.0)
    early = decide(CONFIG, 1, [4.0], 0, 1, 100.0, now=102.9)
    assert early.target == 1
    assert decide(CONFIG, 1, [4.0], 0, 1, 100.0, now=103.0).target == 2


def test_a_change_of_direction_restarts_the_clock() -> None:
    turned = decide(CONFIG, 2, [0.0, 0.0], 0, 1, 0.0, now=100.0)
    assert (turned.target, turned.lean, turned.lean_since, turned.wake_at) == (2, -1, 100.0, 106.0)


def test_equality_forgets_the_lean() -> None:
    assert decide(CONFIG, 2, [2.0, 2.0], 0, 1, 0.0, now=100.0).lean == 0


def test_a_waiting_request_wakes_a_deployment_at_zero() -> None:
    assert decide({**CONFIG, "min_replicas": 0}, 0, [], 3, 0, 0.0, now=1.0).target == 1
    idle = decide({**CONFIG, "min_replicas": 0}, 0, [], 0, 0, 0.0, now=1.0)
    assert (idle.target, idle.wake_at) == (0, math.inf)


@pytest.mark.parametrize(("initial", "expected"), [(None, 1), (3, 3)])
def test_first_target(initial: int | None, expected: int) -> None:
    assert first_target({**CONFIG, "initial_replicas": initial}) == expected


def test_samples_are_weighted_by_time() -> None:
    samples = Samples()
    samples.add(0.0, 0.0, keep_s=100.0)
    samples.add(6.0, 10.0, keep_s=100.0)
    assert samples.mean(0.0, 8.0) == pytest.approx(2.5)
    assert samples.mean(7.0, 8.0) == pytest.approx(10.0)


def test_frequent_samples_make_the_same_mean_of_few_points() -> None:
    samples = Samples()
    for number in range(3001):
        samples.add(number * 0.01, float(number % 7), keep_s=30.0)
    assert len(samples.points) < 250
    assert samples.points[-1] == (30.0, float(3000 % 7))
    exact = sum(number % 7 for number in range(3000)) / 3000
    assert samples.mean(0.0, 30.0) == pytest.approx(exact)
    assert samples.mean(20.0, 30.0) == pytest.approx(3.0, rel=0.02)


def test_at_the_moment_to_wake_the_delay_is_over_whatever_rounds() -> None:
    for since in (63.72, 0.1, 1e6 + 0.3):
        waiting = decide({**CONFIG, "upscale_delay_s": 0.5}, 1, [4.0], 0, 1, since, now=since + 0.1)
        assert decide({**CONFIG, "upscale_delay_s": 0.5}, 1, [4.0], 0, 1, since, now=waiting.wake_at).target == 2


def test_replicas_that_have_just_begun_scale_nothing_down() -> None:
    early = decide(CONFIG, 3, [1.0, 1.0, 0.0], 0, -1, 0.0, now=9.0, full_at=10.0)
    assert (early.target, early.lean, early.wake_at) == (3, 0, 10.0)
    assert decide(CONFIG, 3, [9.0, 9.0, 9.0], 0, 0, 0.0, now=9.0, full_at=10.0).lean == 1
    assert decide(CONFIG, 3, [1.0, 1.0, 0.0], 0, 0, 0.0, now=10.0, full_at=10.0).lean == -1
