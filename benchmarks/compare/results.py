"""What a run found, as a file."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.compare.figures import Sample, grouped


@dataclass(slots=True)
class Results:
    """systems: how each was configured. skipped: why others are missing."""

    about: dict[str, Any]
    systems: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)


def machine() -> dict[str, Any]:
    """What it is measured on, and when."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "python": platform.python_version(),
        "system": platform.system() + " " + platform.release(),
    }


def write(results: Results, path: Path) -> None:
    """Write all samples, a line each."""
    head = {"about": results.about, "systems": results.systems, "skipped": results.skipped}
    lines = [json.dumps([_short(value) for value in astuple(sample)]) for sample in results.samples]
    text = json.dumps(head, indent=1).removesuffix("\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{text},\n "samples": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n")


def read(path: Path) -> Results:
    """What `write` wrote."""
    document = json.loads(path.read_text())
    samples = [Sample(*line) for line in document["samples"]]
    return Results(document["about"], document["systems"], document["skipped"], samples)


def together(parts: Sequence[Results]) -> Results:
    """Several runs as one; the first tells when and where.

    Rounds follow those that the systems of a part have in its cases. So pieces of a run, each with some of the systems, lie
    beside each other.
    """
    whole = Results(dict(parts[0].about))
    for part in parts:
        done = {key: 1 + max(sample.round for sample in group) for key, group in grouped(whole.samples).items()}
        whole.systems |= part.systems
        whole.skipped |= part.skipped
        before = max((done.get(key, 0) for key in grouped(part.samples)), default=0)
        whole.samples += [replace(sample, round=before + sample.round) for sample in part.samples]
    whole.about["rounds"] = 1 + max((sample.round for sample in whole.samples), default=-1)
    return whole


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
