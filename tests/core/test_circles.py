"""Calls that can never run: circles of one request, knots of several."""

import pytest

from servd.calls.circles import Waiting, circle, knot

A, B = "d#a", "d#b"


@pytest.mark.parametrize(
    ("limits", "ancestors", "is_circle"),
    [
        ({A: 1}, (A,), True),
        ({A: 1}, (), False),
        ({A: 1}, ("e#a",), False),
        ({A: 2}, (A,), False),
        ({A: 2}, (A, "e#x", A), True),
        ({A: 1, B: 1}, (A,), False),
        ({A: 1, B: 1}, (A, "e#x", B), True),
        ({A: 0}, (A,), False),
        ({}, (A,), False),
    ],
)
def test_a_circle_holds_every_slot(limits: dict[str, int], ancestors: tuple[str, ...], is_circle: bool) -> None:
    refused = circle("d", limits, ancestors)
    assert (refused is not None) == is_circle
    if refused is not None:
        assert " -> d)" in str(refused)


@pytest.mark.parametrize(
    ("limits", "waiting", "is_knot"),
    [
        ({A: 2}, [("1", (A,)), ("2", (A,))], True),
        ({A: 3}, [("1", (A,)), ("2", (A,))], False),
        ({A: 3}, [("1", (A,)), ("2", (A, "e#x", A))], True),
        # of one request, which may share the slot
        ({A: 2}, [("1", (A,)), ("1", (A,))], False),
        ({A: 2}, [("1", (A,)), ("1", (A, A))], True),
        ({A: 1, B: 1}, [("1", (A,)), ("2", (B,))], True),
        ({A: 1, B: 1}, [("1", (A,)), ("2", (A,))], False),
        # somebody else's call may end at any time
        ({A: 2}, [("1", (A,)), ("2", ("e#x",))], False),
        ({A: 0}, [("1", (A,))], False),
        ({}, [("1", (A,))], False),
        ({A: 1}, [], False),
    ],
)
def test_a_knot_holds_every_slot_together(limits: dict[str, int], waiting: list[Waiting], is_knot: bool) -> None:
    assert (knot("d", limits, waiting) is not None) == is_knot
