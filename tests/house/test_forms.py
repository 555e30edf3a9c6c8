"""Processes of one protocol understand each other, whichever edition they are: their messages only grow at the end.

What no release has had yet may still change otherwise, in the record as well; docs/architecture.md says what that means.
"""

import pytest

from servd.controller.fact_store import MIGRATIONS
from servd.ground.package import PROTOCOL
from tests.house.forms import Forms, breaks, forms, recorded

BEFORE: Forms = {"A": ["x: int", "y: str ="], "B": []}
WHAT_TO_DO = (
    "another form needs another servd.ground.package.PROTOCOL and a migration in servd.controller.fact_store; "
    "then, and after fields and messages that were added, `python -m tests.house.forms` records them"
)


def test_the_forms_are_those_of_the_protocol() -> None:
    protocol, before = recorded()
    if protocol == PROTOCOL:
        assert breaks(before, forms()) == [], WHAT_TO_DO
    assert (protocol, before) == (PROTOCOL, forms()), WHAT_TO_DO


def test_every_protocol_before_today_has_a_migration() -> None:
    assert sorted(MIGRATIONS) == list(range(1, PROTOCOL))


@pytest.mark.parametrize(
    ("after", "broken"),
    [
        (BEFORE, 0),
        ({**BEFORE, "C": ["z: int"]}, 0),
        ({**BEFORE, "A": ["x: int", "y: str =", "z: int ="]}, 0),
        ({**BEFORE, "A": ["x: int", "y: str =", "z: int"]}, 1),
        ({**BEFORE, "A": ["x: int", "z: int =", "y: str ="]}, 1),
        ({**BEFORE, "A": ["x: str", "y: str ="]}, 1),
        ({"A": BEFORE["A"]}, 1),
    ],
)
def test_what_breaks_a_form(after: Forms, broken: int) -> None:
    assert len(breaks(BEFORE, after)) == broken
