"""Values, exceptions and applications survive the way to another process."""

import importlib.util
import linecache
import pickle
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest

import servd
from servd.calls import pickling
from servd.calls.moved_modules import MOVED, MOVED_NAMES, RENAMED, home_of
from servd.exceptions import BackPressureError, DeployError, UserCodeError
from servd.observability.tracebacks import user_traceback


class NeedsKeyword(Exception):
    def __init__(self, *, code: int) -> None:
        self.code = code


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize("value", [None, 1, "text", b"bytes", {"a": [1, (2, {3})]}, 2**100])
def test_plain_values_come_back_equal(value: Any) -> None:
    assert pickling.loads(pickling.dumps(value)) == value


def test_large_arrays_travel_beside_the_pickle() -> None:
    array = np.arange(20_000, dtype=np.float64)
    parts = pickling.dumps({"x": array})
    assert len(parts) == 2
    assert len(parts[0]) < 1000
    assert np.array_equal(pickling.loads(parts)["x"], array)


def test_small_arrays_stay_inside() -> None:
    parts = pickling.dumps(np.arange(3))
    assert len(parts) == 1
    assert pickling.loads(parts).tolist() == [0, 1, 2]


def test_functions_defined_in_place_travel_by_value() -> None:
    offset = 5
    assert pickling.loads(pickling.dumps(lambda x: x + offset))(1) == 6


def test_unpicklable_values_are_refused_with_their_type() -> None:
    with pytest.raises(TypeError, match="cannot send dict to another process"):
        pickling.dumps({"lock": threading.Lock()})


def test_an_exception_keeps_its_class_and_brings_its_traceback() -> None:
    error = pickling.load_exception(pickling.dump_exception(raised(ValueError("boom", 3))))
    assert type(error) is ValueError
    assert error.args == ("boom", 3)
    assert isinstance(error.__cause__, UserCodeError)
    assert "test_pickling.py" in str(error.__cause__)


def test_an_exception_whose_constructor_wants_keywords_is_rebuilt() -> None:
    error = pickling.load_exception(pickling.dump_exception(raised(NeedsKeyword(code=7))))
    assert type(error) is NeedsKeyword
    assert error.code == 7


def test_servds_own_errors_cross() -> None:
    error = pickling.load_exception(pickling.dump_exception(BackPressureError("app_d", 3, 2)))
    assert isinstance(error, BackPressureError)
    assert (error.queued, error.limit) == (3, 2)


def test_an_exception_that_cannot_be_pickled_arrives_as_text() -> None:
    original = HoldsLock()
    error = pickling.load_exception(pickling.dump_exception(raised(original)))
    assert type(error) is UserCodeError
    assert "HoldsLock: holds a lock" in str(error)


def test_an_exception_whose_class_is_unknown_here_arrives_as_text() -> None:
    module = types.ModuleType("gone_module")
    exec("class Gone(Exception): pass", module.__dict__)
    sys.modules["gone_module"] = module
    try:
        parts = pickling.dump_exception(module.Gone("left"))
    finally:
        del sys.modules["gone_module"]
    error = pickling.load_exception(parts)
    assert type(error) is UserCodeError
    assert "Gone: left" in str(error)


@pytest.mark.parametrize("error", [StopIteration(1), SystemExit(2), KeyboardInterrupt()])
def test_what_futures_refuse_arrives_as_text(error: BaseException) -> None:
    assert type(pickling.load_exception(pickling.dump_exception(error))) is UserCodeError


def test_damaged_exception_parts_give_an_error_not_a_crash() -> None:
    assert isinstance(pickling.load_exception([b"junk"]), UserCodeError)


def test_an_application_needs_the_same_python() -> None:
    data = pickling.dump_application({"x": 1})
    assert pickling.load_application(data) == {"x": 1}
    head, _, body = data.partition(b"\n")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    other = head.replace(here.encode(), b"3.99") + b"\n" + body
    with pytest.raises(DeployError, match=rf"3\.99.*{here}"):
        pickling.load_application(other)
    with pytest.raises(DeployError, match="damaged"):
        pickling.load_application(pickle.dumps(1))


def test_what_changes_later_travels_as_it_was() -> None:
    array = np.zeros(100_000)
    parts = pickling.dumps(array)
    array[:] = 1
    assert pickling.loads(parts).sum() == 0


def test_what_cannot_change_is_not_copied() -> None:
    array = np.frombuffer(bytes(200_000), np.uint8)
    _, buffer = pickling.dumps(array)
    assert np.shares_memory(np.frombuffer(buffer, np.uint8), array)


@pytest.mark.parametrize(("old", "new"), sorted(MOVED.items()))
def test_modules_that_moved_are_found_under_their_old_names(old: str, new: str) -> None:
    assert importlib.util.find_spec(new) is not None
    assert importlib.util.find_spec(old) is None, "then nothing has moved"


@pytest.mark.parametrize(
    ("old", "name"), [*RENAMED, *((old, name) for old, names in MOVED_NAMES.items() for name in names)]
)
def test_names_that_left_their_module_are_found(old: str, name: str) -> None:
    module, new_name = home_of(old, name)
    assert (module, new_name) != (old, name)
    assert hasattr(importlib.import_module(module), new_name)


def test_a_shipped_application_may_name_modules_that_moved() -> None:
    # a class of the package, and the module as a whole, as an earlier version pickled them
    by_class = b"cservd.application\nApplication\n."
    by_module = b"ccloudpickle.cloudpickle\nsubimport\n(Vservd.response\ntR."
    head = f"servd application, python {sys.version_info.major}.{sys.version_info.minor} 0\n".encode()
    assert pickling.load_application(head + by_class) is servd.Application
    assert pickling.load_application(head + by_module).get is servd.get


def test_source_of_code_without_a_file_travels_with_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def fail():\n    raise ValueError('in a notebook')\n"
    lines = text.splitlines(keepends=True)
    monkeypatch.setattr(linecache, "cache", {"<dynamic-code>": (len(text), None, lines, "<dynamic-code>")})
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "<dynamic-code>", "exec"), space)
    shipped = pickling.dump_application(space["fail"])
    linecache.cache.clear()
    with pytest.raises(ValueError) as caught:
        pickling.load_application(shipped)()
    assert "    raise ValueError('in a notebook')" in user_traceback(caught.value)


def test_what_earlier_versions_shipped_has_no_sources() -> None:
    head = pickling.dump_application(3).partition(b"\n")[0]
    assert pickling.load_application(head + b"\n" + pickle.dumps(4)) == 4
