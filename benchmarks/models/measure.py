"""The rounds: each system grows from one replica to many; then all of them answer the same load in turn."""

import http.client
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from benchmarks.compare import wrk
from benchmarks.compare.cases import Case
from benchmarks.compare.figures import Sample
from benchmarks.compare.measure import say, turned
from benchmarks.compare.processes import cpu_s, go_on, pause, pss_mb
from benchmarks.compare.results import Results
from benchmarks.compare.running_system import LOG_BYTES, SystemFailedError, go_on_waiting, launched, run_then
from benchmarks.compare.systems import Endpoint
from benchmarks.models.systems import APPS_DIR, MOST, System, Up, Work

START_LIMIT_S = 180.0
ANSWER_LIMIT_S = 60.0
SETTLE_S = 2.0
"""After a change, before memory is looked at: helpers of the start have left."""
CLIENTS = 2 * MOST
BURST_CLIENTS = 4 * MOST
LOAD = Case("load", "load", "wrk", "requests/s", (CLIENTS,))


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. systems: with the interpreter of each. files: folder of the models' files. expected: result by model."""

    systems: dict[System, str]
    files: Path
    expected: dict[str, str]
    kinds: Sequence[str]
    rounds: int
    seconds: int


def measure(plan: Plan, results: Results) -> None:
    """Take all samples, into the results as they come."""
    for model in plan.expected:
        for number in range(plan.rounds):
            for system in turned(list(plan.systems), number):
                if {"memory1", "memory8", "grow", "imports"} & set(plan.kinds):
                    _note(plan, results, growth(plan, system, model, number))
                if "burst" in plan.kinds and system.has_autoscaling:
                    _note(plan, results, burst(plan, system, model, number))
            say(f"{model}: growth, round {number + 1} of {plan.rounds}")
        for kind, work in (("rate", Work(model, 2)), ("threads", Work(model, 1, threads=2))):
            if kind in plan.kinds:
                _note(plan, results, loads(plan, kind, work))


def _note(plan: Plan, results: Results, samples: Iterator[Sample]) -> None:
    for sample in samples:
        if sample.case.partition("-")[2] in plan.kinds:
            results.samples.append(sample)
        if sample.error:
            say(f"{sample.system}, {sample.case}: {sample.error}")


def growth(plan: Plan, system: System, model: str, number: int) -> Iterator[Sample]:
    """One system with one replica, then with many. One that cannot grow while it runs starts anew with many."""

    def sample(kind: str, value: float | None, error: str = "") -> Sample:
        return Sample(f"{model}-{kind}", 0, system.name, number, value, error=error)

    began = time.perf_counter()
    kind = "memory1"
    try:
        with running(plan, system, Work(model, 1)) as up:
            time.sleep(SETTLE_S)
            yield sample(kind, pss_mb(up.launcher))
            kind = "grow"
            if system.grow is not None:
                began = time.perf_counter()
                system.grow(up, MOST)
                yield from _grown(plan, up, model, began, sample)
                return
        began = time.perf_counter()
        with running(plan, system, Work(model, MOST)) as up:
            yield from _grown(plan, up, model, began, sample)
    except (SystemFailedError, TimeoutError, OSError) as error:
        yield sample(kind, None, str(error))


def _grown(plan: Plan, up: Up, model: str, began: float, sample) -> Iterator[Sample]:  # type: ignore[no-untyped-def]
    yield sample("grow", until_all_answer(up.endpoint, plan.expected[model], CLIENTS, began))
    time.sleep(SETTLE_S)
    yield sample("memory8", pss_mb(up.launcher))
    yield sample("imports", up.imported())


def burst(plan: Plan, system: System, model: str, number: int) -> Iterator[Sample]:
    """Many clients at once, one replica, autoscaling."""
    name = f"{model}-burst"
    try:
        with running(plan, system, Work(model, 1, is_autoscaled=True)) as up:
            time.sleep(SETTLE_S)
            began = time.perf_counter()
            value = until_all_answer(up.endpoint, plan.expected[model], BURST_CLIENTS, began)
            yield Sample(name, 0, system.name, number, value)
    except (SystemFailedError, TimeoutError, OSError) as error:
        yield Sample(name, 0, system.name, number, None, error=str(error))


def loads(plan: Plan, kind: str, work: Work) -> Iterator[Sample]:
    """All systems up, one of them loaded at a time, the others stopped meanwhile where they bear it."""
    with ExitStack() as stack:
        there: dict[System, Up] = {}
        for system, _ in plan.systems.items():
            try:
                there[system] = stack.enter_context(running(plan, system, work))
            except SystemFailedError as error:
                yield Sample(f"{work.model}-{kind}", 0, system.name, 0, None, error=str(error))
                continue
            if system.may_pause:
                pause(there[system].launcher)
        try:
            for number in range(plan.rounds):
                for system in turned(list(there), number):
                    yield _load(plan, kind, work, system, there[system], number)
                say(f"{work.model}: {kind}, round {number + 1} of {plan.rounds}")
        finally:
            for up in there.values():
                go_on(up.launcher)


def _load(plan: Plan, kind: str, work: Work, system: System, up: Up, number: int) -> Sample:
    name = f"{work.model}-{kind}"
    if system.may_pause:
        go_on(up.launcher)
    try:
        # all replicas awake, and right
        until_all_answer(up.endpoint, plan.expected[work.model], 4, time.perf_counter(), work.replicas)
        before = cpu_s(up.launcher)
        found = wrk.run(LOAD, up.endpoint, 4 * work.replicas, plan.seconds)
        used = cpu_s(up.launcher) - before
    except (wrk.LoadError, TimeoutError) as error:
        return Sample(name, 0, system.name, number, None, error=str(error))
    finally:
        if system.may_pause:
            pause(up.launcher)
    rate = found.requests / found.seconds
    return Sample(name, 0, system.name, number, rate, found.p50_ms, found.p99_ms, 1e6 * used / found.requests)


@contextmanager
def running(plan: Plan, system: System, work: Work) -> Iterator[Up]:
    """The system for as long as the block runs, from when all of its replicas that it starts with have answered.

    Raises:
        SystemFailedError: it does not come up; the message holds the end of its log.
    """
    # short, as paths of Unix sockets are
    directory = Path(tempfile.mkdtemp(prefix="bench-"))
    imports, log = directory / "imports", directory / "log"
    imports.touch()
    setup = system.start(plan.systems[system], directory, work)
    setup.environment |= {"BENCH_MODEL": work.model, "BENCH_FILES": str(plan.files), "BENCH_IMPORTS": str(imports)}
    setup.environment |= dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(work.threads)
    )
    own = filter(None, (setup.environment.get("PYTHONPATH"), str(APPS_DIR)))
    setup.environment["PYTHONPATH"] = os.pathsep.join(own)
    try:
        with launched(setup, directory, log) as process:
            up = Up(setup, process.pid, imports)
            try:
                deadline = time.monotonic() + START_LIMIT_S
                run_then(setup, process, deadline)
                while (fault := ask(up.endpoint, plan.expected[work.model])[1]) or not up.imported():
                    go_on_waiting(process, deadline, f"{up.endpoint.url}: {fault}")
            except SystemFailedError as error:
                raise SystemFailedError(
                    f"{system.name}: {error}\n{log.read_text(errors='replace')[-LOG_BYTES:]}"
                ) from None
            yield up
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def ask(endpoint: Endpoint, expected: str) -> tuple[int, str]:
    """Pid of who answers one request, and what is wrong with the answer, "" = nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=ANSWER_LIMIT_S)
    headers = {"Content-Type": endpoint.content_type} if endpoint.content_type else {}
    try:
        connection.request("GET" if endpoint.body is None else "POST", endpoint.path, endpoint.body, headers)
        response = connection.getresponse()
        text = response.read().decode(errors="replace").strip('"')
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    pid, _, result = text.partition(" ")
    if response.status != 200 or result != expected:
        return 0, f"status {response.status}, {text[:200]!r} instead of {expected}"
    return int(pid), ""


def until_all_answer(endpoint: Endpoint, expected: str, clients: int, began: float, count: int = MOST) -> float:
    """Seconds from `began` until so many processes have answered, to clients that ask without a pause.

    Raises:
        TimeoutError: they have not within `START_LIMIT_S`; says how many have, and what was wrong last.
    """
    seen: set[int] = set()
    faults: list[str] = []
    is_over = Event()

    def client() -> None:
        while not is_over.is_set():
            pid, fault = ask(endpoint, expected)
            if fault:
                faults.append(fault)
                # it may still be starting
                is_over.wait(0.01)
            else:
                seen.add(pid)
                if len(seen) >= count:
                    is_over.set()

    with ThreadPoolExecutor(clients) as pool:
        for _ in range(clients):
            pool.submit(client)
        is_over.wait(START_LIMIT_S)
        span = time.perf_counter() - began
        is_over.set()
    if len(seen) < count:
        raise TimeoutError(f"{len(seen)} of {count} answered within {START_LIMIT_S:.0f} s; {faults[-1:]}")
    return span
