"""A page of `docs/` as something that can be run: files that it shows are written, commands are executed, output is compared.

A block whose first line is `# NAME` is that file, from there on in the page. A block `console` has commands behind `$ ` and below
each what it prints: `...` alone stands for any lines, `…` within a line for any text; times, sizes, dates and ids for others of
their kind, blanks for as many as there are. An id of one output, where a later command has it, is the one that was printed.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"(?:#|<!--) (\S+\.\w+|Dockerfile)(?: -->)?\n")
_STATUS_LINE = re.compile(r"^[\d-]{10} [\d:,]+\t\w+\t\S+ -- ", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NUMBER = r"\d+(?:\.\d+)?"
_VARIABLE = re.compile(
    rf"(?P<unit>{_NUMBER} ?(?:ms|s|min|h|B|KB|KiB|MB|MiB|GB|GiB|%)(?!\w))"
    r"|(?P<moment>(?:\d{4}-\d\d-\d\d[ T])?\d\d:\d\d:\d\d(?:[.,]\d+)?(?:[+-]\d\d:?\d\d|Z)?)"
    r"|(?P<tag>#[A-Za-z0-9]{6}\b)"
    r"|(?P<id>\b(?=[0-9a-f-]*\d)[0-9a-f]{8,}(?:-[0-9a-f]{4,})*\b)"
    r"|(?P<any>…)"
    r"|(?P<space> {2,})"
)
_SHAPES = {
    "unit": rf"{_NUMBER} ?(?:ms|s|min|h|B|KB|KiB|MB|MiB|GB|GiB|%)",
    "moment": r"[\d:., T+Z-]+",
    "tag": r"#[A-Za-z0-9]{6}",
    "id": r"([0-9a-f-]{8,})",
    "any": r".*?",
    "space": r" +",
}
LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class File:
    """A file of the reader's folder."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """What is typed, and the lines that it prints."""

    line: str
    prints: tuple[str, ...]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block."""
    return [(found[1], found[2]) for found in _BLOCK.finditer(page.read_text())]


def steps(page: Path) -> Iterator[File | Command]:
    """What a reader does, in order."""
    for language, text in blocks(page):
        if language == "console":
            yield from _commands(text)
        elif named := _FILE.match(text):
            yield File(named[1], text)


def _commands(text: str) -> Iterator[Command]:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, *prints = part.rstrip("\n").split("\n")
        while line.endswith("\\"):
            line = f"{line[:-1].rstrip()} {prints.pop(0).strip()}"
        yield Command(line, tuple(prints))


def matcher(prints: tuple[str, ...]) -> tuple[str, list[str]]:
    """A regular expression for expected lines, and the ids in them, one for each of its groups."""
    ids: list[str] = []
    lines = []
    for line in prints:
        if line.strip() == "...":
            lines.append(r"(?:.*\n)*?")
            continue
        pattern, at = "", 0
        for found in _VARIABLE.finditer(line):
            kind = found.lastgroup or ""
            pattern += re.escape(line[at : found.start()]) + _SHAPES[kind]
            if kind == "id":
                ids.append(found[0])
            at = found.end()
        lines.append(pattern + re.escape(line[at:].rstrip()) + r"[ \t]*\n")
    return "".join(lines), ids


@dataclass(slots=True)
class Reader:
    """Does what a page says, in a folder. changes: text of the page -> text that is true here (ports)."""

    folder: Path
    environment: dict[str, str]
    changes: dict[str, str] = field(default_factory=dict)

    def follow(self, page: Path) -> None:
        """All steps of a page; AssertionError where something else is printed than the page shows."""
        known: dict[str, str] = {}
        for step in steps(page):
            if isinstance(step, File):
                path = self.folder / step.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._changed(step.text))
            else:
                known |= self._do(step, known)

    def _changed(self, text: str) -> str:
        for before, after in self.changes.items():
            text = text.replace(before, after)
        return text

    def _do(self, command: Command, known: dict[str, str]) -> dict[str, str]:
        line = self._changed(command.line)
        for shown, real in known.items():
            line = line.replace(shown, real)
        said = _STATUS_LINE.sub("", _COLOURS.sub("", self._run(line)))
        pattern, ids = matcher(tuple(self._changed(text) for text in command.prints))
        text = "".join(f"{text.rstrip()}\n" for text in said.rstrip().splitlines())
        found = re.fullmatch(pattern, text)
        assert found, f"$ {line}\n--- printed:\n{text}\n--- the page shows:\n" + "\n".join(command.prints)
        return dict(zip(ids, found.groups(), strict=True))

    def _run(self, line: str) -> str:
        process = subprocess.Popen(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            return process.communicate(timeout=LIMIT_S)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"$ {line}\nran longer than {LIMIT_S} s: {process.communicate()[0]}") from None


def environment(state_dir: str) -> dict[str, str]:
    """Of commands: those of this interpreter, on one state directory."""
    left_out = ("SERVD_ADDRESS", "RAY_AGENT_ADDRESS", "RAY_DASHBOARD_ADDRESS", "PYTEST_ADDOPTS")
    found = {name: value for name, value in os.environ.items() if name not in left_out}
    path = f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"
    own = {"PATH": path, "SERVD_STATE_DIR": state_dir, "TERM": "dumb", "COLUMNS": "120"}
    # a reader has no plugins of ours
    return {**found, **own, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
