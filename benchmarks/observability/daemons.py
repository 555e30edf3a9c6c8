"""Whole daemons under `wrk`, one of each kind at a time, that take turns of a quarter of a second: rate, and CPU time per request
as the kernel counts it for proxy and replica.

How this works: the speed of a processor that is shared with others' machines changes by a tenth and more from second to second,
which looks as if daemons that were started alike differed. Turns that short let all kinds have the same share of it. `wrk` is
stopped and goes on by signals, so nothing is started or connected between turns.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.cases import Case
from benchmarks.compare.running_system import request, running
from benchmarks.compare.systems import Endpoint, Setup, System, start_servd
from benchmarks.compare.wrk import parsed, run
from servd.observability.spans import ENDPOINT, RATIO

CONNECTIONS = 32
SENDING = {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
"""Spans leave by the hundred, as they do under load, and so in the turn of their own daemon: not when so much time has passed."""
SEED = 29
WARM_S = 1
TURN_S = 0.25
BETWEEN_TURNS_S = 0.01
REST_S = 0.6
LOAD_LIMIT_S = 600
TIMEOUT_S = 20
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
class Kind:
    """Of daemons. is_on: logs and metrics are. traces: share of the requests of which one is recorded, None = nobody records any.
    tree: checkout whose code runs, "" = this one.
    """

    name: str
    is_on: bool
    traces: float | None = None
    tree: str = ""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("off", False),
        Kind("on", True),
        Kind("traces-0", True, 0.0),
        Kind("traces-1", True, 0.01),
        Kind("traces-100", True, 1.0),
    )
}


@dataclass(frozen=True)
class Figures:
    """Of one daemon. rate: requests per second. cpu_us: of proxy and replica, per request. proxy_us: the proxy's part of it."""

    rate: float
    cpu_us: float
    proxy_us: float


@dataclass(frozen=True)
class Daemon:
    """A running daemon. pids: its proxy and its replica."""

    endpoint: Endpoint
    pids: tuple[int, ...]

    def cpu_us(self) -> list[float]:
        """CPU time of all threads of either so far."""
        return [
            sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1000
            for pid in self.pids
        ]


def servd_as(case: Case, kind: Kind, collector: str) -> System:
    """A daemon of a kind, with the application of the case."""

    def start(python: str, directory: Path, cases: set[str]) -> Setup:
        setup = start_servd(python, directory, cases)
        path = directory / "document.yaml"
        document = json.loads(path.read_text()) | {"logging_config": {"enable_access_log": kind.is_on}}
        path.write_text(json.dumps(document))
        setup.environment["SERVD_METRICS"] = str(int(kind.is_on))
        if kind.traces is not None:
            setup.environment |= {ENDPOINT: f"{collector}/v1/traces", f"SERVD_{RATIO}": str(kind.traces)} | SENDING
        if kind.tree:
            setup.environment["PYTHONPATH"] = kind.tree
        return setup

    return System("servd", "", frozenset({case.name}), start)


def start_daemon(stack: ExitStack, case: Case, kind: Kind, collector: str) -> Daemon:
    """Start a daemon and deploy the application."""
    up = stack.enter_context(running(servd_as(case, kind, collector), sys.executable, {case.name}))
    return Daemon(up.endpoints[case.name], serving_pids(str(up.log.parent / "state")))


def serving_pids(state_dir: str) -> tuple[int, ...]:
    """Pids of a daemon's proxy, and of its replicas behind it."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                title = Path(f"/proc/{name}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
            except OSError:
                continue
            if title.startswith(("servd: proxy", "servd: replica")) and title.endswith(state_dir):
                found.append((title, int(name)))
    return tuple(pid for _, pid in sorted(found))


def start_collector(stack: ExitStack) -> str:
    """Start what takes traces and drops them; its URL."""
    process = stack.enter_context(
        subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True)
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    return f"http://127.0.0.1:{int(process.stdout.readline())}"


class Load:
    """wrk at one daemon, for turns. requests, active_s: once it has ended."""

    def __init__(self, case: Case, daemon: Daemon) -> None:
        self.daemon = daemon
        method, body, _ = request(case, daemon.endpoint)
        assert (method, body) == ("GET", None)
        options = [f"-c{CONNECTIONS}", f"-d{LOAD_LIMIT_S}s", "--latency", f"--timeout={TIMEOUT_S}s"]
        self._command = ["wrk", "-t1", *options, daemon.endpoint.url]
        self._process: subprocess.Popen[str] | None = None
        self.active_s = 0.0
        self.requests = 0.0

    def turn(self, is_last: bool) -> None:
        """Load for one turn."""
        began = time.monotonic()
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
        else:
            self._process.send_signal(signal.SIGCONT)
        time.sleep(TURN_S)
        if is_last:
            # it ends within a tenth of a second, in which it loads
            self._process.send_signal(signal.SIGINT)
            text, _ = self._process.communicate(timeout=TIMEOUT_S)
            self.requests = parsed(text).requests
        else:
            self._process.send_signal(signal.SIGSTOP)
        self.active_s += time.monotonic() - began
        # for what is under way
        time.sleep(BETWEEN_TURNS_S)

    def end(self) -> None:
        """End it if it has not ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def measured(case: Case, kinds: Sequence[Kind], collector: str, seconds: float) -> list[Figures]:
    """Start a daemon of each kind, let them take turns, end them. seconds: of load for each."""
    with ExitStack() as stack:
        daemons = [start_daemon(stack, case, kind, collector) for kind in kinds]
        for daemon in daemons:
            run(case, daemon.endpoint, CONNECTIONS, WARM_S)
        loads = [Load(case, daemon) for daemon in daemons]
        for load in loads:
            stack.callback(load.end)
        time.sleep(REST_S)
        before = [daemon.cpu_us() for daemon in daemons]
        turns = max(2, round(seconds / TURN_S))
        for load, is_last in order_of_turns(loads, turns):
            load.turn(is_last)
        # what is noted is written a moment later
        time.sleep(REST_S)
        return [
            figures(load, [after - first for first, after in zip(used, load.daemon.cpu_us(), strict=True)])
            for load, used in zip(loads, before, strict=True)
        ]


def order_of_turns(loads: Sequence[Load], turns: int) -> Iterator[tuple[Load, bool]]:
    """Whose turn it is, and whether it is their last: in an order drawn anew each time, but never the same twice running, as who
    goes on has the processor's caches for itself.
    """
    rng, before = random.Random(SEED), None
    for number in range(turns):
        order = rng.sample(loads, len(loads))
        if order[0] is before and len(order) > 1:
            order.append(order.pop(0))
        for before in order:
            yield before, number == turns - 1


def figures(load: Load, used_us: Sequence[float]) -> Figures:
    """Of a load that has ended. used_us: by proxy and replica."""
    proxy, *replicas = (one / load.requests for one in used_us)
    return Figures(load.requests / load.active_s, proxy + sum(replicas), proxy)


def measured_often(case: Case, kinds: Sequence[Kind], daemons: int, seconds: float) -> Iterator[list[Figures]]:
    """As `measured`, with so many daemons of each kind one after the other, in another order each time."""
    with ExitStack() as stack:
        collector = start_collector(stack)
        for number in range(daemons):
            order = [(place + number) % len(kinds) for place in range(len(kinds))]
            found = measured(case, [kinds[place] for place in order], collector, seconds)
            by_place = dict(zip(order, found, strict=True))
            yield [by_place[place] for place in range(len(kinds))]
