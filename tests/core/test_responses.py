"""The table of what a handler may return, and the text of errors."""

import dataclasses
import datetime
import decimal
import pickle
import sys
import uuid
from enum import Enum, IntEnum
from typing import Any

import numpy
import pandas
import pytest
from pydantic import BaseModel

from servd.exceptions import BackPressureError, DeploymentUnavailableError
from servd.replica.responses import chunk_body, error_response, value_response


class Color(Enum):
    RED = "red"


class Word(str, Enum):  # noqa: UP042 - users still write it
    YES = "yes"


class Level(IntEnum):
    LOW = 1


class Model(BaseModel):
    a: int = 1
    b: str | None = None


class Number(BaseModel):
    x: float


@dataclasses.dataclass
class Point:
    x: int
    y: Color = Color.RED


class Odd:
    __slots__ = ()


TEXT, UTF8, JSON = b"text/plain", b"text/plain; charset=utf-8", b"application/json"


@pytest.mark.parametrize(
    ("value", "content_type", "body"),
    [
        (None, TEXT, b""),
        (b"\xff\x00", TEXT, b"\xff\x00"),
        (bytearray(b"ab"), TEXT, b"ab"),
        (memoryview(b"ab"), TEXT, b"ab"),
        ("grün", UTF8, "grün".encode()),
        (True, JSON, b"true"),
        (3, JSON, b"3"),
        (2.5, JSON, b"2.5"),
        (float("nan"), JSON, b"null"),
        (float("-inf"), JSON, b"null"),
        ({"a": [1.5, float("inf")], "b": "NaN"}, JSON, b'{"a": [1.5, null], "b": "NaN"}'),
        (numpy.array([1.0, numpy.nan]), JSON, b"[1.0, null]"),
        (numpy.float32("nan"), JSON, b"null"),
        (decimal.Decimal("NaN"), JSON, b"null"),
        ({"m": Number(x=float("nan"))}, JSON, b'{"m": {"x": null}}'),
        (pandas.DataFrame({"a": [1.0, None]}), JSON, b'[{"a": 1.0}, {"a": null}]'),
        ({"a": 1, "b": "ü"}, JSON, b'{"a": 1, "b": "\\u00fc"}'),
        ([1, "a", None], JSON, b'[1, "a", null]'),
        ({datetime.date(2024, 1, 2): 1}, JSON, b'{"2024-01-02": 1}'),
        ({"a": [{uuid.UUID(int=1): 1}]}, JSON, b'{"a": [{"00000000-0000-0000-0000-000000000001": 1}]}'),
        ({Color.RED: 1, decimal.Decimal("1.5"): 2}, JSON, b'{"red": 1, "1.5": 2}'),
        ({numpy.int64(1): float("inf"), float("nan"): 3}, JSON, b'{"1": null, "NaN": 3}'),
        (pandas.DataFrame({pandas.Timestamp(0): [1]}), JSON, b'[{"1970-01-01T00:00:00": 1}]'),
        (pandas.Series([1], index=[pandas.Timestamp(0)]), JSON, b'{"1970-01-01T00:00:00": 1}'),
        ((200, "body"), JSON, b'[200, "body"]'),
        ({7}, JSON, b"[7]"),
        ({"x": {1: frozenset()}}, JSON, b'{"x": {"1": []}}'),
        (numpy.array([[1, 2], [3, 4]]), JSON, b"[[1, 2], [3, 4]]"),
        (numpy.float32(0.5), JSON, b"0.5"),
        (numpy.int64(5), JSON, b"5"),
        ({"a": numpy.arange(2)}, JSON, b'{"a": [0, 1]}'),
        (ValueError("bad"), JSON, b'"bad"'),
        (Model(), JSON, b'{"a": 1, "b": null}'),
        ([Model(a=2)], JSON, b'[{"a": 2, "b": null}]'),
        (Point(1), JSON, b'{"x": 1, "y": "red"}'),
        (Color.RED, JSON, b'"red"'),
        (Word.YES, JSON, b'"yes"'),
        (Level.LOW, JSON, b"1"),
        (datetime.datetime(2024, 1, 2, 3, 4), JSON, b'"2024-01-02T03:04:00"'),
        (datetime.timedelta(seconds=90), JSON, b"90.0"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, memoryview) else repr(value),
)
def test_returned_values(value: Any, content_type: bytes, body: bytes) -> None:
    assert value_response(value) == (200, ((b"content-type", content_type),), body)


def test_data_frames_are_lists_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    class DataFrame:
        def to_dict(self, orient: str) -> Any:
            return [{"a": 1}] if orient == "records" else None

    class Pandas:
        pass

    stand_in: Any = Pandas()
    stand_in.DataFrame = DataFrame
    monkeypatch.setitem(sys.modules, "pandas", stand_in)
    assert value_response(DataFrame())[2] == b'[{"a": 1}]'


@pytest.mark.parametrize("value", [Odd(), {(1, 2): 3}], ids=["object", "key"])
def test_what_has_no_json_form_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match=r"at result: a .*Odd has no JSON form|keys must be str"):
        value_response(value)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (pandas.NA, "result"),
        ({"a": [1, pandas.NA]}, "result['a'][1]"),
        (Point(1, pandas.NA), "result['y']"),
        ([Odd()], "result[0]"),
        ({"x": {1 + 2j}}, "result['x'][0]"),
        ({"x": numpy.array([[1j]])}, "result['x'][0][0]"),
        ({"x": {(1, 2): 3}}, "result['x']"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_json_form_is_named_with_its_place(value: Any, place: str) -> None:
    with pytest.raises(TypeError) as caught:
        value_response(value)
    assert f"no JSON form at {place}: " in str(caught.value)


def test_a_result_that_holds_itself_is_named_with_its_place() -> None:
    value: dict[str, Any] = {"a": [1]}
    value["a"].append(value)
    with pytest.raises(ValueError, match=r"holds itself at result\['a'\]\[1\]"):
        value_response(value)


def test_generators_in_a_result_are_taken_once() -> None:
    value = {"items": (number for number in range(2)), "score": float("nan"), "twice": [[], []]}
    assert value_response(value)[2] == b'{"items": [0, 1], "score": null, "twice": [[], []]}'


@pytest.mark.parametrize(
    ("item", "expected"), [(b"\xff", b"\xff"), ("ü", "ü".encode()), ({"a": 1}, b'{"a": 1}'), (None, b"null"), (1, b"1")]
)
def test_items_of_a_stream(item: Any, expected: bytes) -> None:
    assert chunk_body(item) == expected


@pytest.mark.parametrize("shown", [False, True])
def test_an_exception_is_a_500_with_the_users_frames_only_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    monkeypatch.setenv("SERVD_SHOW_TRACEBACKS", str(int(shown)))
    try:
        {}["missing"]
    except KeyError as error:
        status, headers, body = error_response(error, "r-1")
    head, _, trace = body.decode().partition("\n\n")
    assert (status, headers) == (500, ((b"content-type", b"text/plain; charset=utf-8"),))
    assert head == "Internal Server Error (request id r-1)"
    assert trace.startswith("Traceback (most recent call last):") is shown
    assert ("test_responses.py" in trace) is shown
    assert trace.endswith("KeyError: 'missing'") is shown


def test_a_busy_deployment_behind_is_a_503() -> None:
    status, headers, body = error_response(BackPressureError("app_x", 10, 10))
    assert status == 503
    assert (b"retry-after", b"1") in headers
    assert b"app_x: 10 requests waiting" in body


@pytest.mark.parametrize(
    ("status", "seconds", "header"),
    [(503, 2.5, [b"3"]), (503, 0, [b"0"]), (429, None, []), (429, 7, [b"7"])],
)
def test_a_busy_deployment_behind_is_told_as_its_own_callers_are(
    status: int, seconds: float | None, header: list[bytes]
) -> None:
    error = pickle.loads(pickle.dumps(BackPressureError("app_x", 10, 10, status, seconds)))
    assert (error.status_code, error.retry_after_s) == (status, seconds)
    found, headers, _ = error_response(error)
    assert (found, [value for name, value in headers if name == b"retry-after"]) == (status, header)


def test_an_edition_before_backpressure_configs_reads_the_usual_refusal() -> None:
    assert BackPressureError("app_x", 10, 10).args == ("app_x", 10, 10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it failed:\nTraceback (most recent call last):\n  File", "a_x is unavailable: it failed"),
        ("it failed\n  + Exception Group Traceback (most recent call last):\n  |", "a_x is unavailable: it failed"),
        ("it failed", "a_x is unavailable: it failed"),
    ],
)
def test_why_a_deployment_is_away_without_its_traceback(text: str, expected: str) -> None:
    assert error_response(DeploymentUnavailableError("a_x", text))[2].decode() == expected
