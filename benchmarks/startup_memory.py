"""How fast servd starts and how much memory it holds: `python -m benchmarks.startup_memory [--rounds N] [--json FILE]`.

Every round uses a daemon of its own, started by the command line as a user starts it. Shown are medians and the range;
CPU seconds are those of one process alone, so they hold on a busy machine as well.
"""

import argparse
import http.client
import json
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

SERVD = [str(Path(sys.executable).parent / "servd")]
LIGHT = """
from servd import deployment

@deployment
async def light(request):
    return "light"

app = light.bind()
"""
ENTRIES = {
    "interpreter alone": "pass",
    "daemon": "import servd.daemon.boot",
    "controller": "import servd.controller.main",
    "admin server": "import servd.controller.main, servd.rest.app",
    "proxy": "import servd.proxy.main",
    "fork server": "import servd.replica.fork_server, servd",
}
KINDS = ("daemon", "controller", "proxy", "fork_server", "replica")
LIMIT_S = 60.0
REPLICAS = 8

Samples = dict[str, list[float]]


class Machine:
    """One daemon on a state directory of its own, driven by the command line."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state_dir = str(directory / "state")
        self.http_port, self.admin_port = free_port(), free_port()
        (directory / "light.py").write_text(LIGHT)
        self.environment = {**os.environ, "TMPDIR": str(directory), "SERVD_STATE_DIR": self.state_dir}
        self.environment.pop("XDG_RUNTIME_DIR", None)
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        """Run a command of servd to its end; gives the command line."""
        line = [*SERVD, *words]
        subprocess.run(line, env=self.environment, cwd=self.directory, check=True, stdout=subprocess.DEVNULL)
        return line

    def options(self) -> list[str]:
        """Where `servd start` shall listen."""
        return ["--http-port", str(self.http_port), "--admin-port", str(self.admin_port)]

    def start(self) -> None:
        """`servd start` in the foreground."""
        log = open(self.directory / "daemon.out", "ab")  # noqa: SIM115
        self._process = subprocess.Popen(
            [*SERVD, "start", *self.options()], env=self.environment, cwd=self.directory, stdout=log, stderr=log
        )

    def stop(self) -> None:
        """`servd stop`, and wait for the process started here."""
        self.command("stop")
        if self._process is not None:
            self._process.wait(LIMIT_S)
            self._process = None

    def ask(self, verb: str, path: str, body: Any = None, *, data_plane: bool = False) -> tuple[int, bytes]:
        """Status and body of one request; (0, b"") while nobody listens."""
        port = self.http_port if data_plane else self.admin_port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        try:
            connection.request(verb, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def is_served(self) -> bool:
        """Whether the light application answers."""
        return self.ask("GET", "/", data_plane=True)[0] == 200

    def deploy(self, replicas: int) -> None:
        """PUT the light application with so many replicas."""
        light = {"name": "light", "num_replicas": replicas}
        document = {
            "import_path": "light:app",
            "runtime_env": {"working_dir": str(self.directory)},
            "deployments": [light],
        }
        code, body = self.ask("PUT", "/api/serve/deployments/", document)
        assert code == 200, body

    def running_replicas(self) -> int:
        """RUNNING replicas of the light application."""
        code, body = self.ask("GET", "/api/servd/v1/status")
        apps = json.loads(body)["applications"] if code == 200 else {}
        deployments = [deployment for app in apps.values() for deployment in app["deployments"].values()]
        return sum(replica["state"] == "RUNNING" for found in deployments for replica in found["replicas"])

    def processes(self) -> Iterator[tuple[str, int]]:
        """Kind and pid of every process of this daemon, the resource tracker included."""
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                inside = self.state_dir.encode() in Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            title = re.match(r"servd: (daemon|controller|proxy|fork[ _]server|replica)", line)
            if title and line.endswith(self.state_dir):
                yield title[1].replace(" ", "_"), int(name)
            elif inside and "resource_tracker" in line:
                yield "resource tracker", int(name)

    def memory_mb(self) -> dict[str, list[float]]:
        """Proportional set size by kind of process, MB."""
        found: dict[str, list[float]] = {}
        for kind, pid in self.processes():
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            found.setdefault(kind, []).append(int(re.search(r"^Pss: +(\d+)", text, re.M)[1]) / 1000)  # type: ignore[index]
        return found

    def logged(self, word: str) -> list[datetime]:
        """When lines with `word` were logged, in order."""
        lines = {line for path in Path(self.state_dir, "logs").rglob("*.log") for line in path.open() if word in line}
        stamps = [re.search(r"\d{4}-\d\d-\d\d[ T](\d\d:\d\d:\d\d[.,]\d+)", line) for line in lines]
        return sorted(datetime.strptime(s[1].replace(",", "."), "%H:%M:%S.%f") for s in stamps if s)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(fact: Callable[[], bool], since: float, pause_s: float = 0.002) -> float:
    """Seconds from `since` until `fact()` holds."""
    while not fact():
        if time.perf_counter() - since > LIMIT_S:
            raise TimeoutError(f"{fact} did not come true within {LIMIT_S} s")
        time.sleep(pause_s)
    return time.perf_counter() - since


def imports(rounds: int, out: Samples) -> None:
    """CPU of an interpreter that loads what each kind of process loads."""
    for name, code in ENTRIES.items():
        for _ in range(rounds):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-P", "-c", code], check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            out.setdefault(f"CPU to load: {name}, ms", []).append(spent * 1000)


def one_round(out: Samples) -> None:
    """Start, deploy, scale, weigh, kill the controller, stop, start again."""

    def note(name: str, value: float) -> None:
        out.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory(prefix="servd-bench-") as name:
        machine = Machine(Path(name))
        begin = time.perf_counter()
        machine.command("--help")
        note("servd --help, ms", (time.perf_counter() - begin) * 1000)
        (Path(name) / "light.yaml").write_text("import_path: light:app\nruntime_env: {working_dir: .}\n")
        try:
            begin = time.perf_counter()
            machine.command("start", "--detach", *machine.options())
            note("servd start --detach returns, ms", (time.perf_counter() - begin) * 1000)
            idle = machine.memory_mb()
            for kind, sizes in idle.items():
                note(f"PSS idle: {kind}, MB", sum(sizes))
            note("PSS idle: whole daemon, MB", sum(map(sum, idle.values())))
            machine.command("deploy", "--wait", "light.yaml")
            note("start --detach, deploy --wait, first 200, ms", until(machine.is_served, begin) * 1000)
            _scale(machine, note)
            _restart_controller(machine, note)
            machine.deploy(1)
            until(lambda: machine.running_replicas() == 1, time.perf_counter(), 0.01)
        finally:
            machine.stop()
        begin = time.perf_counter()
        machine.start()
        try:
            note("servd start with a stored goal, first 200, ms", until(machine.is_served, begin) * 1000)
        finally:
            machine.stop()


def _scale(machine: Machine, note: Callable[[str, float], None]) -> None:
    one = machine.memory_mb()
    begin = time.perf_counter()
    machine.deploy(REPLICAS)
    span = until(lambda: machine.running_replicas() == REPLICAS, begin, 0.005)
    note(f"1 to {REPLICAS} replicas, ms", span * 1000)
    order, running = machine.logged("StartReplica=")[-1], machine.logged("replica_running")
    for name, stamp in (("first", running[1 - REPLICAS]), ("last", running[-1])):
        note(f"ready after the order, {name} of {REPLICAS - 1}, ms", (stamp - order).total_seconds() * 1000)
    # the build of the new document leaves when it turns out to be the one that runs
    until(lambda: len(machine.memory_mb().get("fork_server", ())) == 1, begin, 0.05)
    eight = machine.memory_mb()
    note("PSS serving one replica: whole daemon, MB", sum(map(sum, one.values())))
    note(f"PSS with {REPLICAS}: fork server, MB", sum(eight.get("fork_server", [0.0])))
    grown = sum(map(sum, eight.values())) - sum(map(sum, one.values()))
    note("PSS of each further replica, MB", grown / (REPLICAS - 1))


def _restart_controller(machine: Machine, note: Callable[[str, float], None]) -> None:
    pid = next(pid for kind, pid in machine.processes() if kind == "controller")
    begin = time.perf_counter()
    os.kill(pid, 9)
    span = until(lambda: machine.running_replicas() == REPLICAS, begin, 0.005)
    note("controller killed until it controls again, ms", span * 1000)


def table(samples: Samples) -> str:
    """Median and range of everything measured, a line each."""
    lines = [f"{'what':58} {'median':>8} {'lowest':>8} {'highest':>8}"]
    for name, values in samples.items():
        lines.append(f"{name:58} {statistics.median(values):8.1f} {min(values):8.1f} {max(values):8.1f}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the samples as well")
    options = parser.parse_args()
    samples: Samples = {}
    for _ in range(options.rounds):
        one_round(samples)
    imports(options.rounds, samples)
    print(table(samples))
    if options.json:
        options.json.write_text(json.dumps({"cpus": os.cpu_count(), "samples": samples}, indent=1))


if __name__ == "__main__":
    main()
