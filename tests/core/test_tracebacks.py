"""Tracebacks hold the user's frames."""

import asyncio
import bdb
import json
from pathlib import Path
from typing import Any

import pytest

from servd.observability.tracebacks import show_as, user_traceback


def test_causes_are_kept() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as cause:
            raise ValueError("second") from cause
    except ValueError as error:
        text = user_traceback(error)
    assert text.index("KeyError: 'first'") < text.index("ValueError: second")
    assert "direct cause" in text


def test_what_the_users_call_ran_into_is_kept() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        text = user_traceback(error)
    assert "test_tracebacks.py" in text
    assert "json/decoder.py" in text


def test_machinery_above_the_user_is_left_out() -> None:
    async def fail() -> None:
        raise ValueError("x")

    try:
        asyncio.run(fail())
    except ValueError as error:
        frames = user_traceback(error).splitlines()
    assert "in test_machinery" in frames[1]

    def body() -> str:
        try:
            fail().send(None)
        except ValueError as error:
            return user_traceback(error)
        return ""

    assert "asyncio" not in body()


def test_an_error_without_frames_is_one_line() -> None:
    assert user_traceback(ValueError("x")) == "ValueError: x"


def test_lone_surrogates_become_escapes() -> None:
    assert user_traceback(ValueError("a\udcff")) == "ValueError: a\\udcff"


def test_paths_are_those_of_the_users_own_files(tmp_path: Path) -> None:
    copy = tmp_path / "9b054d"
    copy.mkdir()
    module = copy / "model.py"
    module.write_text("def load():\n    raise ValueError('no ' + __file__)\n")
    show_as({str(copy): "/home/me/project"})
    try:
        found: dict[str, Any] = {"__file__": str(module)}
        exec(compile(module.read_text(), str(module), "exec"), found)
        with pytest.raises(ValueError) as failure:
            found["load"]()
        text = user_traceback(failure.value)
    finally:
        show_as({})
    assert 'File "/home/me/project/model.py", line 2, in load\n    raise ValueError' in text
    assert text.endswith("ValueError: no /home/me/project/model.py")


def test_a_syntax_error_begins_on_a_line_of_its_own() -> None:
    with pytest.raises(SyntaxError) as failure:
        compile("def broken(:\n    pass\n", "/home/me/bad.py", "exec")
    # without the frames of whoever compiled it, as when a module is imported
    text = user_traceback(failure.value.with_traceback(None))
    assert text.splitlines()[:3] == [
        "Traceback (most recent call last):",
        '  File "/home/me/bad.py", line 1',
        "    def broken(:",
    ]
    assert text.endswith("SyntaxError: invalid syntax")


@pytest.mark.parametrize(
    "text",
    [
        "object int can't be used in 'await' expression",
        "'int' object can't be awaited",
    ],
    ids=["until Python 3.13", "from Python 3.14 on"],
)
def test_a_second_await_is_explained_whatever_the_interpreter_calls_it(text: str) -> None:
    assert "SERVD_LEGACY_HANDLES" in user_traceback(TypeError(text))
    assert "SERVD_LEGACY_HANDLES" not in user_traceback(ValueError(text))


def test_a_debugger_without_a_terminal_says_where_there_is_one() -> None:
    assert "`servd.run(app, local=True)" in user_traceback(bdb.BdbQuit())
    assert "SERVD_LEGACY_HANDLES" not in user_traceback(TypeError("another one"))


async def test_a_second_await_is_explained_by_this_interpreter() -> None:
    with pytest.raises(TypeError) as caught:
        await 5  # type: ignore[misc]
    assert "SERVD_LEGACY_HANDLES" in user_traceback(caught.value)
