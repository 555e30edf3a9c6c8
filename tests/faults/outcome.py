"""What a scenario saw: one line of the table that `make faults` prints."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field

from tests.faults.load import REPLICA, Counts, Failure

NORMAL_WITHIN_S = 5.0
"""From the end of a fault until all is as it was."""
_WIDTHS = (38, 7, 10, 8, 11, 9, 11, 7, 7)
_SHOWN = 5


@dataclass(slots=True)
class Outcome:
    """What a scenario saw.

    Args:
        unexpected: failures that it must not have.
        notes: further things that went wrong.
        explained: what the daemon said of things that it could not do.
        normal_after_s: the longest way from the end of a fault back to normal; None where nothing was broken.
        connection_mib: what the proxy holds for one of the connections that were opened, where that was measured.
        figures: what was measured beside it, one line each.
        slow: what took more time than it may, on a machine that does nothing else.
        reason: why it was not tried.
        errors: what the daemon wrote on stderr.
        name: as the catalogue has it.
    """

    times: int = 1
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    unexpected: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    explained: list[str] = field(default_factory=list)
    normal_after_s: float | None = None
    connection_mib: float | None = None
    figures: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    reason: str = ""
    errors: str = ""
    name: str = ""

    @property
    def is_good(self) -> bool:
        """Whether everything was as it must be, however long it took."""
        return not self.unexpected and not self.notes

    @property
    def verdict(self) -> str:
        """With the time that it took, which only means something on a machine that does nothing else."""
        is_slow = bool(self.slow) or (self.normal_after_s is not None and self.normal_after_s >= NORMAL_WITHIN_S)
        return "NOT GOOD" if not self.is_good else "TOO SLOW" if is_slow else "good"

    def judge(self, begun: Collection[str], own_ports: Collection[int] = (), *, at_the_border: int = 1) -> None:
        """Fill `unexpected`: all but what a death must cost.

        Args:
            begun: marks of the POSTs that a handler began; one that dies with its replica is answered 502, never sent again.
            own_ports: clients' ports of the connections of a proxy that was killed.
            at_the_border: in so many deaths POSTs may lack a mark: between the replica's note of all that one envelope brought
                and the first lines of their handlers lies a moment in which a kill can fall too.
        """
        failures = [failure for failure in self.counts.failures if failure.port not in own_ports]
        posts = [f for f in failures if f.method == "POST" and f.reason.startswith("502 ")]
        unmarked = [post for post in posts if post.mark not in begun]
        others = [failure for failure in failures if failure not in posts]
        deaths = {died for post in unmarked for died in REPLICA.findall(post.reason)}
        self.unexpected = others if len(deaths) <= at_the_border else others + unmarked

    def row(self) -> str:
        """The line of the table."""
        if self.reason:
            return f"{_cells([self.name])}  not tried: {self.reason}"
        normal = "-" if self.normal_after_s is None else f"{self.normal_after_s:.1f}"
        cells = [self.name, self.times, self.counts.total, len(self.counts.failures), len(self.unexpected)]
        memory = "-" if self.connection_mib is None else f"{self.connection_mib:.2f}"
        cells += [f"{self.counts.slowest_s:.2f}", normal, memory, f"{self.seconds:.0f}"]
        return f"{_cells(cells)}  {self.verdict}"

    def details(self) -> list[str]:
        """Lines below the table: failures by kind, and what was not as it must be."""
        lines = [f"{count} x {reason}" for reason, count in sorted(self.counts.reasons().items())]
        lines += self.figures
        lines += [f"too slow: {text}" for text in self.slow]
        lines += [f"explained: {text}" for text in self.explained]
        lines += [f"unexpected: {failure}" for failure in self.unexpected[:_SHOWN]]
        lines += [f"not as it must be: {note}" for note in self.notes]
        if self.verdict != "good":
            lines += self.errors.splitlines()[-20:]
        return lines

    def __str__(self) -> str:
        return "\n".join([head(), self.row(), *(f"    {line}" for line in self.details())])

    def as_json(self) -> str:
        """For another process, which reads it with `from_json`."""
        return json.dumps(asdict(self))


def from_json(text: str) -> Outcome:
    """What `as_json` wrote."""
    said = json.loads(text)
    counts = said.pop("counts")
    unexpected = [Failure(**failure) for failure in said.pop("unexpected")]
    failures = [Failure(**failure) for failure in counts.pop("failures")]
    return Outcome(**said, counts=Counts(**counts, failures=failures), unexpected=unexpected)


def head() -> str:
    """The first line of the table. failed: all; forbidden: those that no scenario may have; times in seconds; MiB: of the proxy,
    for one connection."""
    names = ["scenario", "times", "requests", "failed", "forbidden", "slowest", "normal in", "MiB", "took"]
    return f"{_cells(names)}  verdict"


def _cells(values: list[object] | list[str]) -> str:
    first, *others = values
    row = "".join(f"{value!s:>{width}}" for value, width in zip(others, _WIDTHS[1:], strict=False))
    return f"{first!s:{_WIDTHS[0]}}{row}"
