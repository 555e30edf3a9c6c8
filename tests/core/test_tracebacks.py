"""Tracebacks hold the user's frames."""

import asyncio
import json

from servd.tracebacks import user_traceback


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
