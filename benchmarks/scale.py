"""How fast replicas come, change and come back: `python -m benchmarks.scale [--rounds N] [--json FILE]`.

Every round uses a daemon of its own, reads its status over the admin port as any client would, and asks every 2 ms. Shown are
medians and the range, in milliseconds.
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

REPLICAS = 8
WORK = """
import os
from servd import deployment

@deployment
async def work(request):
    return str(os.getpid())

def build(args):
    return work.bind()
"""

Note = Callable[[str, float], None]


class ScaleMachine(Machine):
    """A machine whose one application has a version."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        # beside the state directory: what is in a working_dir is part of the code
        self.code = directory / "code"
        self.code.mkdir()
        (self.code / "work.py").write_text(WORK)

    def put(self, replicas: int, version: int) -> None:
        """PUT the application."""
        document = {
            "import_path": "work:build",
            "args": {"version": version},
            "runtime_env": {"working_dir": str(self.code)},
            "deployments": [{"name": "work", "num_replicas": replicas}],
        }
        code, body = self.ask("PUT", "/api/serve/deployments/", document)
        assert code == 200, body

    def scale(self, replicas: int) -> None:
        """Set the count alone."""
        path = "/api/v1/applications/default/deployments/work/scale"
        code, body = self.ask("POST", path, {"target_num_replicas": replicas})
        assert code == 200, body

    def work(self) -> tuple[str, dict[str, Any]]:
        """Status of the application, and the status body of its deployment; ("", {}) while there is none."""
        code, body = self.ask("GET", "/api/servd/v1/status")
        app = json.loads(body)["applications"].get("default", {}) if code == 200 else {}
        return app.get("status", ""), next(iter(app.get("deployments", {}).values()), {})

    def running(self) -> dict[int, str]:
        """Pids of RUNNING replicas, and their ids."""
        replicas = self.work()[1].get("replicas", ())
        return {replica["pid"]: replica["replica_id"] for replica in replicas if replica["state"] == "RUNNING"}

    def is_settled(self, replicas: int) -> bool:
        """Whether exactly so many run and nothing is under way."""
        status, work = self.work()
        return status == "RUNNING" and work["status"] == "HEALTHY" and len(self.running()) == replicas

    def answering(self) -> int:
        """Pid of the replica that answers a request sent now; 0 = nobody does."""
        code, body = self.ask("GET", "/", data_plane=True)
        return int(body) if code == 200 else 0

    def controller(self) -> int:
        """Pid of the controller."""
        return next(pid for kind, pid in self.processes() if kind == "controller")


def one_round(note: Note) -> None:
    """Scale, update, kill the controller, kill a replica."""
    with tempfile.TemporaryDirectory(prefix="servd-bench-") as name:
        machine = ScaleMachine(Path(name))
        machine.start()
        try:
            until(lambda: machine.ask("GET", "/api/servd/v1/status")[0] == 200, time.perf_counter())
            machine.put(1, version=1)
            until(lambda: machine.is_settled(1), time.perf_counter())
            _scale(machine, note)
            _update(machine, note)
            _kill_controller(machine, note)
            machine.put(1, version=2)
            until(lambda: machine.is_settled(1), time.perf_counter())
            _kill_replica(machine, note)
        finally:
            machine.stop()


def _scale(machine: ScaleMachine, note: Note) -> None:
    begin = time.perf_counter()
    machine.scale(REPLICAS)
    note(f"1 to {REPLICAS} replicas, by scale, ms", 1000 * until(lambda: len(machine.running()) == REPLICAS, begin))
    machine.scale(1)
    until(lambda: machine.is_settled(1), time.perf_counter())
    begin = time.perf_counter()
    machine.put(REPLICAS, version=1)
    note(f"1 to {REPLICAS} replicas, by document, ms", 1000 * until(lambda: len(machine.running()) == REPLICAS, begin))
    until(lambda: machine.is_settled(REPLICAS), time.perf_counter())


def _update(machine: ScaleMachine, note: Note) -> None:
    old = set(machine.running())
    begin = time.perf_counter()
    machine.put(REPLICAS, version=2)
    until(lambda: bool(set(machine.running()) - old), begin)
    note(f"update of {REPLICAS}: the first new one runs, ms", 1000 * (time.perf_counter() - begin))
    span = until(lambda: machine.is_settled(REPLICAS) and not old & set(machine.running()), begin)
    note(f"update of {REPLICAS}: all are new, old ones gone, ms", 1000 * span)


def _kill_controller(machine: ScaleMachine, note: Note) -> None:
    before, victim = machine.running(), machine.controller()
    begin = time.perf_counter()
    os.kill(victim, signal.SIGKILL)
    note(
        "controller killed: all replicas in its hands again, ms",
        1000 * until(lambda: machine.running() == before, begin),
    )


def _kill_replica(machine: ScaleMachine, note: Note) -> None:
    # once a round: of a deployment whose replicas die again and again at once, the next one is held back
    victim = machine.answering()
    begin = time.perf_counter()
    os.kill(victim, signal.SIGKILL)
    span = until(lambda: machine.answering() not in (0, victim), begin)
    note("the only replica killed: its successor answers, ms", 1000 * span)
    until(lambda: machine.is_settled(1), time.perf_counter())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the samples as well")
    options = parser.parse_args()
    samples: Samples = {}

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)

    for _ in range(options.rounds):
        one_round(note)
    print(table(samples))
    if options.json:
        options.json.write_text(json.dumps({"cpus": os.cpu_count(), "samples": samples}, indent=1))


if __name__ == "__main__":
    main()
