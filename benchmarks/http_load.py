"""No-op GETs side by side: `python -m benchmarks.http_load [--rounds N] [--seconds S] [--connections 1,32,128] [--json FILE]`.

Compared in one run, in interleaved rounds: the bare pipeline of `limit/` (no features), bare uvicorn with a Starlette
and a FastAPI application, and servd with the same handlers. Shown are medians and the range; machines differ, so only
ratios of one run count.
"""

import argparse
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LIMIT_DIR = Path(__file__).parent / "limit"
BIN_DIR = Path(sys.executable).parent
START_LIMIT_S = 60.0
WARM_UP_S = 1
CONFIG_NAME = "load.yaml"

HANDLERS = """
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

fastapi_app = FastAPI()


@fastapi_app.get("/")
async def root() -> str:
    return "hello"


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


starlette_app = Starlette(routes=[Route("/", hello)])
"""

DEPLOYMENTS = """
import handlers
from servd import deployment, ingress


@deployment(max_concurrent_queries=1000)
class Plain:
    async def __call__(self, request):
        return b"hello"


@deployment(max_concurrent_queries=1000)
@ingress(handlers.fastapi_app)
class Fast:
    pass


@deployment(max_concurrent_queries=1000)
@ingress(handlers.starlette_app)
class Star:
    pass


plain = Plain.bind()
fast = Fast.bind()
star = Star.bind()
"""


@dataclass(frozen=True)
class Target:
    """What is loaded. compared_with: the target that its ratio refers to."""

    name: str
    url: str
    compared_with: str


@dataclass(frozen=True)
class Sample:
    """One run of wrk."""

    requests_per_s: float
    p50_ms: float


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, what: str) -> None:
    """Return when the URL answers 200 with the handler's word.

    Raises:
        SystemExit: it does not in time.
    """
    host, _, path = url.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    request = f"GET /{path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end:
        try:
            with socket.create_connection((name, int(port)), 1) as connection:
                connection.settimeout(1)
                connection.sendall(request)
                answer = connection.recv(65536)
            if answer.startswith(b"HTTP/1.1 200") and b"hello" in answer:
                return
        except OSError:
            pass
        time.sleep(0.05)
    sys.exit(f"{what} does not answer at {url}")


@contextmanager
def running(command: list[str], cwd: Path, log: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """A process for as long as the block runs."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, stdout=output, stderr=output, env=environment or dict(os.environ), start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_limit(stack: ExitStack, directory: Path, mode: str) -> str:
    """Start the bare pipeline; gives its URL."""
    port = free_port()
    address = f"ipc://{directory}/{mode}.sock"
    log = directory / f"limit-{mode}.log"
    stack.enter_context(running([sys.executable, "replica_h.py", address, mode], LIMIT_DIR, log))
    stack.enter_context(running([sys.executable, "proxy_raw.py", str(port), address], LIMIT_DIR, log))
    return f"http://127.0.0.1:{port}/"


def start_uvicorn(stack: ExitStack, directory: Path, app: str) -> str:
    """Start bare uvicorn; gives its URL."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"handlers:{app}", "--port", str(port), "--no-access-log"]
    stack.enter_context(running([*command, "--log-level", "warning"], directory, directory / f"{app}.log"))
    return f"http://127.0.0.1:{port}/"


def start_servd(stack: ExitStack, directory: Path) -> str:
    """Start servd and deploy all handlers; gives the URL of its data plane."""
    port, admin_port = free_port(), free_port()
    state_dir = directory / "state"
    environment = {**os.environ, "TMPDIR": str(directory), "SERVD_STATE_DIR": str(state_dir)}
    environment["SERVD_ADDRESS"] = f"http://127.0.0.1:{admin_port}"
    environment.pop("XDG_RUNTIME_DIR", None)
    document = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {"name": name, "import_path": f"deployments:{name}", "route_prefix": f"/{name}"}
            for name in ("plain", "fast", "star")
        ],
    }
    (directory / CONFIG_NAME).write_text(json.dumps(document))
    servd = str(BIN_DIR / "servd")
    options = ["--http-port", str(port), "--admin-port", str(admin_port), "--state-dir", str(state_dir)]
    stack.enter_context(running([servd, "start", *options], directory, directory / "servd.log", environment))
    wait_for_port(admin_port)
    deploy = subprocess.run(
        [servd, "deploy", CONFIG_NAME, "--wait"], cwd=directory, env=environment, capture_output=True, text=True
    )
    if deploy.returncode:
        sys.exit(
            f"servd deploy failed:\n{deploy.stdout}{deploy.stderr}\n{(directory / 'servd.log').read_text()[-4000:]}"
        )
    return f"http://127.0.0.1:{port}"


def wait_for_port(port: int) -> None:
    """Return when something listens there.

    Raises:
        SystemExit: nothing does in time.
    """
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"nothing listens on port {port}")


def load(url: str, connections: int, seconds: int) -> Sample:
    """One run of wrk.

    Raises:
        SystemExit: a response was no success.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        sys.exit(f"{url} did not answer every request well:\n{text}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    latency = re.search(r"50%\s+([\d.]+)(us|ms|s)", text)
    assert rate is not None, text
    assert latency is not None, text
    return Sample(float(rate[1]), float(latency[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[latency[2]])


def measure(targets: list[Target], connections: list[int], rounds: int, seconds: int) -> list[dict[str, Any]]:
    """All targets at all numbers of connections, in interleaved rounds; one entry per pair."""
    for target in targets:
        wait_for(target.url, target.name)
        load(target.url, 32, WARM_UP_S)
    samples: dict[tuple[int, str], list[Sample]] = {}
    for number in range(rounds):
        for count in connections:
            # another order each round: nobody always follows the same neighbour
            for target in targets[number % len(targets) :] + targets[: number % len(targets)]:
                samples.setdefault((count, target.name), []).append(load(target.url, count, seconds))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return [entry(target, count, samples) for count in connections for target in targets]


def entry(target: Target, count: int, samples: dict[tuple[int, str], list[Sample]]) -> dict[str, Any]:
    """Figures of one target at one number of connections."""
    rates = [sample.requests_per_s for sample in samples[count, target.name]]
    base = [sample.requests_per_s for sample in samples[count, target.compared_with]]
    return {
        "connections": count,
        "target": target.name,
        "requests_per_s": round(statistics.median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
        "p50_ms": round(statistics.median(sample.p50_ms for sample in samples[count, target.name]), 3),
        "compared_with": target.compared_with,
        "ratio": round(statistics.median(mine / other for mine, other in zip(rates, base, strict=True)), 3),
    }


def print_table(entries: list[dict[str, Any]]) -> None:
    """The figures as text."""
    print(f"{'connections':>11}  {'target':<20} {'requests/s':>10} {'range':>15} {'p50 ms':>8}  ratio")
    for found in entries:
        spread = f"{found['lowest']}-{found['highest']}"
        shown = f"{found['ratio']:.2f} of {found['compared_with']}"
        print(
            f"{found['connections']:>11}  {found['target']:<20} {found['requests_per_s']:>10} {spread:>15} "
            f"{found['p50_ms']:>8.3f}  {shown}"
        )


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)  # wrk takes whole seconds
    parser.add_argument("--connections", default="1,32,128")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: install it with `apt-get install wrk` (Debian, Ubuntu)")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="servd-load-")))
        (directory / "handlers.py").write_text(HANDLERS)
        (directory / "deployments.py").write_text(DEPLOYMENTS)
        data_plane = start_servd(stack, directory)
        targets = [
            Target("limit", start_limit(stack, directory, "plain"), "limit"),
            Target("servd", f"{data_plane}/plain", "limit"),
            Target("uvicorn Starlette", start_uvicorn(stack, directory, "starlette_app"), "uvicorn Starlette"),
            Target("servd Starlette", f"{data_plane}/star/", "uvicorn Starlette"),
            Target("limit FastAPI", start_limit(stack, directory, "fastapi"), "limit FastAPI"),
            Target("uvicorn FastAPI", start_uvicorn(stack, directory, "fastapi_app"), "uvicorn FastAPI"),
            Target("servd FastAPI", f"{data_plane}/fast/", "uvicorn FastAPI"),
        ]
        entries = measure(
            targets, [int(count) for count in options.connections.split(",")], options.rounds, options.seconds
        )
    print_table(entries)
    if options.json is not None:
        document = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "load": entries}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
