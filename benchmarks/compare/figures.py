"""Samples of single runs, and what is said of them: medians, spreads, ratios of the same round."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.compare.cases import AIMS, Aim

BASE = "servd"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one system. value: in the case's unit; None = it failed, for the reason in `error`."""

    case: str
    connections: int
    system: str
    round: int
    value: float | None
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_us: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """All rounds of one system in one case. ratio: servd's value by this one's."""

    case: str
    connections: int
    system: str
    value: float | None
    lowest: float | None
    highest: float | None
    p50_ms: float | None
    p99_ms: float | None
    cpu_us: float | None
    ratio: float | None
    failed: int
    rounds: int
    error: str


def median(values: Iterable[float | None]) -> float | None:
    """Of those that are there; None without any."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def ratio_by_round(
    above: Iterable[Sample], below: Iterable[Sample], measure: Callable[[Sample], float | None]
) -> float | None:
    """Median over the rounds that both have of one's figure by the other's; None without such a round."""
    others = {sample.round: measure(sample) for sample in below}
    pairs = [(measure(sample), others.get(sample.round)) for sample in above]
    return median(top / bottom for top, bottom in pairs if top is not None and bottom)


def grouped(samples: Iterable[Sample]) -> dict[tuple[str, int, str], list[Sample]]:
    """By case, connections and system, in order of first appearance."""
    found: dict[tuple[str, int, str], list[Sample]] = {}
    for sample in samples:
        found.setdefault((sample.case, sample.connections, sample.system), []).append(sample)
    return found


def rows(samples: Sequence[Sample], base_name: str = BASE) -> list[Row]:
    """A row for every system in every case. base_name: whose figures the ratios are of."""
    groups = grouped(samples)
    result = []
    for (case, connections, system), group in groups.items():
        values = [sample.value for sample in group if sample.value is not None]
        base = groups.get((case, connections, base_name), [])
        result.append(
            Row(
                case,
                connections,
                system,
                median(values),
                min(values, default=None),
                max(values, default=None),
                median(sample.p50_ms for sample in group),
                median(sample.p99_ms for sample in group),
                median(sample.cpu_us for sample in group),
                ratio_by_round(base, group, lambda sample: sample.value),
                len(group) - len(values),
                len(group),
                next((sample.error for sample in group if sample.error), ""),
            )
        )
    return result


def tail(sample: Sample) -> float | None:
    """p99 by p50 of one run."""
    return sample.p99_ms / sample.p50_ms if sample.p99_ms and sample.p50_ms else None


def reached(aim: Aim, samples: Sequence[Sample]) -> float | None:
    """The aim's ratio; None where its case was not measured."""
    groups = grouped(samples)
    own = groups.get((aim.case, aim.connections, BASE), [])
    if aim.measure == "tail":
        return median(map(tail, own))
    other = groups.get((aim.case, aim.connections, aim.system), [])
    return ratio_by_round(own, other, lambda sample: getattr(sample, aim.measure))


def aims(samples: Sequence[Sample]) -> list[tuple[Aim, float, bool]]:
    """Every aim that was measured, its ratio, and whether that is good enough."""
    found = []
    for aim in AIMS:
        ratio = reached(aim, samples)
        if ratio is not None:
            found.append((aim, ratio, ratio >= aim.bound if aim.is_floor else ratio <= aim.bound))
    return found
