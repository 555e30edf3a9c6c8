"""`python -m tests.faults [NAME[=TIMES]...] [FAULT:PLACE...]`: scenarios at full length, directories in trouble, with counts."""

import sys
import tempfile
from pathlib import Path

from tests.faults import disks
from tests.faults.scenarios import SCENARIOS


def main(wishes: list[str]) -> int:
    """Exit code 1 if anything failed that must not."""
    failed = []
    cells = [wish for wish in wishes if ":" in wish] if wishes else disks.CELLS
    for wish in [wish for wish in wishes if ":" not in wish] if wishes else SCENARIOS:
        name, _, times = wish.partition("=")
        scenario, _, usual = SCENARIOS[name]
        with tempfile.TemporaryDirectory(prefix="servd-faults-") as directory:
            outcome = scenario(Path(directory), int(times or usual))
        print(outcome, flush=True)
        if not outcome.is_good:
            failed.append(name)
    if cells:
        failed += disks.play_all(cells)
    print(f"not as it must be: {', '.join(failed)}" if failed else "all as it must be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
