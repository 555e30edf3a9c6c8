"""What a daemon costs while nothing happens: `python -m benchmarks.idle_at_size [--replicas N] [--deployments N]`.

One daemon with many replicas of one light deployment, and one with many deployments that are scaled to zero. Shown is CPU time
by kind of process, in percent of one core, and descriptors of a proxy; CPU time hardly depends on what else the machine does.
Replicas are killed as well: shown is how long it takes until a successor exists and until it serves, and what that costs the
controller.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.startup_memory import Machine, Samples, table, until

SETTLE_S = 15.0
DEATHS = 7
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
LIGHT = """
from servd import deployment

@deployment
def light(request):
    return "light"

app = light.bind()
"""
MANY = """
from servd import deployment

def idle(request):
    return "idle"

@deployment
class Front:
    def __init__(self, *parts):
        self.parts = parts

zero = {{"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}}
parts = [deployment(name=f"part{{n}}", autoscaling_config=zero)(idle).bind() for n in range({count})]
app = Front.options(autoscaling_config=zero).bind(*parts)
"""

Note = Callable[[str, float], None]


def cpu_s(pid: int) -> float:
    """CPU seconds of a living process so far, all its threads; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


def spent(machine: Machine) -> dict[str, float]:
    """CPU seconds so far by kind of process."""
    found: dict[str, float] = {}
    for kind, pid in machine.processes():
        found[kind] = found.get(kind, 0.0) + cpu_s(pid)
    return found


def measure(machine: Machine, title: str, seconds: float, note: Note) -> None:
    """Note what every kind of process costs while nothing happens."""
    time.sleep(SETTLE_S)
    before, begin = spent(machine), time.perf_counter()
    time.sleep(seconds)
    after, span = spent(machine), time.perf_counter() - begin
    shares = {kind: 100 * (after[kind] - before.get(kind, 0.0)) / span for kind in after}
    for kind, share in shares.items():
        note(f"{title}: {kind}, % of a core", share)
    note(f"{title}: whole daemon, % of a core", sum(shares.values()))


def children_of(pid: int) -> set[int]:
    """Living children of a process's main thread."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def kill_some(machine: Machine, title: str, note: Note) -> None:
    """Kill replicas, one after the other, and note how fast each is replaced."""
    pids = {kind: pid for kind, pid in machine.processes() if kind in ("controller", "fork_server")}
    logs = Path(machine.state_dir, "logs", "serve")
    for _ in range(DEATHS):
        before, files = children_of(pids["fork_server"]), set(os.listdir(logs))
        spent_before, begin = cpu_s(pids["controller"]), time.perf_counter()
        os.kill(sorted(before)[len(before) // 2], signal.SIGKILL)
        forked = until(lambda known=before: bool(children_of(pids["fork_server"]) - known), begin)  # type: ignore[misc]
        note(f"{title}: a death until its successor is forked, ms", forked * 1000)
        until(lambda known=files: bool(set(os.listdir(logs)) - known), begin)  # type: ignore[misc]
        fresh = max(set(os.listdir(logs)) - files)
        serves = until(lambda file=logs / fresh: "replica_running" in file.read_text(), begin)  # type: ignore[misc]
        note(f"{title}: a death until its successor serves, ms", serves * 1000)
        # what is behind it comes to an end as well
        time.sleep(1.0)
        note(f"{title}: CPU of the controller for a death, ms", (cpu_s(pids["controller"]) - spent_before) * 1000)


def status_of(machine: Machine) -> str:
    """Status of the application, "" while there is none."""
    code, body = machine.ask("GET", "/api/servd/v1/status")
    apps: dict[str, Any] = json.loads(body)["applications"] if code == 200 else {}
    return str(apps.get("default", {}).get("status", ""))


def served(machine: Machine, code: str, replicas: int | None) -> None:
    """Start a daemon and deploy this code; back once it runs."""
    directory = machine.directory / "code"
    directory.mkdir()
    (directory / "many.py").write_text(code)
    machine.start()
    until(lambda: machine.ask("GET", "/api/servd/v1/status")[0] == 200, time.perf_counter())
    document: dict[str, Any] = {"import_path": "many:app", "runtime_env": {"working_dir": str(directory)}}
    if replicas is not None:
        document["deployments"] = [{"name": "light", "num_replicas": replicas}]
    answer, body = machine.ask("PUT", "/api/serve/deployments/", document)
    assert answer == 200, body
    # asking costs: seldom
    begin = time.perf_counter()
    while status_of(machine) != "RUNNING":
        assert time.perf_counter() - begin < 600.0, "not RUNNING within 600 s"
        time.sleep(2.0)


def many_replicas(count: int, seconds: float, note: Note) -> None:
    """So many replicas of one deployment."""
    with tempfile.TemporaryDirectory(prefix="servd-bench-") as name:
        machine = Machine(Path(name))
        try:
            served(machine, LIGHT, count)
            measure(machine, f"{count} replicas", seconds, note)
            proxy = next(pid for kind, pid in machine.processes() if kind == "proxy")
            note(f"{count} replicas: descriptors of a proxy, a replica", len(os.listdir(f"/proc/{proxy}/fd")) / count)
            kill_some(machine, f"{count} replicas", note)
        finally:
            machine.stop()


def many_deployments(count: int, seconds: float, note: Note) -> None:
    """So many deployments at zero, and the ingress at zero too."""
    with tempfile.TemporaryDirectory(prefix="servd-bench-") as name:
        machine = Machine(Path(name))
        try:
            served(machine, MANY.format(count=count), None)
            measure(machine, f"{count} deployments at zero", seconds, note)
        finally:
            machine.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=500)
    parser.add_argument("--deployments", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=40.0, help="how long to measure each")
    options = parser.parse_args()
    samples: Samples = {}

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)

    if options.replicas:
        many_replicas(options.replicas, options.seconds, note)
    if options.deployments:
        many_deployments(options.deployments, options.seconds, note)
    print(table(samples))


if __name__ == "__main__":
    main()
