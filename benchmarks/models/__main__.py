"""Models served by servd, with and without `preload`, beside other serving systems, in one run and one table.

Measured for a PyTorch model of 434 MB and for a scikit-learn pipeline: memory with 1 and with 8 replicas, how long growing takes,
a burst on autoscaled deployments, requests per second. Every figure is a median over rounds, with the range. Each system has an
environment of its own; PyTorch and scikit-learn are in one that all of them see, so all run the same builds. They are made
on first use (several GB with PyTorch for GPUs); a system that cannot be installed is skipped, and the report says why.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.compare import wrk
from benchmarks.compare.__main__ import names, tree
from benchmarks.compare.measure import say
from benchmarks.compare.peers import PEERS_DIR, NotInstallableError, python_of, version_of
from benchmarks.compare.results import Results, machine, read, together, write
from benchmarks.models.cases import KINDS, MODELS
from benchmarks.models.measure import Plan, measure
from benchmarks.models.systems import APPS_DIR, SYSTEMS, System, interpreter, servd_of
from benchmarks.models.table import report


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    systems = [system.name for system in SYSTEMS]
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each run of the client")
    parser.add_argument("--models", type=names(list(MODELS)), default=list(MODELS), metavar="NAME,...")
    parser.add_argument("--systems", type=names(systems), default=systems, metavar="NAME,...", help=", ".join(systems))
    parser.add_argument(
        "--only", type=names(list(KINDS)), default=list(KINDS), metavar="NAME,...", help=", ".join(KINDS)
    )
    parser.add_argument(
        "--before", type=tree, metavar="DIRECTORY", help="another checkout of servd, to take part as `before`"
    )
    parser.add_argument(
        "--environments", type=_absolute, default=PEERS_DIR, metavar="DIR", help=f"default: {PEERS_DIR}"
    )
    parser.add_argument("--torch", default="torch", help="what pip installs as PyTorch, as torch==2.13.0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="sources", nargs="+", help="measure nothing, show these"
    )
    return parser.parse_args()


def _absolute(text: str) -> Path:
    # systems run in folders of their own
    return Path(text).absolute()


def interpreters(options: argparse.Namespace, results: Results) -> dict[System, str]:
    """Of each system that can be had; the others are noted as skipped."""
    found = {}
    before = [servd_of(options.before)] if options.before is not None else []
    for system in [*(system for system in SYSTEMS if system.name in options.systems), *before]:
        try:
            found[system] = interpreter(system, options.environments, options.torch)
            version = f"{system.peer} {version_of(system.peer, found[system])}"
            results.systems[system.name] = f"{version}: {system.about}"
        except NotInstallableError as error:
            results.skipped[system.name] = str(error)
            say(f"{system.name}: skipped, {error}")
    return found


def expected(options: argparse.Namespace, files: Path) -> dict[str, str]:
    """Result of each model, whose file is made."""
    python = python_of("libraries", options.environments, (options.torch, "scikit-learn", "numpy"))
    results = {}
    for model in options.models:
        environment = {**os.environ, "BENCH_MODEL": model, "OMP_NUM_THREADS": "1"}
        command = [python, str(APPS_DIR / "bench_models.py"), str(files)]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        results[model] = done.stdout.strip()
    return results


def measured(options: argparse.Namespace) -> Results:
    """A new run; what a Ctrl-C interrupts is shown as far as it came."""
    if not wrk.is_there():
        sys.exit("wrk is missing: install it with `apt-get install wrk` (Debian, Ubuntu)")
    results = Results({**machine(), "rounds": options.rounds, "seconds": options.seconds})
    try:
        systems = interpreters(options, results)
        if not systems:
            return results
        with tempfile.TemporaryDirectory(prefix="bench-models-") as name:
            files = Path(name)
            plan = Plan(systems, files, expected(options, files), options.only, options.rounds, options.seconds)
            measure(plan, results)
    except KeyboardInterrupt:
        say("interrupted: this is what there is")
    return results


def main() -> None:
    """Measure or read, then print."""
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = together([read(path) for path in options.sources]) if options.sources else measured(options)
    if options.json is not None:
        write(results, options.json)
    print(report(results))


if __name__ == "__main__":
    main()
