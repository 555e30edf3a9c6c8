"""What logs, metrics and traces cost: `python -m benchmarks.observability [--case noop|fastapi] [--kinds KIND,...] [--daemons N]
[--seconds S] [--steps N] [--before DIRECTORY] [--json FILE]`.

Two measurements. First whole daemons under wrk, 32 connections, of several kinds: without access log and metrics (`off`), with
both (`on`), and with traces of none of the requests, of a hundredth and of all (`traces-0`, `traces-1`, `traces-100`), for a
collector that drops them. One daemon of each kind is started at a time, and they take turns of a quarter of a second until each
was loaded for S seconds; then they end and the next ones start, N times. Daemons that took turns are compared, by rate and by
CPU time of proxy and replica per request. Of each comparison the median is printed, and the interval that holds it with 90 %; an
aim is reached or missed where that interval lies on one side of it. `--before` measures all kinds but `off` for another checkout
too. `--daemons 0` leaves this out. Then what the code itself costs, in lockstep
(`lockstep.py`); `--steps 0` leaves that out.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.compare.__main__ import names
from benchmarks.compare.cases import BY_NAME
from benchmarks.compare.results import machine
from benchmarks.observability import daemons, lockstep
from benchmarks.observability.daemons import KINDS, Figures
from benchmarks.observability.spread import share

CASES = ("noop", "fastapi")
USUAL = ["off", "on", "traces-1"]
COMPARED = (("on", "off"), ("traces-0", "on"), ("traces-1", "on"), ("traces-100", "on"))
AIMS = {("on", "off"): 0.95, ("traces-1", "on"): 0.97}
"""The least share of the rate."""
BEFORE = ", before"


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.observability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, default=CASES[0], help="of the whole daemons")
    parser.add_argument("--kinds", type=names(list(KINDS)), default=USUAL, metavar="KIND,...", help=", ".join(KINDS))
    parser.add_argument("--daemons", type=int, default=6, help="of each kind")
    parser.add_argument("--seconds", type=float, default=8.0, help="of load for each daemon")
    parser.add_argument("--steps", type=int, default=200, help="rounds in lockstep")
    parser.add_argument(
        "--before", type=Path, metavar="DIRECTORY", help="another checkout, on what this one has installed"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    return parser.parse_args()


def compare_daemons(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; every sample and every comparison."""
    kinds = [KINDS[name] for name in options.kinds]
    if options.before is not None:
        tree = str(options.before.absolute())
        kinds += [replace(kind, name=f"{kind.name}{BEFORE}", tree=tree) for kind in kinds if kind.is_on]
    found: dict[str, list[Figures]] = {kind.name: [] for kind in kinds}
    for figures in daemons.measured_often(BY_NAME[options.case], kinds, options.daemons, options.seconds):
        for kind, one in zip(kinds, figures, strict=True):
            found[kind.name].append(one)
    print_samples(options.case, found)
    document: dict[str, Any] = {"samples": {name: [asdict(one) for one in samples] for name, samples in found.items()}}
    pairs = [*COMPARED, *((f"{name}{BEFORE}", base if base == "off" else f"{base}{BEFORE}") for name, base in COMPARED)]
    pairs += [(name, f"{name}{BEFORE}") for name in KINDS]
    for name, base in pairs:
        if name in found and base in found:
            rate = share([one.rate for one in found[name]], [one.rate for one in found[base]])
            cpu_us = share([one.cpu_us for one in found[name]], [one.cpu_us for one in found[base]])
            document[f"{name} of {base}"] = {"rate": asdict(rate), "cpu": asdict(cpu_us)}
            aim = AIMS.get((name, base))
            verdict = "" if aim is None else f"; aim, the rate at least {aim}: {rate.verdict(aim)}"
            print(f"{name} of {base}: rate {rate}, CPU {cpu_us}{verdict}", flush=True)
    return document


def print_samples(case: str, found: dict[str, list[Figures]]) -> None:
    """Medians over daemons, and the ends."""
    print(
        f"{case:<18} {'requests/s':>10} {'least':>8} {'most':>8}   {'CPU us':>7} {'least':>7} {'most':>7} {'proxy':>7}"
    )
    for name, samples in found.items():
        rates, cpu = [one.rate for one in samples], [one.cpu_us for one in samples]
        proxy = statistics.median(one.proxy_us for one in samples)
        print(
            f"{name:<18} {statistics.median(rates):>10,.0f} {min(rates):>8,.0f} {max(rates):>8,.0f}   "
            f"{statistics.median(cpu):>7.2f} {min(cpu):>7.2f} {max(cpu):>7.2f} {proxy:>7.2f}"
        )


def main() -> None:
    """Measure and print."""
    options = arguments()
    document: dict[str, Any] = {"machine": machine(), "case": options.case}
    if options.daemons:
        document |= compare_daemons(options)
    with tempfile.TemporaryDirectory(prefix="servd-watch-") as directory:
        if options.steps:
            document["steps"] = lockstep.measured(Path(directory), options.steps)
            lockstep.print_steps(document["steps"])
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=2) + "\n")
        sys.stdout.flush()
    # open connections of the second part end with the process
    os._exit(0)


if __name__ == "__main__":
    main()
