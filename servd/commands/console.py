"""What a terminal shows: status lines, and the progress of deployments as a live table or as plain lines."""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from servd.ground.clock import SystemClock

if TYPE_CHECKING:
    from rich.table import Table

_COLOUR_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_GAP = 2
"""Between two columns of a table."""
_BLOCKED = re.compile(r"blocked \d+ s")
_FRAME = re.compile(r"Traceback \(most recent call last\)|(^|\s)File \"")
_COLOURS = {
    "RUNNING": "green",
    "HEALTHY": "green",
    "DEPLOY_FAILED": "red",
    "UNHEALTHY": "red",
    "DELETING": "yellow",
    "DEPLOYING": "cyan",
    "UPDATING": "cyan",
    "restarted": "yellow",
    "removed": "red",
    "failed": "red",
    "added": "green",
    "reconfigured": "cyan",
}


def say(text: str, level: str = "INFO") -> None:
    """One status line on stdout; with time, level (SUCC, INFO, WARN) and source position when it is no terminal."""
    print(_decorated(text, level, sys.stdout), flush=True)


def warn(text: str) -> None:
    """One line on stderr."""
    print(f"Warning: {text}", file=sys.stderr, flush=True)


def _decorated(text: str, level: str, stream: TextIO) -> str:
    if stream.isatty():
        return text
    frame = sys._getframe(2)
    place = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
    moment = datetime.fromtimestamp(SystemClock().wall_time()).strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
    return f"{moment}\t{level}\t{place} -- {text}"


def without_colours(text: str) -> str:
    """The text without terminal colour codes."""
    return _COLOUR_CODES.sub("", text)


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """One application (deployment "") or one deployment of it."""

    app: str
    deployment: str
    status: str
    running: int = 0
    wanted: int = 0
    message: str = ""

    @property
    def replicas(self) -> str:
        """`running/wanted`, "" for an application."""
        return f"{self.running}/{self.wanted}" if self.deployment else ""


def progress_rows(status: dict[str, Any], apps: Iterable[str]) -> list[ProgressRow]:
    """Rows of the named applications, from servd's own status."""
    rows = []
    for name in apps:
        app = status["applications"].get(name)
        if app is None:
            continue
        rows.append(ProgressRow(name, "", app["status"], message=app["message"]))
        for deployment in app["deployments"].values():
            running = sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
            rows.append(
                ProgressRow(
                    name,
                    deployment["name"],
                    deployment["status"],
                    running,
                    deployment["target_num_replicas"],
                    deployment["message"],
                )
            )
    return rows


STATUS_HEAD = ("application", "deployment", "route", "status", "age", "replicas", "reason")
VERBOSE_HEAD = (*STATUS_HEAD[:-1], "start", STATUS_HEAD[-1])


def status_rows(
    status: dict[str, Any], apps: Iterable[str], now: float, *, is_verbose: bool = False
) -> list[tuple[str, ...]]:
    """Rows under `STATUS_HEAD`, or `VERBOSE_HEAD`, from servd's own status; now: wall time, seconds."""
    rows: list[tuple[str, ...]] = []
    for name in apps:
        app = status["applications"][name]
        since = age(now - app["last_deployed_time_s"])
        started = [""] if is_verbose else []
        rows.append(
            (name, "", app["route_prefix"] or "none", app["status"], since, "", *started, _gist(app["message"]))
        )
        for deployment in app["deployments"].values():
            replicas = deployment["replicas"]
            running = [replica for replica in replicas if replica["state"] == "RUNNING"]
            count = f"{len(running)}/{deployment['target_num_replicas']}"
            others = [replica["state"] for replica in replicas if replica["state"] != "RUNNING"]
            states = [f"{others.count(state)} {state}" for state in dict.fromkeys(others)]
            since = age(now - min(replica["start_time_s"] for replica in replicas)) if replicas else ""
            shown = " ".join([count, *states])
            started = [_start_methods(replicas)] if is_verbose else []
            rows.append(("", deployment["name"], "", deployment["status"], since, shown, *started, _reason(deployment)))
    return rows


def _start_methods(replicas: Iterable[dict[str, Any]]) -> str:
    """How they were started: "fork", "spawn", or how many each way."""
    methods = [replica["start_method"] for replica in replicas]
    kinds = sorted(set(methods))
    return ", ".join(kinds if len(kinds) < 2 else (f"{methods.count(kind)} {kind}" for kind in kinds))


def _reason(deployment: dict[str, Any]) -> str:
    """Why a deployment is not as it should be."""
    if deployment["message"]:
        return _gist(deployment["message"])
    unwell = [replica["message"] for replica in deployment["replicas"] if replica.get("message")]
    if unwell:
        return _gist(unwell[0])
    dead = deployment["recent_dead_replicas"]
    if dead and deployment["status"] != "HEALTHY":
        return _gist(f"{dead[-1]['replica_id']} died: {dead[-1]['reason']}")
    return deployment["status_trigger"].replace("_", " ").lower() if deployment["status"] != "HEALTHY" else ""


def _gist(message: str) -> str:
    """The line that says most: of a traceback its error, else the last error that is quoted, else the first line."""
    lines = [line.rstrip() for line in without_colours(message).strip().splitlines() if line.strip()]
    frames = [number for number, line in enumerate(lines) if _FRAME.search(line)]
    if lines and _BLOCKED.match(lines[0]):
        # where it is now, not an error
        return lines[0]
    if frames:
        # below the frames: source lines are indented, the error is not; hints may follow it
        return next((line for line in lines[frames[-1] + 1 :] if not line.startswith(" ")), lines[-1].strip())
    quoted = [number for number, line in enumerate(lines) if line.endswith("Last error:")]
    return next(iter(lines[quoted[-1] + 1 :] if quoted else lines), "").strip()


def age(seconds: float) -> str:
    """A duration for people: 5s, 3m, 2h, 4d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], dispensable: Iterable[str] = ()) -> None:
    """Print a table: with colours on a terminal, else in plain columns of any width. dispensable: see `fitting`."""
    columns, body = tuple(head), [tuple(row) for row in rows]
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _coloured_table(columns, body, dispensable)
        return
    widths = [max(len(row[i]) for row in [columns, *body]) for i in range(len(columns))]
    for row in [columns, *body]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def fitting(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int, dispensable: Iterable[str]
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table, without as many of the dispensable columns as do not fit; the first named go first.

    width: of the terminal, letters.
    """
    kept = list(range(len(head)))
    widths = [max(len(row[at]) for row in (head, *rows)) for at in kept]
    for name in dispensable:
        if sum(widths[at] + _GAP for at in kept) - _GAP <= width:
            break
        kept.remove(head.index(name))
    return [head[at] for at in kept], [[row[at] for at in kept] for row in rows]


def _coloured_table(head: tuple[str, ...], rows: list[tuple[str, ...]], dispensable: Iterable[str]) -> None:
    # here and not above: most commands show no table, and rich is slow to import
    from rich.console import Console

    console = Console()
    console.print(_drawn(*fitting(head, rows, console.width, dispensable)))


def _drawn(head: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*head, box=None, pad_edge=False)
    # what the row is about: it is asked for by this name
    drawn.columns[0].min_width = max(len(row[0]) for row in (head, *rows))
    for row in rows:
        drawn.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    return drawn


class Screen:
    """The whole terminal, drawn again and again; what was there comes back at its close."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.text import Text

        self._group, self._text = Group, Text
        self._live = Live(console=Console(file=stream), screen=True, auto_refresh=False)
        self._live.start()

    def update(
        self,
        headline: str,
        head: Sequence[str],
        rows: Iterable[tuple[str, ...]],
        below: Iterable[str],
        dispensable: Iterable[str] = (),
    ) -> None:
        """Show a line, a table and further lines. dispensable: see `fitting`."""
        lines = [self._text(line) for line in below]
        drawn = _drawn(*fitting(head, list(rows), self._live.console.width, dispensable))
        self._live.update(self._group(self._text(headline), drawn, *lines), refresh=True)

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()


def screen_on(stream: TextIO) -> Screen | None:
    """The terminal that this stream goes to; None where it goes to none that can be drawn on."""
    return Screen(stream) if stream.isatty() and os.environ.get("TERM") != "dumb" else None


class Progress(Protocol):
    """Shows rows; each `update` is the whole truth."""

    def update(self, rows: list[ProgressRow]) -> None:
        """Show these rows from now on."""
        ...

    def close(self) -> None:
        """Leave the last state on the screen."""
        ...


def progress_on(stream: TextIO) -> Progress:
    """A live table on a terminal, plain lines otherwise."""
    return LiveTable(stream) if stream.isatty() and os.environ.get("TERM") != "dumb" else PlainLines(stream)


class PlainLines:
    """A line for every row that changed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: dict[tuple[str, str], ProgressRow] = {}

    def update(self, rows: list[ProgressRow]) -> None:
        for row in rows:
            key = (row.app, row.deployment)
            if self._shown.get(key) == row:
                continue
            self._shown[key] = row
            name = f"{row.app}/{row.deployment}" if row.deployment else row.app
            replicas = f" {row.replicas} replicas" if row.deployment else ""
            reason = f" - {_gist(row.message)}" if row.message.strip() else ""
            print(f"{name}: {row.status}{replicas}{reason}", file=self._stream, flush=True)

    def close(self) -> None:
        pass


class LiveTable:
    """A table that is drawn again in place."""

    def __init__(self, stream: TextIO) -> None:
        # here and not above: most commands show no table, and rich is slow to import
        from rich.console import Console
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        self._table, self._text = Table, Text
        self._live = Live(console=Console(file=stream), refresh_per_second=8)
        self._live.start()

    def update(self, rows: list[ProgressRow]) -> None:
        table = self._table("application", "deployment", "status", "replicas", "message", box=None)
        for row in rows:
            status = self._text(row.status, style=_COLOURS.get(row.status, "cyan"))
            message = self._text(_gist(row.message))
            app = self._text(row.app if not row.deployment else "")
            table.add_row(app, self._text(row.deployment), status, row.replicas, message)
        self._live.update(table)

    def close(self) -> None:
        self._live.stop()
