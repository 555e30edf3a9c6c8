"""`python -m tests.faults [NAME[=TIMES]...]`: scenarios at full length, one table. A name that ends with `:` stands for all
that begin with it, as `slow:`."""

import sys

from tests.faults.catalogue import SCENARIOS, play
from tests.faults.outcome import head


def main(wishes: list[str]) -> int:
    """Exit code 1 if anything was not as it must be."""
    outcomes = []
    print(head(), flush=True)
    for name, times in _chosen(wishes):
        outcome = play(name, times)
        print(outcome.row(), flush=True)
        outcomes.append(outcome)
    print()
    for outcome in outcomes:
        if details := outcome.details():
            print("\n    ".join([outcome.name, *details]))
    failed = [outcome.name for outcome in outcomes if not outcome.reason and outcome.verdict != "good"]
    print(f"not as it must be: {', '.join(failed)}" if failed else "all as it must be")
    return 1 if failed else 0


def _chosen(wishes: list[str]) -> list[tuple[str, int]]:
    chosen = []
    for wish in wishes or [name for name, scenario in SCENARIOS.items() if scenario.many]:
        begin, _, times = wish.partition("=")
        names = [name for name in SCENARIOS if name == begin or (begin.endswith(":") and name.startswith(begin))]
        if not names:
            raise SystemExit(f"no scenario is named {begin}; there are: {', '.join(SCENARIOS)}")
        chosen += [(name, int(times or SCENARIOS[name].many)) for name in names]
    return chosen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
