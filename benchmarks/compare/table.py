"""The results as text: how every system was configured, one table, the aims."""

from collections.abc import Iterator, Sequence

from benchmarks.compare.cases import BY_NAME, Aim
from benchmarks.compare.figures import Row, Sample, aims, rows
from benchmarks.compare.results import Results

HEAD = ("case", "conns", "system", "median", "lowest", "highest", "p50 ms", "p99 ms", "CPU us", "servd is")
LEFT = 3
"""Columns of words, set to the left."""


def number(value: float | None) -> str:
    """Three digits that mean something; "-" for nothing."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(ratio: float | None) -> str:
    """A ratio, as in "1.25x"."""
    return "-" if ratio is None else f"{number(ratio)}x"


def cells(row: Row) -> list[str]:
    """One line of the table, less case and connections."""
    found = [row.system, *map(number, (row.value, row.lowest, row.highest, row.p50_ms, row.p99_ms, row.cpu_us))]
    note = f"  ({row.failed} of {row.rounds} rounds failed: {row.error})" if row.failed else ""
    return [*found, times(row.ratio) + note]


def lines(samples: Sequence[Sample]) -> Iterator[list[str]]:
    """The table's cells, an empty line before each group."""
    order = list(BY_NAME)
    group = None
    for row in sorted(rows(samples), key=lambda row: (order.index(row.case), row.connections)):
        case = BY_NAME[row.case]
        is_first = (row.case, row.connections) != group
        if is_first and group is not None:
            yield []
        group = row.case, row.connections
        lead = [f"{case.title}, {case.unit}", str(row.connections or "")] if is_first else ["", ""]
        yield lead + cells(row)


def table(samples: Sequence[Sample]) -> str:
    """Everything measured, a line for each system in each case."""
    body = [list(HEAD), *lines(samples)]
    widths = [max(len(line[column]) for line in body if line) for column in range(len(HEAD) - 1)]

    def text(line: list[str]) -> str:
        words = [
            cell.ljust(width) if column < LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        ]
        return "  ".join([*words, *line[len(widths) :]]).rstrip()

    return "\n".join(text(line) if line else "" for line in body)


def aim_text(aim: Aim, ratio: float, is_reached: bool) -> str:
    """One aim and how it went."""
    what = {"value": BY_NAME[aim.case].unit, "p50_ms": "p50", "cpu_us": "CPU per request", "tail": "p99"}[aim.measure]
    other = "of its own p50" if aim.measure == "tail" else f"of {aim.system}"
    bound = f"{'at least' if aim.is_floor else 'at most'} {aim.bound:g}"
    where = f"{BY_NAME[aim.case].title}, {aim.connections} connections"
    return f"{'reached' if is_reached else 'MISSED ':7}  {ratio:6.2f} {other:14} {bound:13}  {what}, {where}"


def report(results: Results) -> str:
    """The whole text."""
    parts = [" · ".join(f"{name} {value}" for name, value in results.about.items())]
    parts.append("\n".join(f"{name:12} {note}" for name, note in results.systems.items()))
    if results.skipped:
        parts.append("\n".join(f"{name:12} SKIPPED: {reason}" for name, reason in results.skipped.items()))
    parts.append(table(results.samples))
    parts.append(
        "median, lowest, highest: over the rounds. CPU us: of all processes of the system, per request (kernel's accounting).\n"
        "servd is: servd's figure by this one's in the same round, median over the rounds."
    )
    found = [aim_text(*entry) for entry in aims(results.samples)]
    if found:
        parts.append("Aims, ratios of servd:\n" + "\n".join(found))
    return "\n\n".join(parts)
