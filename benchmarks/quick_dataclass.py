"""What `ground.quick_dataclass` saves each process at its start: `python -m benchmarks.quick_dataclass`.

Needs the standard library only, so that any interpreter can be asked. Times the import of the modules whose dataclasses every
process loads, with it and with the standard decorator in its place, one after the other, and prints medians and ranges.
"""

import argparse
import statistics
import subprocess
import sys

_IMPORT = """
import collections, contextlib, dataclasses, enum, json, logging, socket, sys, time, types, typing
import servd.ground
if {is_standard}:
    stand_in = types.ModuleType("servd.ground.quick_dataclass")
    stand_in.dataclass = dataclasses.dataclass
    sys.modules[stand_in.__name__] = stand_in
began = time.perf_counter()
import servd.wire.messages, servd.ground.ids, servd.documents.control_plane, servd.controller.plan.events
print(time.perf_counter() - began)
"""


def start_ms(is_standard: bool) -> float:
    """Milliseconds of the imports in a fresh interpreter."""
    command = [sys.executable, "-c", _IMPORT.format(is_standard=is_standard)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1000


def main() -> None:
    """Print one line for this interpreter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    # the first of each compiles
    start_ms(False), start_ms(True)
    pairs = [(start_ms(False), start_ms(True)) for _ in range(rounds)]
    words = []
    for name, times in zip(("quick_dataclass", "dataclasses"), zip(*pairs, strict=True), strict=True):
        words.append(f"{name} {statistics.median(times):.1f} ms ({min(times):.1f} to {max(times):.1f})")
    ratio = statistics.median(quick / standard for quick, standard in pairs)
    print(f"Python {sys.version.split()[0]}: {', '.join(words)}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
