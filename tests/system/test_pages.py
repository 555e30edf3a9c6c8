"""The pages of `docs/` as they stand: their files, their commands, what these print."""

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from servd.cli import app
from tests.ports import free_port
from tests.system.executable_page import Command, File, Reader, blocks, environment, matcher, steps
from tests.warm_command import servd_command

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    "../README.md",
    "tutorial.md",
    *sorted(f"howto/{path.name}" for path in (DOCS / "howto").glob("*.md")),
    "security.md",
    "production.md",
    "deployment.md",
]
EXAMPLES = DOCS.parent / "examples"
NEEDS = {"grpc": "grpc", "pytorch": "torch"}
"""What an example is about, and may lack here."""
COMMANDS = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_a_file_or_commands(page: str) -> None:
    for language, text in blocks(DOCS / page):
        assert language in ("python", "yaml", "console", "text"), language
        if language in ("python", "yaml"):
            assert re.match(r"# \S+\.(py|yaml)\n", text), f"{page}: a block without the name of its file:\n{text}"


@pytest.mark.parametrize("page", PAGES)
def test_files_are_what_their_names_say_and_commands_exist(page: str) -> None:
    for step in steps(DOCS / page):
        if isinstance(step, File):
            read = ast.parse if step.name.endswith(".py") else yaml.safe_load
            read(step.text)
        elif step.line.startswith("servd "):
            assert shlex.split(step.line)[1] in COMMANDS, step.line


def test_what_is_compared() -> None:
    shown = ("took 1.5 ms at 12:30:01 in a_B#aBcDeF", "...", "id 1234567890 ends … here", "3 left")
    pattern, ids = matcher(shown)
    assert ids == ["1234567890"]
    found = re.fullmatch(
        pattern, "took 20 ms at 01:02:03 in a_B#ZZZZZZ\nanything\nid 0123456789abcdef ends it all here\n3 left\n"
    )
    assert found
    assert found.groups() == ("0123456789abcdef",)
    assert not re.fullmatch(
        pattern, "took 20 ms at 01:02:03 in a_B#ZZZZZZ\nid 0123456789abcdef ends it all here\n4 left\n"
    )


class Place:
    """A state directory with a daemon, and how a page's ports are called here."""

    def __init__(self, folder: Path) -> None:
        self.environment = environment(str(folder / "state"))
        self.http, self.admin = free_port(), free_port()

    def reader(self, folder: Path) -> Reader:
        changes = {
            "servd start --detach": f"servd start --detach {self.ports()}",
            "127.0.0.1:8000": f"127.0.0.1:{self.http}",
            "127.0.0.1:52365": f"127.0.0.1:{self.admin}",
            "/home/me/iris": str(folder),
            "/home/me/shop": str(folder),
        }
        return Reader(folder, self.environment, changes)

    def ports(self) -> str:
        return f"--http-port {self.http} --admin-port {self.admin} --dashboard-port 0"

    def servd(self, *arguments: str) -> None:
        code, out, err = servd_command(arguments, DOCS, self.environment)
        assert code == 0, out + err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One daemon for all pages that do not start one themselves."""
    place = Place(tmp_path_factory.mktemp("pages"))
    place.servd("start", "--detach", *place.ports().split())
    yield place
    place.servd("stop")


def starts_a_daemon(page: str) -> bool:
    return any(isinstance(step, Command) and step.line.startswith("servd start") for step in steps(DOCS / page))


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if not starts_a_daemon(page)])
def test_a_page_does_what_it_says(page: str, place: Place, tmp_path: Path) -> None:
    try:
        place.reader(tmp_path).follow(DOCS / page)
    finally:
        place.servd("shutdown", "-y")


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if starts_a_daemon(page)])
def test_a_page_with_a_daemon_of_its_own_does_what_it_says(page: str, tmp_path: Path) -> None:
    place = Place(tmp_path)
    folder = tmp_path / "reader"
    folder.mkdir()
    try:
        place.reader(folder).follow(DOCS / page)
    finally:
        place.servd("stop")


def test_every_example_has_a_page() -> None:
    folders = {path.parent for path in EXAMPLES.rglob("*.py")}
    assert folders == {path.parent for path in EXAMPLES.rglob("README.md")}


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.parent.name for path in EXAMPLES.glob("*/README.md")))
def test_the_page_of_an_example_does_what_it_says(name: str, place: Place, tmp_path: Path) -> None:
    if (needed := NEEDS.get(name)) and find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    for folder in (EXAMPLES, DOCS.parent / "configs"):
        shutil.copytree(folder, tmp_path / folder.name)
    port = str(free_port())
    for file in (tmp_path / "configs" / "grpc.yaml", tmp_path / "examples" / "grpc" / "buy.py"):
        file.write_text(file.read_text().replace("9000", port))
    folder = tmp_path / "examples" / name
    try:
        place.reader(folder).follow(folder / "README.md")
    finally:
        place.servd("shutdown", "-y")
