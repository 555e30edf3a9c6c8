"""What a run found, as a file."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.compare.figures import Sample


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
    """Several runs as one, their rounds one after the other; the first tells when and where."""
    whole = Results(dict(parts[0].about))
    for part in parts:
        done = 1 + max((sample.round for sample in whole.samples), default=-1)
        whole.systems |= part.systems
        whole.skipped |= part.skipped
        whole.samples += [replace(sample, round=done + sample.round) for sample in part.samples]
    return whole


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
