"""The results as text: how every system was configured, one table, the aims."""

from collections.abc import Iterator, Sequence

from benchmarks.compare.figures import Row, Sample, rows
from benchmarks.compare.results import Results
from benchmarks.compare.table import number, times
from benchmarks.models.cases import BASE, CASES, verdicts

HEAD = ("", "system", "median", "lowest", "highest", "p99 ms", "CPU ms", f"{BASE} is")
LEFT = 2
"""Columns of words, set to the left."""


def lines(samples: Sequence[Sample]) -> Iterator[list[str]]:
    """The table's cells, an empty line before each group."""
    order = list(CASES)
    shown = ""
    for row in sorted(rows(samples, BASE), key=lambda row: order.index(row.case)):
        if shown and row.case != shown:
            yield []
        yield [CASES[row.case] if row.case != shown else "", *_cells(row)]
        shown = row.case


def _cells(row: Row) -> list[str]:
    cpu_ms = row.cpu_us / 1000 if row.cpu_us is not None else None
    reason = row.error.partition("\n")[0]
    note = f"  ({row.failed} of {row.rounds} rounds failed: {reason})" if row.failed else ""
    found = map(number, (row.value, row.lowest, row.highest, row.p99_ms, cpu_ms))
    return [row.system, *found, times(row.ratio) + note]


def report(results: Results) -> str:
    """The whole text."""
    parts = [" · ".join(f"{name} {value}" for name, value in results.about.items())]
    parts.append("\n".join(f"{name:14} {note}" for name, note in results.systems.items()))
    if results.skipped:
        parts.append("\n".join(f"{name:14} SKIPPED: {reason}" for name, reason in results.skipped.items()))
    body = [list(HEAD), *lines(results.samples)]
    widths = [max(len(line[column]) for line in body if line) for column in range(len(HEAD) - 1)]

    def text(line: list[str]) -> str:
        cells = [
            cell.ljust(width) if column < LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        ]
        return "  ".join([*cells, *line[len(widths) :]]).rstrip()

    parts.append("\n".join(text(line) if line else "" for line in body))
    parts.append(
        "Memory: of all processes of the system; shared pages are divided among their users. mosec and litserve cannot grow\n"
        "while they run: theirs is the time from nothing to all workers. CPU ms: of all processes, per request."
    )
    found = [
        f"{'reached' if v.is_reached else 'MISSED ':7}  {number(v.value):>7}  {v.text}"
        for v in verdicts(results.samples)
    ]
    return "\n\n".join([*parts, "\n".join(["Aims:", *found])] if found else parts)
