"""Nothing that describes, pickles or logs an error raises, whatever the error's class does."""

import logging

import pytest

from servd.calls.pickling import dump_exception, dumps, load_exception, loads
from servd.exceptions import UserCodeError
from servd.observability.described import NO_TEXT, summary_of, text_of
from servd.observability.logs import LineFormatter
from servd.observability.tracebacks import user_traceback
from servd.replica.responses import error_response
from tests.odd_errors import KINDS, PLACES, LeavesWhenUnpickled, NoText, raise_odd


def raised(kind: type[Exception], place: str) -> Exception:
    try:
        raise_odd(kind, place)
    except Exception as error:
        return error
    raise AssertionError


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_odd_error_is_described(kind: type[Exception], place: str) -> None:
    error = raised(kind, place)
    text = user_traceback(error)
    # a group that cannot be shown is shown without its members
    assert ("ExceptionGroup" if place == "group" else kind.__name__) in text
    assert "raise_odd" in text
    assert text.startswith(("Traceback", "  + Exception Group Traceback"))
    assert summary_of(error)
    assert isinstance(text_of(error), str)
    assert error_response(error)[0] == 500


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_odd_error_travels(kind: type[Exception], place: str) -> None:
    arrived = load_exception(dump_exception(raised(kind, place)))
    assert isinstance(arrived, Exception)
    remote = arrived if isinstance(arrived, UserCodeError) else arrived.__cause__
    assert isinstance(remote, UserCodeError)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_odd_error_is_logged(kind: type[Exception], place: str) -> None:
    error = raised(kind, place)
    info = (type(error), error, error.__traceback__ if place != "itself" else None)
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "it failed", (), info)
    assert "it failed\n" in LineFormatter("replica", "r", None).format(record)


def test_a_text_that_fails_says_so() -> None:
    assert text_of(NoText()) == NO_TEXT
    assert summary_of(NoText()) == f"tests.odd_errors.NoText: {NO_TEXT}"


def test_values_that_leave_the_interpreter_are_errors() -> None:
    with pytest.raises(UserCodeError, match="could not be unpickled: SystemExit: 3"):
        loads(dumps(LeavesWhenUnpickled()))
