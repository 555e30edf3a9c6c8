"""`docs/testing.md` as it stands, in a folder of its own, and the daemon of `servd.testing`."""

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

import servd
from servd.calls import connection
from servd.exceptions import ServdError
from servd.testing import Daemon, daemon
from tests.system.running_daemon import titles

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
BLOCKS = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)


def written_to(folder: Path) -> Path:
    for name, text in BLOCKS:
        if name.endswith(".py"):
            (folder / name).write_text(text)
    return folder


def test_every_block_of_the_page_is_run() -> None:
    assert PAGE.read_text().count("```python") == len(BLOCKS)
    assert [name for name, _ in BLOCKS if not name.endswith(".py")] == ["notebook"]


@pytest.mark.long
def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    # no plugins but the one that the page names
    options = [
        "-p",
        "pytest_asyncio.plugin",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "-p",
        "no:cacheprovider",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *options]
    done = subprocess.run(
        command,
        cwd=written_to(tmp_path),
        env={**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{sum(text.count('def test_') for _, text in BLOCKS)} passed" in done.stdout


@pytest.mark.long
def test_the_notebook_of_the_page_runs_in_an_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(written_to(tmp_path)))
    cell = compile(dict(BLOCKS)["notebook"], "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed: list[Any] = []

    async def run() -> None:
        found = eval(cell, {"print": printed.append})
        if inspect.isawaitable(found):
            await found

    asyncio.run(run())
    assert printed == [3.0, pytest.approx(3.3)]


@servd.deployment
def echo(request: Any) -> str:
    return str(request.query_params["text"])


@pytest.mark.long
def test_a_daemon_is_this_process_own_and_leaves_nothing() -> None:
    with daemon() as running:
        servd.run(echo.bind(), name="echo", route_prefix="/echo")
        with running.client() as http:
            assert http.get("/echo?text=hi").text == "hi"
        assert asyncio.run(_asked(running)) == "hi"
        assert servd.get_app_handle("echo") is not None
        with pytest.raises(ServdError, match="has started a daemon already"), daemon():
            pass
        # as at the end of a test written for Ray Serve; twice, and it goes on
        for _ in range(2):
            servd.shutdown()
            assert servd.status().applications == {}
        servd.run(echo.bind(), name="again", route_prefix="/again")
        with running.client() as http:
            assert http.get("/again?text=hi").text == "hi"
        state_dir = running.state_dir
        assert list(titles(state_dir))
    assert not os.path.exists(state_dir)
    assert not list(titles(state_dir))
    assert connection._connection is None
    # and another one after it
    with daemon() as running:
        assert running.state_dir != state_dir


async def _asked(running: Daemon) -> str:
    async with running.async_client() as http:
        answer: httpx.Response = await http.get("/echo", params={"text": "hi"})
        return answer.text
