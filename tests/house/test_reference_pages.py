"""The pages about the command line and the admin API: every command, option, path and status is there."""

import re
from pathlib import Path

import pytest
import typer

from servd.cli import app
from servd.rest.openapi import openapi_document

DOCS = Path(__file__).parents[2] / "docs"
CLI, REST = (DOCS / "cli.md").read_text(), (DOCS / "rest.md").read_text()
COMMANDS = typer.main.get_group(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_described(name: str) -> None:
    assert re.search(rf"^\| .*?`{name}\b", CLI, re.MULTILINE)
    named = set(re.findall(r"--[a-z][a-z_-]*", CLI))
    # --blocking is the default and --gradio not there at all
    options = {word for option in COMMANDS[name].params for word in option.opts if word.startswith("--")}
    assert options - named - {"--help", "--blocking", "--gradio"} == set()


def test_no_option_is_made_up() -> None:
    known = {word for c in COMMANDS.values() for option in c.params for word in (*option.opts, *option.secondary_opts)}
    common = {"--help", "--debug", "--install-completion", "--now", "--user"}
    assert set(re.findall(r"--[a-z][a-z_-]*", CLI)) - known - common == set()


@pytest.mark.parametrize("path", openapi_document()["paths"])
def test_every_path_is_described(path: str) -> None:
    assert re.search(rf"`[^`]*{re.escape(path)}`", REST)


def test_every_status_is_explained() -> None:
    found = {
        status
        for verbs in openapi_document()["paths"].values()
        for operation in verbs.values()
        for status in operation["responses"]
    }
    assert [status for status in sorted(found - {"200"}) if not re.search(rf"^\|[^|]*\b{status}\b", REST, re.M)] == []
