"""servd beside the bare pipeline, bare servers and other serving systems, in one run and one table.

Every figure is a median over interleaved rounds of one run, with the range; ratios are computed within a round, then the median
taken. Each system's processes share one session of their own and the client has another, as Linux shares out CPU time by
sessions first. All systems but servd are stopped (SIGSTOP) while they are not measured. Peers are installed into .cache/peers
on first use; one that cannot be installed is skipped, and the report says why.
"""

import argparse
import importlib.util
import signal
import sys
from pathlib import Path

from benchmarks.compare import wrk
from benchmarks.compare.cases import BY_NAME, CASES
from benchmarks.compare.measure import Plan, find_interpreters, measure, say
from benchmarks.compare.results import Results, machine, read, together, write
from benchmarks.compare.systems import SYSTEMS, servd_of
from benchmarks.compare.table import report

ROUNDS = 7
QUICK_ROUNDS = 2
QUICK_CONNECTIONS = frozenset({1, 32})


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [system.name for system in SYSTEMS]
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--seconds", type=int, default=1, help="of each run of the client")  # wrk takes whole seconds
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, at 1 and 32 connections")
    parser.add_argument("--only", type=names(list(BY_NAME)), default=list(BY_NAME), metavar="CASE,...")
    parser.add_argument("--systems", type=names(known), default=known, metavar="NAME,...", help=", ".join(known))
    parser.add_argument(
        "--before", type=tree, metavar="DIRECTORY", help="another checkout of servd, to take part as `before`"
    )
    parser.add_argument("--connections", type=lambda text: frozenset(map(int, text.split(","))), metavar="N,...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the rates, as PNG (needs the extra `bench`)")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="sources", nargs="+", help="measure nothing, show these samples"
    )
    parser.epilog = "cases: " + ", ".join(case.name for case in CASES)
    return parser.parse_args()


def tree(text: str) -> Path:
    """A checkout of servd; an error where it is none."""
    found = Path(text).resolve()
    if not (found / "servd" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"{text} holds no package servd: name the directory of a checkout")
    return found


def names(known: list[str]):  # type: ignore[no-untyped-def]
    """Reads a list of names; an unknown one is an error."""

    def read_names(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return found

    return read_names


def measured(options: argparse.Namespace) -> Results:
    """A new run; what a Ctrl-C interrupts is shown as far as it came."""
    if not wrk.is_there():
        sys.exit("wrk is missing: install it with `apt-get install wrk` (Debian, Ubuntu)")
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    connections = options.connections or (QUICK_CONNECTIONS if options.quick else None)
    results = Results({**machine(), "rounds": rounds, "seconds": options.seconds})
    wanted = [system for system in SYSTEMS if system.name in options.systems]
    if options.before is not None:
        wanted.append(servd_of(options.before))
    cases = [BY_NAME[name] for name in BY_NAME if name in options.only]
    plan = Plan(cases, find_interpreters(wanted, results), rounds, options.seconds, connections)
    say(f"about {plan.expected_s() / 60:.1f} minutes")
    try:
        measure(plan, results)
    except KeyboardInterrupt:
        say("interrupted: this is what there is")
    return results


def main() -> None:
    """Measure or read, then print and draw."""
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = together([read(path) for path in options.sources]) if options.sources else measured(options)
    if options.json is not None:
        write(results, options.json)
    print(report(results))
    if options.picture is not None:
        if importlib.util.find_spec("matplotlib") is None:
            say("no picture: install matplotlib with `pip install -e '.[bench]'`")
        else:
            # matplotlib is optional
            from benchmarks.compare.picture import draw

            draw(results, options.picture)


if __name__ == "__main__":
    main()
