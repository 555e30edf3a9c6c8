"""What is measured of each model, and what servd is to reach."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.compare.figures import Sample, grouped, median, ratio_by_round
from benchmarks.models.systems import MOST, SYSTEMS

BASE = "servd-preload"
MODELS = {"torch": "PyTorch, 434 MB", "sklearn": "scikit-learn"}
KINDS = {
    "memory1": "memory with 1 replica, MB PSS",
    "memory8": f"memory with {MOST}, MB PSS",
    "grow": f"1 to {MOST} replicas, all have answered, s",
    "imports": f"imports of the library for {MOST}",
    "burst": f"a burst until {MOST} have answered, s",
    "rate": "2 replicas x 1 thread, requests/s",
    "threads": "1 replica x 2 threads, requests/s",
}
CASES = {f"{model}-{kind}": f"{about}: {what}" for model, about in MODELS.items() for kind, what in KINDS.items()}
"""Name -> title. A burst is one of `CLIENTS` clients on a deployment with autoscaling."""
OWN = ("servd-preload", "servd", "servd-spawn", "before")
PEERS = tuple(system.name for system in SYSTEMS if system.name not in OWN)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One aim and how it went."""

    text: str
    value: float
    is_reached: bool


def verdicts(samples: Sequence[Sample]) -> list[Verdict]:
    """All aims whose figures are there."""
    found: list[Verdict] = []
    for model, about in MODELS.items():
        own = _of(samples, model, BASE)

        def most(text: str, value: float | None, bound: float, about: str = about) -> None:
            if value is not None:
                found.append(Verdict(f"{about}: {text}, at most {bound:g}", value, value <= bound))

        def least(text: str, value: float | None, bound: float, about: str = about) -> None:
            if value is not None:
                found.append(Verdict(f"{about}: {text}, at least {bound:g}", value, value >= bound))

        most(f"memory of {MOST} by that of one", _ratio(own["memory8"], own["memory1"]), 1.3)
        most(f"seconds from 1 to {MOST}", _median(own["grow"]), 1.0)
        most(f"seconds of a burst until {MOST} have answered", _median(own["burst"]), 1.5)
        for name in ("servd-spawn", "ray"):
            least(
                f"{name}'s seconds from 1 to {MOST} by servd's",
                _ratio(_of(samples, model, name)["grow"], own["grow"]),
                20,
            )
        for kind in ("rate", "threads"):
            best = _best(samples, model, kind)
            least(f"requests/s by the best peer's ({KINDS[kind]})", _ratio(own[kind], best), 0.95)
            spawned = _of(samples, model, "servd-spawn")[kind]
            least(f"requests/s by those of spawned replicas ({KINDS[kind]})", _ratio(own[kind], spawned), 0.95)
        most("imports of the library, nothing preloaded", _median(_of(samples, model, "servd")["imports"]), 1)
    return found


def _of(samples: Sequence[Sample], model: str, system: str) -> dict[str, list[Sample]]:
    groups = grouped(samples)
    return {kind: groups.get((f"{model}-{kind}", 0, system), []) for kind in KINDS}


def _best(samples: Sequence[Sample], model: str, kind: str) -> list[Sample]:
    peers = [_of(samples, model, name)[kind] for name in PEERS]
    return max(peers, key=lambda group: _median(group) or 0.0)


def _median(samples: Sequence[Sample]) -> float | None:
    return median(sample.value for sample in samples)


def _ratio(above: Sequence[Sample], below: Sequence[Sample]) -> float | None:
    return ratio_by_round(above, below, lambda sample: sample.value)
