"""What logs, metrics and traces cost: `python -m benchmarks.observability [--case noop|fastapi] [--rounds N] [--seconds S]
[--steps N] [--json FILE]`.

Two measurements, both in interleaved rounds. First whole daemons under wrk, 32 connections: one without access log and
metrics, one with both, and three that record none of the traces, a hundredth, and all of them, for a collector that drops
them; per round, in an order drawn anew, their rates and the CPU time of proxy and replica per request are compared, what they
send behind the load included: the next one begins when a daemon rests. `--steps 0` ends here. Then what the code itself
costs: proxy and replica on one loop in one process, once per mode, `Server-Timing` on top of the others; 32 connections ask in
lockstep, and the CPU time per request is compared, ZeroMQ's threads included, the
client's part left out. The second shows small differences that drown in the first, and shows them too large: nothing else
stands beside them, no load, no kernel's work for clients.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.compare.cases import BY_NAME, Case
from benchmarks.compare.results import machine
from benchmarks.compare.running_system import running
from benchmarks.compare.systems import Endpoint as HttpEndpoint
from benchmarks.compare.systems import Setup, System, start_servd
from benchmarks.compare.wrk import run
from servd import deployment
from servd.calls.caller import Caller
from servd.context import ReplicaContext
from servd.observability import logs
from servd.observability.access_log import AccessLog, place_of
from servd.observability.journal import Journal
from servd.observability.log_file import LogFile
from servd.observability.spans import ENDPOINT, RATIO
from servd.proxy.forwarder import Forwarder
from servd.proxy.http1 import HttpConnection
from servd.proxy.limits import Limits
from servd.proxy.listener import Listener
from servd.replica import exchange
from servd.replica.grpc.service import GrpcService
from servd.replica.notes import noter, read_notes
from servd.replica.server import ReplicaServer
from servd.replica.user_callable import UserCallable
from servd.wire.messages import DeploymentTargets, Endpoint, Route, Routing

CASES = ("noop", "fastapi")
CONNECTIONS = 32
BATCHES = 16
REQUEST = b"GET / HTTP/1.1\r\nhost: 127.0.0.1:8000\r\nuser-agent: bench\r\naccept: */*\r\n\r\n"
MODES = ("off", "logs and metrics", "and Server-Timing")
AIM = 0.05
"""What logs and metrics may cost of the rate."""
TRACES_AIM = 0.03
"""What a hundredth of the traces may cost beside."""
SEED = 29
DAEMONS: dict[str, tuple[bool, float | None]] = {
    "everything off": (False, None),
    "logs and metrics": (True, None),
    "traces at 0 %": (True, 0.0),
    "traces at 1 %": (True, 0.01),
    "traces at 100 %": (True, 1.0),
}
"""Daemons: whether logs and metrics are on, and the share of traces that is recorded."""
COMPARED = (
    ("logs and metrics", "everything off"),
    ("traces at 0 %", "logs and metrics"),
    ("traces at 1 %", "logs and metrics"),
    ("traces at 100 %", "logs and metrics"),
)
SENDING = {"OTEL_BSP_SCHEDULE_DELAY": "1000"}
"""Spans leave while their daemon's turn lasts; by default they wait 5 s: to send five times as often costs more."""
REST_SHARE = 0.02
"""Of one CPU: a daemon that takes less has nothing more to send."""
REST_LOOK_S = 0.5
REST_LOOKS = 3
"""So many one after the other, as long as spans may wait."""
REST_LIMIT_S = 30.0
COLLECTOR = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class Daemon:
    """A running daemon. pids: its proxy and its replica."""

    endpoint: HttpEndpoint
    pids: tuple[int, ...]

    def cpu_us(self) -> float:
        """CPU time of all threads so far."""
        paths = [path for pid in self.pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        return sum(int(path.read_text().split()[0]) for path in paths) / 1000

    def rest(self) -> None:
        """Wait until it has sent what it had to.

        Raises:
            TimeoutError: it never rests.
        """
        used, end, looks = self.cpu_us(), time.monotonic() + REST_LIMIT_S, 0
        while time.monotonic() < end:
            time.sleep(REST_LOOK_S)
            before, used = used, self.cpu_us()
            looks = looks + 1 if used - before < REST_SHARE * REST_LOOK_S * 1e6 else 0
            if looks == REST_LOOKS:
                return
        raise TimeoutError(f"{self.endpoint} still works {REST_LIMIT_S:g} s after its load")


def servd_with(case: Case, *, is_on: bool, traces: float | None = None, collector: str = "") -> System:
    """A daemon with the application of the case, with access log and metrics or without. traces: share that is sent."""

    def start(python: str, directory: Path, cases: set[str]) -> Setup:
        setup = start_servd(python, directory, cases)
        path = directory / "document.yaml"
        document = json.loads(path.read_text()) | {"logging_config": {"enable_access_log": is_on}}
        path.write_text(json.dumps(document))
        setup.environment["SERVD_METRICS"] = str(int(is_on))
        if traces is not None:
            setup.environment |= {ENDPOINT: f"{collector}/v1/traces", f"SERVD_{RATIO}": str(traces)} | SENDING
        return setup

    return System("servd", "", frozenset({case.name}), start)


def start_daemon(stack: ExitStack, case: Case, *, is_on: bool, traces: float | None, collector: str) -> Daemon:
    """Start a daemon and deploy the application."""
    system = servd_with(case, is_on=is_on, traces=traces, collector=collector)
    up = stack.enter_context(running(system, sys.executable, {case.name}))
    return Daemon(up.endpoints[case.name], tuple(serving_pids(str(up.log.parent / "state"))))


def serving_pids(state_dir: str) -> Iterator[int]:
    """Pids of the proxy and the replicas of a daemon."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                title = Path(f"/proc/{name}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
            except OSError:
                continue
            if title.startswith(("servd: proxy", "servd: replica")) and title.endswith(state_dir):
                yield int(name)


def start_collector(stack: ExitStack) -> str:
    """Start what takes traces and drops them; its URL."""
    process = stack.enter_context(
        subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True)
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    return f"http://127.0.0.1:{int(process.stdout.readline())}"


def compare_daemons(case: Case, rounds: int, seconds: int) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Rate and CPU time per request of a daemon as shares of another's, round by round, by the names of both."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {pair: {"rate": [], "cpu": []} for pair in COMPARED}
    with ExitStack() as stack:
        collector = start_collector(stack)
        daemons = {
            name: start_daemon(stack, case, is_on=is_on, traces=traces, collector=collector)
            for name, (is_on, traces) in DAEMONS.items()
        }
        names, rng = list(daemons), random.Random(SEED)
        for number in range(-1, rounds):
            figures = {}
            # nobody always follows the same neighbour
            for name in rng.sample(names, len(names)):
                daemon = daemons[name]
                before = daemon.cpu_us()
                one = run(case, daemon.endpoint, CONNECTIONS, seconds)
                daemon.rest()
                figures[name] = one.requests / one.seconds, (daemon.cpu_us() - before) / one.requests
            for (name, base), shares in found.items() if number >= 0 else ():
                for kind, mine, others in zip(shares, figures[name], figures[base], strict=True):
                    shares[kind].append(mine / others)
    return found


class Plain:
    """The user's code."""

    async def __call__(self, request: Any) -> bytes:  # noqa: ARG002 - as in every benchmark
        """A few bytes."""
        return b"hello"


class CountedConnection(HttpConnection):
    """Says how many requests are answered."""

    answered = 0
    done: asyncio.Future[None] | None = None

    def _finish(self) -> None:
        super()._finish()
        CountedConnection.answered += 1
        if CountedConnection.answered == CONNECTIONS and CountedConnection.done is not None:
            CountedConnection.done.set_result(None)


class Stand:
    """Proxy, replica and client of one mode."""

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: Path, mode: str) -> None:
        self.mode = mode
        self._loop = loop
        self._is_timed = mode == MODES[2]
        is_on = mode != MODES[0]
        style = logs.style_of({"enable_access_log": is_on})
        self.journals = []
        for component, place, read in (
            ("http_proxy", HttpConnection.on_response, list),
            ("replica", noter, read_notes),
        ):
            file = LogFile(directory / f"{component}-{mode}.log")
            journal = Journal(loop, AccessLog(file, component, component, place_of(place)), counts=is_on, read=read)
            journal.configure(style)
            self.journals.append(journal)
        self._directory = directory
        self._clients: list[socket.socket] = []

    async def start(self) -> None:
        """Open everything."""
        address = f"ipc://{self._directory}/{MODES.index(self.mode)}.sock"
        note = noter(self.journals[1])
        user = UserCallable(deployment(Plain), ReplicaContext("a_Plain", "a_Plain#x"), on_end=note)
        await user.construct()
        grpc = GrpcService(self._loop, user, {}, "a")
        self._server = ReplicaServer(self._loop, address, user, limit=1000, grpc=grpc, app="a", replica_id="a_Plain#x")
        self._server.start()
        caller = Caller(self._loop, self.mode, lambda _: None, rng=random.Random(1))
        forwarder = Forwarder(caller, "", Limits(server_timing=self._is_timed), journal=self.journals[0])
        targets = DeploymentTargets("a_Plain", "a", endpoints=(Endpoint("a_Plain#x", address),))
        forwarder.apply_routing(Routing(1, (Route("/", "a_Plain", "a"),), (targets,)))
        listener = Listener(forwarder)
        server = await self._loop.create_server(lambda: CountedConnection(listener), "127.0.0.1", 0)
        place = server.sockets[0].getsockname()
        self._clients = [socket.create_connection(place) for _ in range(CONNECTIONS)]

    async def run(self) -> float:
        """CPU time per request, microseconds."""
        exchange._IS_TIMED = self._is_timed
        used = 0.0
        for _ in range(BATCHES):
            for client in self._clients:
                client.sendall(REQUEST)
            CountedConnection.answered = 0
            CountedConnection.done = self._loop.create_future()
            began = time.process_time()
            await CountedConnection.done
            used += time.process_time() - began
            for client in self._clients:
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
        began = time.process_time()
        for journal in self.journals:
            journal.settle()
        used += time.process_time() - began
        return used / (BATCHES * CONNECTIONS) * 1e6


async def measure(directory: Path, rounds: int) -> dict[str, list[float]]:
    """CPU time per request of every mode in every round."""
    stands = [Stand(asyncio.get_running_loop(), directory, mode) for mode in MODES]
    for stand in stands:
        await stand.start()
    # as proxies and replicas do
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    samples: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(-3, rounds):
        # another order each round: nobody always follows the same neighbour
        turn = number % len(stands)
        for stand in stands[turn:] + stands[:turn]:
            found = await stand.run()
            if number >= 0:
                samples[stand.mode].append(found)
    return samples


def summary(samples: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Medians and quartiles; the cost of a mode is that over the same round's "off"."""
    entries = []
    for mode, found in samples.items():
        costs = sorted(mine / base - 1 for mine, base in zip(found, samples[MODES[0]], strict=True))
        quarter = len(costs) // 4
        entries.append(
            {
                "mode": mode,
                "cpu_us": round(statistics.median(found), 2),
                "least_cpu_us": round(min(found), 2),
                "cost": round(statistics.median(costs), 4),
                "cost_quartiles": [round(costs[quarter], 4), round(costs[-1 - quarter], 4)],
            }
        )
    return entries


def print_steps(entries: list[dict[str, Any]]) -> None:
    """The figures of the second measurement as text."""
    print(f"{'lockstep':<20} {'CPU us/request':>14} {'least':>7} {'cost':>7}  {'quartiles'}")
    for one in entries:
        quartiles = " to ".join(f"{value:+.1%}" for value in one["cost_quartiles"])
        print(f"{one['mode']:<20} {one['cpu_us']:>14.2f} {one['least_cpu_us']:>7.2f} {one['cost']:>+7.1%}  {quartiles}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", choices=CASES, default=CASES[0], help="of the whole daemons")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=3, help="of load per daemon and round")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = {"machine": machine(), "case": options.case}
    with tempfile.TemporaryDirectory(prefix="servd-watch-") as directory:
        for (name, base), kinds in compare_daemons(BY_NAME[options.case], options.rounds, options.seconds).items():
            entry = document[name] = {"of": base}
            for kind, shares in kinds.items():
                low, median, high = (round(share, 3) for share in statistics.quantiles(shares, n=4))
                entry[kind] = {"median": median, "quartiles": [low, high], "rounds": len(shares)}
                print(f"whole daemons, {name}: {kind} {median:.3f} of {base} (quartiles {low:.3f} to {high:.3f})")
        for name, aim in (("logs and metrics", AIM), ("traces at 1 %", TRACES_AIM)):
            verdict = "reached" if document[name]["rate"]["median"] >= 1 - aim else "MISSED"
            print(f"aim: the rate with {name} stays within {aim:.0%}: {verdict}", flush=True)
        if options.steps:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                entries = document["steps"] = summary(runner.run(measure(Path(directory), options.steps)))
                print_steps(entries)
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=2) + "\n")
        sys.stdout.flush()
    # open connections of the second part end with the process
    os._exit(0)


if __name__ == "__main__":
    main()
