"""Markdown that several pages are made of."""

import re
from collections.abc import Iterable, Sequence

MADE = "<!-- made by `python -m tools.reference`: change the code, or the text there -->\n"


def cell(text: str) -> str:
    """Text that may stand in a table: on one line, without what would be a column or a tag."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()).replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; every cell is Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell(text) for text in line)} |\n" for line in lines)
