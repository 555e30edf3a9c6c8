"""Metrics of all processes, added up; those of processes that are gone included. Then as Prometheus' text.

How this works: samples with equal labels are added. What a dead process had counted stays counted: its samples without the
label `replica` go into one sum, so the merged counters never go backwards; its own series (`replica=...`) stay as they were
for `KEEP_S`, then they disappear as a whole, as series of Prometheus do. Gauges die with their process.
"""

import math
from collections.abc import Iterable
from typing import Any

from servd.observability.measures import CONTRACT, COUNTER, GAUGE, HISTOGRAM, MAXIMA, PATTERN, Pairs
from servd.wire.messages import MetricFamily

KEEP_S = 3600.0
MAX_DEAD = 100
"""Dead processes whose own series are kept at most."""


class MetricSums:
    """Families by name. The first family of a name says what kind and which bounds all of that name have."""

    def __init__(self) -> None:
        self._heads: dict[str, MetricFamily] = {}
        self._samples: dict[str, dict[Pairs, Any]] = {}

    def __repr__(self) -> str:
        return f"MetricSums({sorted(self._heads)})"

    def add(self, families: Iterable[MetricFamily]) -> None:
        """Add the families of one process; those that do not fit the first of their name are left out."""
        for family in families:
            head = self._heads.setdefault(family.name, family)
            if head.kind != family.kind or tuple(head.bounds) != tuple(family.bounds):
                continue
            samples = self._samples.setdefault(family.name, {})
            for pairs, value in family.samples:
                known = samples.get(pairs)
                samples[pairs] = value if known is None else _added(family, known, value)

    def families(self) -> tuple[MetricFamily, ...]:
        """The sums."""
        return tuple(
            MetricFamily(name, head.kind, head.text, tuple(self._samples[name].items()), tuple(head.bounds))
            for name, head in self._heads.items()
            if name in self._samples
        )

    def text(self, *, is_todays: bool = False) -> str:
        """Prometheus' text format; metrics of the contract without samples are named all the same.

        is_todays: with the names and labels of today's Ray, see `_todays_name` and `_todays_labels`.
        """
        lines: list[str] = []
        for known in sorted({*self._heads, *CONTRACT}):
            head = self._heads.get(known)
            kind, text = (head.kind, head.text) if head is not None else CONTRACT[known]
            name = _todays_name(known, kind) if is_todays else known
            lines.append(f"# HELP {name} {_escaped_help(text)}")
            lines.append(f"# TYPE {name} {kind}")
            for labels, value in sorted(self._shown(known, is_todays).items(), key=_pairs):
                if kind == HISTOGRAM and head is not None:
                    lines += _histogram_lines(name, labels, value, head.bounds)
                else:
                    lines.append(f"{name}{_labels(labels)} {_number(value)}")
        return "\n".join(lines) + "\n"

    def _shown(self, known: str, is_todays: bool) -> dict[Pairs, Any]:
        """Samples of a family under the labels that are shown, those that are equal then added."""
        samples: dict[Pairs, Any] = {}
        for pairs, value in self._samples.get(known, {}).items():
            labels = _todays_labels(pairs) if is_todays else _without_pattern(pairs)
            before = samples.get(labels)
            samples[labels] = value if before is None else _added(self._heads[known], before, value)
        return samples


def _todays_name(name: str, kind: str) -> str:
    """As Ray's exporter has it, and so its dashboards ask for it."""
    suffix = "_total" if kind == COUNTER and not name.endswith("_total") else ""
    return f"ray_{name}{suffix}"


def _todays_labels(pairs: Pairs) -> Pairs:
    """Deployments by their bare names, and replicas by their letters: the others have labels of their own. The route is the
    application's own that answered, where it is known."""
    labels = dict(pairs)
    if PATTERN in labels:
        labels["route"] = labels.pop(PATTERN)
        pairs = tuple(labels.items())
    before = {
        "deployment": f"{labels['application']}_" if labels.get("application") else "",
        "replica": f"{labels.get('deployment', '')}#",
    }
    return tuple((name, value.removeprefix(before.get(name, ""))) for name, value in pairs)


def _without_pattern(pairs: Pairs) -> Pairs:
    return pairs[:-1] if pairs and pairs[-1][0] == PATTERN else pairs


def _added(family: MetricFamily, known: Any, value: Any) -> Any:
    if family.kind == HISTOGRAM:
        return known[0] + value[0], tuple(a + b for a, b in zip(known[1], value[1], strict=True))
    return max(known, value) if family.name in MAXIMA else known + value


def remains(families: Iterable[MetricFamily]) -> tuple[tuple[MetricFamily, ...], tuple[MetricFamily, ...]]:
    """What is left of a process that is gone: samples to add to those of other dead ones, and series of its own."""
    shared: list[MetricFamily] = []
    own: list[MetricFamily] = []
    for family in families:
        if family.kind == GAUGE:
            continue
        for samples, into in (
            (tuple(s for s in family.samples if not _is_own(s[0])), shared),
            (tuple(s for s in family.samples if _is_own(s[0])), own),
        ):
            if samples:
                into.append(MetricFamily(family.name, family.kind, family.text, samples, family.bounds))
    return tuple(shared), tuple(own)


def _pairs(sample: tuple[Pairs, Any]) -> Pairs:
    return sample[0]


def _is_own(pairs: Pairs) -> bool:
    return any(name == "replica" for name, _ in pairs)


def _histogram_lines(name: str, pairs: Pairs, value: Any, bounds: Iterable[float]) -> Iterable[str]:
    total, buckets = value
    running = 0
    for bound, number in zip((*bounds, math.inf), buckets, strict=True):
        running += number
        yield f"{name}_bucket{_labels((*pairs, ('le', _number(bound))))} {_number(running)}"
    yield f"{name}_sum{_labels(pairs)} {_number(total)}"
    yield f"{name}_count{_labels(pairs)} {_number(running)}"


def _labels(pairs: Pairs) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escaped_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    if value == -math.inf:
        return "-Inf"
    return repr(float(value)) if value == value else "NaN"
