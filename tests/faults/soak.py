"""`python -m tests.faults.soak [--minutes 10]`: memory and descriptors stay flat while applications come, change and go.

Looked at are all processes that live through the whole run: daemon, controller, proxies, and fork server and replicas of an
application that nobody touches. Once per round, when the other applications are gone again, each is measured. Flat means: the
median of the last quarter is within 5 % of the second quarter's (descriptors: or within 2).
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

import psutil

from servd.ground.clock import SystemClock
from tests.faults.scenarios import a_stage
from tests.faults.stage import Stage
from tests.system.running_daemon import eventually

LIMIT = 0.05
FREE_FDS = 2

Samples = dict[str, list[float]]


def main(minutes: float) -> int:
    """Exit code 1 if something grew, or a request failed."""
    with tempfile.TemporaryDirectory(prefix="servd-soak-") as directory:
        with a_stage(Path(directory), replicas=2, proxies=2) as stage:
            memory, fds, rounds = _soak(stage, minutes * 60)
    problems = []
    print(f"{rounds} rounds of deploy, update and delete in {minutes:g} minutes")
    print(f"{'process':44} {'MiB, quarter 2':>15} {'quarter 4':>10} {'descriptors':>12} {'quarter 4':>10}")
    for name in memory:
        early, late = _quarters(memory[name])
        early_fds, late_fds = _quarters(fds[name])
        print(f"{name:44} {early / 2**20:15.1f} {late / 2**20:10.1f} {early_fds:12.0f} {late_fds:10.0f}")
        if abs(late - early) > LIMIT * early:
            problems.append(f"memory of {name}")
        if abs(late_fds - early_fds) > max(LIMIT * early_fds, FREE_FDS):
            problems.append(f"descriptors of {name}")
    print(f"not flat: {', '.join(problems)}" if problems else "all flat")
    return 1 if problems else 0


def _soak(stage: Stage, seconds: float) -> tuple[Samples, Samples, int]:
    clock = SystemClock()
    memory: Samples = {}
    fds: Samples = {}
    load = stage.load("/")
    end = clock.now() + seconds
    rounds = 0
    try:
        while clock.now() < end:
            rounds += 1
            _one_round(stage, rounds)
            for name, process in _processes(stage).items():
                memory.setdefault(name, []).append(process.memory_info().rss)
                fds.setdefault(name, []).append(process.num_fds())
    except BaseException:
        load.kill()
        raise
    counts = load.stop()
    print(f"{counts.total} requests, {len(counts.failures)} failed: {counts.reasons()}")
    if counts.failures:
        raise SystemExit(1)
    return memory, fds, rounds


def _one_round(stage: Stage, number: int) -> None:
    for version in (2 * number, 2 * number + 1):
        application = stage.document(version=version)
        del application["name"], application["deployments"]
        for name in ("left", "right"):
            wish = {**application, "route_prefix": f"/{name}"}
            code, text = stage.daemon.ask("PUT", f"/api/servd/v1/applications/{name}", wish)
            assert code == 200, text
        eventually(lambda: _states(stage) == {"work": "RUNNING", "left": "RUNNING", "right": "RUNNING"}, 60.0)
        for name in ("left", "right"):
            assert stage.daemon.get(f"/{name}")[0] == 200
    for name in ("left", "right"):
        assert stage.daemon.ask("DELETE", f"/api/servd/v1/applications/{name}")[0] == 200
    eventually(lambda: _states(stage) == {"work": "RUNNING"}, 60.0)


def _states(stage: Stage) -> dict[str, str]:
    return {name: app["status"] for name, app in stage.daemon.status()["applications"].items()}


def _processes(stage: Stage) -> dict[str, psutil.Process]:
    found = {}
    for title in ("daemon", "controller", "proxy", "fork server work", "replica work_Work"):
        for pid in stage.daemon.pids(title):
            found[f"{title} {pid}"] = psutil.Process(pid)
    return found


def _quarters(samples: list[float]) -> tuple[float, float]:
    """Medians of the second and of the last quarter."""
    size = max(len(samples) // 4, 1)
    return median(samples[size : 2 * size] or samples), median(samples[-size:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    sys.exit(main(parser.parse_args().minutes))
