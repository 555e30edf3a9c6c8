"""Nothing that describes, pickles or logs an error raises, whatever the error's class does."""

import asyncio
import dataclasses
import logging

import pytest

from servd.calls.pickling import dump_exception, dumps, load_exception, loads
from servd.exceptions import UserCodeError
from servd.observability.described import NO_TEXT, for_future, name_of, summary_of, text_of
from servd.observability.line_formatter import LineFormatter
from servd.observability.tracebacks import user_traceback
from servd.replica.responses import error_response
from tests.odd_errors import KINDS, PLACES, HidesAll, LeavesWhenUnpickled, NoText, raise_odd


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


def raised(kind: type[Exception], place: str) -> Exception:
    try:
        raise_odd(kind, place)
    except Exception as error:
        return error
    raise AssertionError


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_an_odd_error_is_described(kind: type[Exception], place: str) -> None:
    error = raised(kind, place)
    text = user_traceback(error)
    assert name_of(kind) in text
    assert "ExceptionGroup" in text or place != "group"
    assert "raise_odd" in text
    assert text.startswith(("Traceback", "  + Exception Group Traceback"))
    assert summary_of(error)
    assert isinstance(text_of(error), str)
    assert error_response(error)[0] == 500


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_an_odd_error_travels(kind: type[Exception], place: str) -> None:
    arrived = load_exception(dump_exception(raised(kind, place)))
    kept = vars(BaseException)["__cause__"].__get__(arrived)
    assert UserCodeError in (type(arrived), type(kept))


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_an_odd_error_is_logged(kind: type[Exception], place: str) -> None:
    error = raised(kind, place)
    info = (type(error), error, error.__traceback__ if place != "itself" else None)
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "it failed", (), info)
    assert "it failed\n" in LineFormatter("replica", "r", None).format(record)


def test_a_member_that_cannot_be_described_hides_no_other() -> None:
    group = ExceptionGroup("two", [HidesAll("odd"), ValueError("plain")])
    # as one has that is raised while its group is handled
    group.exceptions[1].__context__ = group
    text = user_traceback(group)
    assert "ValueError: plain" in text
    assert "HidesAll: " in text


def test_a_frozen_error_is_rebuilt() -> None:
    arrived = load_exception(dump_exception(Frozen(3)))
    assert isinstance(arrived, Frozen)
    assert arrived.code == 3
    assert isinstance(arrived.__cause__, UserCodeError)


def test_a_text_that_fails_says_so() -> None:
    assert text_of(NoText()) == NO_TEXT
    assert summary_of(NoText()) == f"tests.odd_errors.NoText: {NO_TEXT}"


def test_values_that_leave_the_interpreter_are_errors() -> None:
    with pytest.raises(UserCodeError, match="could not be unpickled: SystemExit: 3"):
        loads(dumps(LeavesWhenUnpickled()))


@pytest.mark.parametrize("kind", [*KINDS, StopIteration], ids=name_of)
async def test_who_is_cancelled_in_the_moment_of_an_odd_error_ends(kind: type[Exception]) -> None:
    result = asyncio.get_running_loop().create_future()

    async def waits() -> None:
        await result

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    result.set_exception(for_future(kind("odd")))
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5)
    assert done
    assert name_of(kind) in user_traceback(result.exception())
