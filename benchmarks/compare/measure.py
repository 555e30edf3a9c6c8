"""The rounds: every case at every number of connections, all systems one after the other, in another order each round."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.compare import clients, peers, wrk
from benchmarks.compare.cases import Case
from benchmarks.compare.figures import Sample
from benchmarks.compare.processes import cpu_s, go_on, pause, pss_mb
from benchmarks.compare.results import Results
from benchmarks.compare.running_system import RunningSystem, SystemFailedError, ask, running
from benchmarks.compare.systems import Endpoint, System

T = TypeVar("T")
OVERHEAD_S = 0.2
"""Of one run: wrk's start and end, waking the system, its books."""
START_S = {"ray": 12.0, "ray-haproxy": 15.0}
OTHER_START_S = 3.0
START_ROUNDS = 3
MANY = 128
"""Connections at which slow systems are given longer runs."""
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. systems: with the interpreter of each."""

    cases: Sequence[Case]
    systems: dict[System, str]
    rounds: int
    seconds: int
    connections: frozenset[int] | None

    def counts(self, case: Case) -> list[int]:
        """Numbers of connections of a case; of those asked for, where it has several."""
        if self.connections is None or len(case.connections) == 1:
            return list(case.connections)
        return [count for count in case.connections if count in self.connections]

    def steps(self) -> Iterator[tuple[Case, int, list[System]]]:
        """Each thing to load, and who takes part."""
        for case in self.cases:
            if case.way != "start":
                for count in self.counts(case):
                    yield case, count, [system for system in self.systems if case.name in system.cases]

    def starting(self) -> list[System]:
        """Systems whose start is measured."""
        names = {case.name for case in self.cases if case.way == "start"}
        return [system for system in self.systems if names & system.cases]

    def start_rounds(self) -> int:
        """Starts take long: there are fewer of them."""
        return min(self.rounds, START_ROUNDS)

    def expected_s(self) -> float:
        """About how long it takes."""
        runs = sum(
            run_s(system, count, self.seconds) + OVERHEAD_S for _, count, group in self.steps() for system in group
        )
        starts = sum(START_S.get(system.name, OTHER_START_S) + SETTLE_S for system in self.starting())
        once = sum(START_S.get(system.name, OTHER_START_S) for system in self.systems)
        return self.rounds * runs + self.start_rounds() * starts + once


def run_s(system: System, connections: int, seconds: int) -> int:
    """Length of one run."""
    return max(seconds, system.least_seconds) if connections >= MANY else seconds


def find_interpreters(systems: Sequence[System], results: Results) -> dict[System, str]:
    """Interpreter of each system's environment; those that cannot be had are noted as skipped."""
    found = {}
    for system in systems:
        try:
            found[system] = sys.executable if system.peer is None else peers.python_of(system.peer)
            version = "" if system.peer is None else f"{system.peer} {peers.version_of(system.peer)}: "
            results.systems[system.name] = version + system.about
        except peers.NotInstallableError as error:
            results.skipped[system.name] = str(error)
            say(f"{system.name}: skipped, {error}")
    return found


class Stage:
    """The systems that run. One that failed is started again before the next round."""

    def __init__(self, plan: Plan, results: Results) -> None:
        self.up: dict[System, RunningSystem] = {}
        self._plan, self._results = plan, results
        self._stacks: dict[System, ExitStack] = {}

    def start(self, system: System) -> None:
        """Start it and stop its clock; one that does not start is noted as skipped."""
        cases = {case.name for case in self._plan.cases if case.way != "start" and case.name in system.cases}
        if not cases:
            return
        say(f"starting {system.name}")
        stack = self._stacks[system] = ExitStack()
        try:
            self.up[system] = stack.enter_context(running(system, self._plan.systems[system], cases))
        except SystemFailedError as error:
            self._results.skipped[system.name] = str(error).partition("\n")[0]
            say(str(error))
            return
        if system.may_pause:
            pause(self.up[system].launcher)

    def end(self, system: System) -> None:
        """End it."""
        self.up.pop(system, None)
        if system in self._stacks:
            self._stacks.pop(system).close()

    def end_all(self) -> None:
        """End whatever runs."""
        for system in list(self._stacks):
            self.end(system)


def measure(plan: Plan, results: Results) -> None:
    """Take all samples, into the results as they come."""
    measure_starts(plan, results)
    stage = Stage(plan, results)
    try:
        for system in plan.systems:
            stage.start(system)
        for number in range(plan.rounds if stage.up else 0):
            began = time.monotonic()
            first = len(results.samples)
            one_round(plan, stage.up, number, results)
            say(f"round {number + 1} of {plan.rounds} took {time.monotonic() - began:.0f} s")
            failed = {sample.system for sample in results.samples[first:] if sample.error}
            for system in [system for system in stage.up if system.name in failed and number + 1 < plan.rounds]:
                stage.end(system)
                stage.start(system)
    finally:
        stage.end_all()


def measure_starts(plan: Plan, results: Results) -> None:
    """From nothing to the first answer of a no-op application, and what is held then."""
    names = {case.name for case in plan.cases if case.way == "start"}
    systems = plan.starting()
    for number in range(plan.start_rounds() if names else 0):
        for system in turned(systems, number):
            samples = list(one_start(system, plan.systems[system], number))
            results.samples += [sample for sample in samples if sample.case in names]
        say(f"starts, round {number + 1} of {plan.start_rounds()}")


def one_start(system: System, python: str, number: int) -> Iterator[Sample]:
    """One start of one system."""
    began = time.perf_counter()
    try:
        with running(system, python, {"noop"}) as up:
            yield Sample("start", 0, system.name, number, time.perf_counter() - began)
            time.sleep(SETTLE_S)
            yield Sample("memory", 0, system.name, number, pss_mb(up.launcher))
    except SystemFailedError as error:
        yield Sample("start", 0, system.name, number, None, error=str(error).partition("\n")[0])


def one_round(plan: Plan, up: dict[System, RunningSystem], number: int, results: Results) -> None:
    """Everything once."""
    for case, count, systems in plan.steps():
        say(f"round {number + 1} of {plan.rounds}: {case.title}, {count} connections")
        there = [up[system] for system in systems if system in up]
        for one in turned(there, number):
            results.samples.append(one_run(case, count, one, number, run_s(one.system, count, plan.seconds)))


def one_run(case: Case, count: int, up: RunningSystem, number: int, seconds: int) -> Sample:
    """Load one system, which runs meanwhile as the only one of those that can be paused."""
    name, endpoint = up.system.name, up.endpoints[case.name]
    if up.system.may_pause:
        go_on(up.launcher)
    try:
        if case.way == "wrk" and (fault := ask(case, endpoint)):
            raise wrk.LoadError(fault)
        before = cpu_s(up.launcher)
        found = load(case, endpoint, count, seconds)
        used = cpu_s(up.launcher) - before
    except wrk.LoadError as error:
        say(f"{name}, {case.title}, {count} connections: {error}\n{up.last_words()}")
        return Sample(case.name, count, name, number, None, error=str(error))
    finally:
        if up.system.may_pause:
            pause(up.launcher)
    rate = case.scale * found.requests / found.seconds
    return Sample(case.name, count, name, number, rate, found.p50_ms, found.p99_ms, 1e6 * used / found.requests)


def load(case: Case, endpoint: Endpoint, count: int, seconds: int) -> wrk.Load:
    """One run of the case's client."""
    match case.way:
        case "upload" | "download":
            return clients.transfer(case, endpoint, seconds)
        case "calls":
            return clients.calls(endpoint, count, seconds)
        case "websocket":
            return clients.websocket(int(case.answer), endpoint, count, seconds)
        case _:
            return wrk.run(case, endpoint, count, seconds)


def turned(things: Sequence[T], number: int) -> list[T]:
    """The same things, from another one on: nobody always follows the same neighbour."""
    at = number % len(things) if things else 0
    return [*things[at:], *things[:at]]


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)
