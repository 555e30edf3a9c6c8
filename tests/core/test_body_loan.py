"""Who reads a request's body that may be lent: every word in every state."""

import random
from collections.abc import Callable

import pytest

from servd.exceptions import ProtocolError
from servd.wire.body_loan import BodyLoan, Reader

OWN, LENT, LOST = Reader.OWN, Reader.LENT, Reader.LOST
WORDS: dict[str, Callable[[BodyLoan], object]] = {
    "read 4": lambda loan: loan.read(4),
    "read 12": lambda loan: loan.read(12),
    "lend": lambda loan: loan.lend(),
    "back 0": lambda loan: loan.back(0),
    "back 10": lambda loan: loan.back(10),
    "back 11": lambda loan: loan.back(11),
    "back -1": lambda loan: loan.back(-1),
    "end": lambda loan: loan.end(),
}


def a_loan(reader: Reader) -> BodyLoan:
    """Of ten bytes."""
    loan = BodyLoan(10)
    loan.reader = reader
    return loan


@pytest.mark.parametrize(
    ("before", "word", "said", "after", "left"),
    [
        (OWN, "read 4", 4, OWN, 6),
        # what is behind the body is the next request's
        (OWN, "read 12", 10, OWN, 0),
        (OWN, "lend", None, LENT, 10),
        # late words
        (OWN, "back 0", False, OWN, 10),
        (OWN, "back 10", False, OWN, 10),
        (OWN, "back 11", False, OWN, 10),
        (OWN, "back -1", False, OWN, 10),
        (OWN, "end", None, LOST, 10),
        (LENT, "read 4", ProtocolError, LENT, 10),
        (LENT, "read 12", ProtocolError, LENT, 10),
        # to another, after the first has refused the request
        (LENT, "lend", None, LENT, 10),
        (LENT, "back 0", True, OWN, 10),
        (LENT, "back 10", True, OWN, 0),
        (LENT, "back 11", ProtocolError, LOST, 10),
        (LENT, "back -1", ProtocolError, LOST, 10),
        (LENT, "end", None, LOST, 10),
        # none of it is taken for a request
        (LOST, "read 4", 4, LOST, 10),
        (LOST, "read 12", 12, LOST, 10),
        (LOST, "lend", ProtocolError, LOST, 10),
        (LOST, "back 0", False, LOST, 10),
        (LOST, "back 10", False, LOST, 10),
        (LOST, "back 11", False, LOST, 10),
        (LOST, "back -1", False, LOST, 10),
        (LOST, "end", None, LOST, 10),
    ],
)
def test_what_a_word_means(before: Reader, word: str, said: object, after: Reader, left: int) -> None:
    loan = a_loan(before)
    if said is ProtocolError:
        with pytest.raises(ProtocolError):
            WORDS[word](loan)
    else:
        assert WORDS[word](loan) == said
    assert (loan.reader, loan.left) == (after, left)
    assert loan.is_lent == (after is LENT)
    assert loan.is_whole == (after is OWN and left == 0)


def test_the_table_has_every_word_in_every_state() -> None:
    (mark,) = [mark for mark in test_what_a_word_means.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {(row[0], row[1]) for row in mark.args[1]} == {(reader, word) for reader in Reader for word in WORDS}


@pytest.mark.parametrize("seed", range(20))
def test_no_byte_is_read_twice_or_left_out(seed: int) -> None:
    rng = random.Random(seed)
    body = rng.randrange(1, 100)
    sent, loan = body + rng.randrange(20), BodyLoan(body)
    at = 0
    while not loan.is_whole:
        if loan.is_lent:
            taken = rng.randrange(loan.left + 1)
            loan.back(taken)
            at += taken
        elif rng.random() < 0.5:
            loan.lend()
        else:
            at += loan.read(min(sent - at, rng.randrange(1, 30)))
    assert at == body
