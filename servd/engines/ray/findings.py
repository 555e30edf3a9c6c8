"""What stands between an application and a Ray cluster: one finding per place."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

EXIT_WORKS, EXIT_FAILS, EXIT_DIFFERS = 0, 1, 3


class Severity(StrEnum):
    """What happens there; the worst first."""

    FAILS = "fails"
    DROPPED = "dropped"
    DIFFERS = "differs"
    TRANSLATED = "translated"
    """Would fail as it stands; `servd export` writes it as Ray has it."""


_RANK = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One of them. line: from 1. what: what happens there, and why. instead: what to write; "" where nothing needs to be."""

    path: str
    line: int
    severity: Severity
    what: str
    instead: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.severity}: {self.what}{'; ' + self.instead if self.instead else ''}"


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """By file and line, the worst of a line first; each once."""
    return sorted(set(findings), key=lambda one: (one.path, one.line, _RANK[one.severity], one.what))


def exit_code(findings: Iterable[Finding]) -> int:
    """0 = works the same, 1 = something fails, 3 = works, and something differs or is dropped."""
    found = {one.severity for one in findings}
    if Severity.FAILS in found:
        return EXIT_FAILS
    return EXIT_DIFFERS if found & {Severity.DROPPED, Severity.DIFFERS} else EXIT_WORKS
