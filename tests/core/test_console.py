"""What progress lines and lists of errors say of a failure."""

import io
from typing import Any

import pytest

from servd.commands.console import PlainLines, ProgressRow, fitting
from servd.commands.errors import show_error, show_errors
from servd.daemon.admin_client import AdminClient

MISSING = """Deploying application a failed: Traceback (most recent call last):
  File "/code/app.py", line 1, in <module>
    import torch
ModuleNotFoundError: No module named 'torch'
Searched for modules in: /code; then among the installed packages.
To add a directory, name it as working_dir."""

NO_MODULE = """Deploying application a failed: ModuleNotFoundError: No module named 'nomod'
Searched for modules in: /code; then among the installed packages."""

SYNTAX = """Deploying application a failed:   File "/code/app.py", line 2
    def f(:
          ^
SyntaxError: invalid syntax"""

CONSTRUCTOR = """The deployment failed to start 3 times in a row; the next try is 2.2 s after the last one. Last error:
Traceback (most recent call last):
  File "/code/app.py", line 6, in __init__
    self.load()
RuntimeError: no weights"""

DIED = """The deployment failed to start 3 times in a row; the next try is 2.2 s after the last one. Last error:
the replica process exited with signal 11 before it was ready"""


BLOCKED = """blocked 31 s in model.py:42
  File "/code/model.py", line 40, in predict
    while True:"""


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (MISSING, "ModuleNotFoundError: No module named 'torch'"),
        (NO_MODULE, "Deploying application a failed: ModuleNotFoundError: No module named 'nomod'"),
        (SYNTAX, "SyntaxError: invalid syntax"),
        (CONSTRUCTOR, "RuntimeError: no weights"),
        (DIED, "the replica process exited with signal 11 before it was ready"),
        (BLOCKED, "blocked 31 s in model.py:42"),
        ("out of \x1b[31mreach\x1b[0m", "out of reach"),
    ],
)
def test_progress_tells_the_error(message: str, told: str) -> None:
    stream = io.StringIO()
    PlainLines(stream).update([ProgressRow("a", "", "DEPLOY_FAILED", message=message)])
    assert stream.getvalue() == f"a: DEPLOY_FAILED - {told}\n"


def test_progress_without_a_message_ends_with_the_status() -> None:
    stream = io.StringIO()
    PlainLines(stream).update([ProgressRow("a", "D", "UPDATING", 1, 2, " \n")])
    assert stream.getvalue() == "a/D: UPDATING 1/2 replicas\n"


class OneError(AdminClient):
    """Knows one error, of a request whose id and path command a terminal."""

    def __init__(self) -> None:
        names = ("id", "application", "deployment", "message", "place", "method", "traceback")
        self._one = {name: name for name in names} | {
            "count": 1,
            "first_at": 1.0,
            "last_at": 2.0,
            "route": "/\x1b[2J\nerror: other",
            "request_ids": ["a\x1b[2J\nb"],
        }

    def probe(self) -> dict[str, Any]:
        return {}

    def errors(self, application: str = "", deployment: str = "") -> list[dict[str, Any]]:
        return [self._one]

    def error(self, error_id: str) -> dict[str, Any]:
        return self._one


def test_errors_are_shown_without_what_a_request_brought_for_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_errors(OneError(), "", "table")
    assert capsys.readouterr().out.splitlines()[1].endswith("a\\x1b[2J\\nb")
    show_error(OneError(), "id", "table")
    shown = capsys.readouterr().out
    assert "\nroute: /\\x1b[2J\\nerror: other\n" in shown
    assert "\nrequests: a\\x1b[2J\\nb\n\ntraceback\n" in shown


@pytest.mark.parametrize(
    ("width", "head"),
    [
        (80, ["name", "state", "cpu", "fds"]),
        (32, ["name", "state", "cpu", "fds"]),
        (31, ["name", "state", "cpu"]),
        (24, ["name", "state"]),
        (1, ["name"]),
    ],
)
def test_a_narrow_terminal_does_without_the_columns_that_count_least(width: int, head: list[str]) -> None:
    rows = [("shop_Fruit#ab", "RUNNING", "3%", "1"), ("", "x", "", "")]
    found, body = fitting(("name", "state", "cpu", "fds"), rows, width, ("fds", "cpu", "state"))
    assert found == head
    assert [len(row) for row in body] == [len(head)] * 2
    assert body[0][0] == "shop_Fruit#ab"
