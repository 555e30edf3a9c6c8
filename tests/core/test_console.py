"""What progress lines say of a failure."""

import io

import pytest

from servd.commands.console import PlainLines, ProgressRow

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
