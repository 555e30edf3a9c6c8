"""The examples of `docs/api.md`, in order, in one program that has a daemon; what other pages show of commands and documents."""

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import servd
from servd import testing
from servd.cli import app as command_line
from servd.schema import ServeDeploySchema
from tests.system.executable_page import blocks

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
COMMANDS = typer.main.get_group(command_line).commands
EXAMPLES = [text for language, text in blocks(DOCS / "api.md") if language == "python"]
GIVEN = """
from collections.abc import AsyncGenerator

import numpy
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request

import servd
from servd import deployment
from servd.config import AutoscalingConfig
from servd.dag import InputNode
from servd.drivers import DAGDriver
from servd.exceptions import BackPressureError
from servd.handle import DeploymentHandle
from servd.http_adapters import json_request

class Row(BaseModel):
    text: str = ""

@deployment
class Market:
    def price(self, fruit: str, count: int = 1) -> int:
        return 3 * count

    def __call__(self, number: int) -> int:
        return number

market = Market.bind()
x, fallback = 1, None
"""
"""What the examples take as known."""


def the(name: str, code: str) -> Any:
    """What some code calls by that name."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(code, names)
    return names[name]


def greeter() -> Any:
    return servd.run(the("app", EXAMPLES[0]), name="default")


def market() -> Any:
    return servd.run(the("market", GIVEN), name="fruit", route_prefix="/fruit")


NEEDED: dict[str, tuple[str, Callable[[], Any]]] = {
    'applications["default"]': ("handle", greeter),
    'get_deployment("default_Greeter")': ("handle", greeter),
    "servd.build(app)": ("app", lambda: the("app", EXAMPLES[0])),
    '"Market", "fruit"': ("handle", market),
    "servd.get([": ("handle", market),
    "await handle.remote(x)": ("handle", lambda: servd.get_app_handle("fruit")),
    'get_serve_status("fruit")': ("handle", market),
}
"""What is in an example -> a name that it takes as known besides, and how that is made."""


@pytest.mark.slow
def test_the_examples_run() -> None:
    names: dict[str, Any] = {"__name__": "page"}
    exec(GIVEN, names)
    with testing.daemon() as daemon:
        for example in EXAMPLES:
            names |= {name: made() for what, (name, made) in NEEDED.items() if what in example}
            code = example.replace("9000", daemon.url.rpartition(":")[2])
            try:
                if "get_replica_context()" in code:
                    assert re.fullmatch(r"inside_Inside#\w{6}\n", printed_in_a_replica(code))
                else:
                    run(code, names)
            except Exception as error:
                raise AssertionError(f"this example fails:\n{code}") from error
    try:
        names["test_greeter"]()
    finally:
        # the one in this process, which handles of other tests would mean
        servd.delete("default")


def run(code: str, names: dict[str, Any]) -> None:
    result = eval(compile(code, "docs/api.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.iscoroutine(result):
        asyncio.run(result)


def printed_in_a_replica(code: str) -> str:
    @servd.deployment
    class Inside:
        def __call__(self) -> str:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, {"servd": servd})
            return out.getvalue()

    return str(servd.run(Inside.bind(), name="inside", route_prefix="/inside").remote().result(10))


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_options_that_are_shown(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # options that hold for processes to come set variables
    monkeypatch.setattr("os.environ", dict(os.environ))
    for language, text in blocks(DOCS / page):
        for line in text.splitlines() if language == "console" else ():
            if line.startswith("$ servd "):
                words = shlex.split(re.split(r"\s(?:#|\||>|&&|2>)", line.removeprefix("$ servd "))[0])
                COMMANDS[words[0]].make_context(words[0], words[1:], resilient_parsing=True)


def documents() -> list[tuple[str, dict[str, Any]]]:
    """With absolute paths, as the command line makes them."""
    found = [
        (page, yaml.safe_load(re.sub(r"(working_dir: )\.[^,}\n]*", r"\1/srv", text)))
        for page in PAGES
        for language, text in blocks(DOCS / page)
        if language == "yaml"
    ]
    return [(page, one) for page, one in found if one.keys() & {"applications", "http_options", "grpc_options"}]


@pytest.mark.parametrize(("page", "document"), documents())
def test_a_document_is_one(page: str, document: dict[str, Any]) -> None:
    ServeDeploySchema.model_validate({"applications": [], **document})
