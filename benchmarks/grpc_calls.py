"""Calls of gRPC beside a bare `grpc.aio` server and Ray Serve: `python -m benchmarks.grpc_calls [--rounds N] [--seconds S]`.

Unary calls that give their few bytes back, at 1, 32 and 128 in flight, and streams of 1,000 messages; the client is another
process, of Python too, on one channel. Where `h2load` is there, unary calls from it as well: that client costs next to nothing.
Shown are medians over interleaved rounds, and the least and greatest ratio of a round; machines differ, so compare ratios of
one run. Below it: the memory of a proxy that has no port of gRPC, and of one that has. Ray has an environment of its own, which
is made on first use; `--ray PYTHON` names another, `--ray ""` leaves it out.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from benchmarks.compare.peers import NotInstallableError, python_of

IN_FLIGHT = (1, 32, 128)
MESSAGES = 1000
MESSAGE = b"\x0a\x05hello"
"""A `google.protobuf.BytesValue`."""
BODY = b"\0\0\0\0\x07" + MESSAGE
AIMS = {
    "bare": {"unary, 32 in flight": 0.7, "messages of streams": 0.8},
    "ray": {"unary, 32 in flight": 10.0},
}
NAMES = {"bare": "bare grpc.aio", "ray": "Ray Serve 2.60"}
RAY = "ray[serve-grpc]==2.60.0"

SERVICE = """
import grpc
from google.protobuf.wrappers_pb2 import BytesValue

def add_EchoServicer_to_server(servicer, server):
    types = BytesValue.FromString, BytesValue.SerializeToString
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(servicer.Echo, *types),
        "Count": grpc.unary_stream_rpc_method_handler(servicer.Count, *types),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
"""
APPLICATION = f"""
from servd import deployment

@deployment(max_ongoing_requests=1000)
class Echo:
    async def Echo(self, message):
        return message

    async def Count(self, message):
        for _ in range({MESSAGES}):
            yield message

app = Echo.bind()
"""
# the same as Ray has it, which runs it from here
RAY_SERVER = """
import signal, sys
import ray
from ray import serve
from ray.serve.config import gRPCOptions
from echo import app

port, http, directory = sys.argv[1:]
ray.init(address="local", include_dashboard=False, _temp_dir=directory, logging_level="warning")
functions = ["service.add_EchoServicer_to_server"]
serve.start(
    http_options={"host": "127.0.0.1", "port": int(http)},
    grpc_options=gRPCOptions(port=int(port), grpc_servicer_functions=functions),
)
serve.run(app)
print("ready", flush=True)
signal.pause()
"""
BARE = f"""
import asyncio, sys
import grpc.aio
from service import add_EchoServicer_to_server

class Echo:
    async def Echo(self, message, context):
        return message

    async def Count(self, message, context):
        for _ in range({MESSAGES}):
            yield message

async def main():
    server = grpc.aio.server()
    add_EchoServicer_to_server(Echo(), server)
    server.add_insecure_port(f"127.0.0.1:{{sys.argv[1]}}")
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""
CLIENT = f"""
import asyncio, sys, time
import grpc.aio

MESSAGE = {MESSAGE!r}

async def main(port, kind, in_flight, seconds):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{{port}}") as channel:
        one, many = channel.unary_unary("/bench.Echo/Echo"), channel.unary_stream("/bench.Echo/Count")
        await one(MESSAGE, wait_for_ready=True)
        count, end = 0, time.perf_counter() + seconds

        async def calls():
            nonlocal count
            while time.perf_counter() < end:
                if kind == "unary":
                    assert await one(MESSAGE) == MESSAGE
                    count += 1
                else:
                    async for _ in many(MESSAGE):
                        count += 1

        began = time.perf_counter()
        await asyncio.gather(*(calls() for _ in range(in_flight)))
        print(count / (time.perf_counter() - began))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def bare(folder: Path) -> Iterator[int]:
    """A `grpc.aio` server; gives its port."""
    port = free_port()
    server = subprocess.Popen([sys.executable, str(folder / "bare.py"), str(port)])
    try:
        yield port
    finally:
        server.kill()
        server.wait()


def home_of(folder: Path, *, with_grpc: bool) -> Path:
    """The state directory of a daemon."""
    return folder / ("state" if with_grpc else "plain")


@contextmanager
def served(folder: Path, *, with_grpc: bool = True) -> Iterator[int]:
    """A daemon with one proxy and, with gRPC, one replica; gives its port for gRPC."""
    port, http, admin = free_port(), free_port(), free_port()
    command = [sys.executable, "-m", "servd"]
    where = ["--state-dir", str(home_of(folder, with_grpc=with_grpc))]
    ports = ["--http-port", str(http), "--admin-port", str(admin), "--dashboard-port", "0"]
    servicers = ["--grpc-port", str(port), "--grpc-servicer-functions", "service.add_EchoServicer_to_server"]
    servicers = servicers if with_grpc else []
    subprocess.run([*command, "start", "--detach", *where, *ports, *servicers], check=True, stdout=subprocess.DEVNULL)
    try:
        if not with_grpc:
            yield port
            return
        document = folder / "echo.yaml"
        document.write_text(f"import_path: echo:app\nruntime_env:\n  working_dir: {folder / 'code'}\n")
        subprocess.run([*command, "deploy", "--wait", *where, str(document)], check=True, stdout=subprocess.DEVNULL)
        yield port
    finally:
        subprocess.run([*command, "stop", *where], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def ray(python: str, folder: Path) -> Iterator[int]:
    """Ray Serve with one proxy and one replica; gives its port for gRPC."""
    port, http = free_port(), free_port()
    home = folder / "r"
    # a path that is too long for its sockets is refused; what it leaves there would be found by the next one
    shutil.rmtree(home, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(folder / "ray"), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [python, str(folder / "ray_server.py"), str(port), str(http), str(home)]
    with (folder / "ray.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if line == "ready\n":
                break
        else:
            raise RuntimeError(f"Ray Serve did not start: {(folder / 'ray.log').read_text()[-2000:]}")
        yield port
    finally:
        # it ends what it has started
        server.terminate()
        server.communicate(timeout=60)


def memory_of_proxy(folder: Path, *, with_grpc: bool) -> tuple[float, bool]:
    """Proportional set size in MB, and whether the library is loaded."""
    home = str(home_of(folder, with_grpc=with_grpc)).encode()
    with served(folder, with_grpc=with_grpc):
        for process in Path("/proc").glob("[0-9]*"):
            # some end meanwhile
            with suppress(OSError):
                title = (process / "cmdline").read_bytes()
                if title.startswith(b"servd: proxy") and home in title:
                    pss = re.search(r"^Pss: +(\d+)", (process / "smaps_rollup").read_text(), re.MULTILINE)
                    assert pss is not None
                    return int(pss[1]) / 1000, "cygrpc" in (process / "maps").read_text()
    raise RuntimeError("there is no proxy")


def with_python(folder: Path, port: int, kind: str, in_flight: int, seconds: float) -> float:
    """Calls or messages per second of the Python client."""
    arguments = [str(folder / "client.py"), str(port), kind, str(in_flight), str(seconds)]
    told = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    return float(told.stdout)


def with_h2load(folder: Path, port: int, in_flight: int, seconds: float) -> float:
    """Calls per second of h2load, on one connection."""
    told = subprocess.run(
        ["h2load", "-c", "1", "-m", str(in_flight), "-D", f"{seconds:.0f}", "-d", str(folder / "body"),
         "-H", "content-type: application/grpc", "-H", "te: trailers", f"http://127.0.0.1:{port}/bench.Echo/Echo"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = re.search(r"([\d.]+) req/s", told.stdout)
    assert found is not None, told.stdout
    return float(found[1])


def measure(folder: Path, port: int, seconds: float) -> dict[str, float]:
    """Every figure of one system, once."""
    found = {f"unary, {number} in flight": with_python(folder, port, "unary", number, seconds) for number in IN_FLIGHT}
    found["messages of streams"] = with_python(folder, port, "stream", 1, seconds)
    if shutil.which("h2load"):
        for number in IN_FLIGHT:
            found[f"unary, {number} in flight, h2load"] = with_h2load(folder, port, number, seconds)
    return found


def python_with_ray(given: str | None) -> str:
    """The interpreter that has it; "" and a line on stderr where there is none."""
    if given is not None:
        return given
    try:
        return python_of("ray-grpc", requirements=(RAY, "uvloop"))
    except NotInstallableError as error:
        print(f"Ray Serve is left out: {error}", file=sys.stderr)
        return ""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement; whole ones for h2load")
    parser.add_argument("--ray", metavar="PYTHON", help="interpreter that has Ray Serve")
    parser.add_argument("--json", type=Path, help="where to leave all samples")
    options = parser.parse_args()
    with_ray = python_with_ray(options.ray)
    # Ray's sockets lie in it, whose paths may not be long
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        put_files(folder)
        systems: dict[str, Callable[[], AbstractContextManager[int]]] = {
            "bare": lambda: bare(folder),
            "servd": lambda: served(folder),
        }
        if with_ray:
            systems["ray"] = lambda: ray(with_ray, folder)
        samples: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
        for number in range(options.rounds):
            for system, server in systems.items():
                print(
                    f"round {number + 1} of {options.rounds}: {NAMES.get(system, system)}", file=sys.stderr, flush=True
                )
                with server() as port:
                    samples[system].append(measure(folder, port, options.seconds))
        memory = {with_grpc: memory_of_proxy(folder, with_grpc=with_grpc) for with_grpc in (False, True)}
    show(samples)
    for with_grpc, (mb, is_loaded) in memory.items():
        which = "with a port of gRPC" if with_grpc else "without a port of gRPC"
        print(f"memory of a proxy {which}: {mb:.1f} MB, grpc {'loaded' if is_loaded else 'not loaded'}")
    if options.json:
        options.json.write_text(json.dumps({"cores": os.cpu_count(), "samples": samples}, indent=1))


def put_files(folder: Path) -> None:
    """The programs of all systems and the client."""
    of_ray = APPLICATION.replace("from servd import", "from ray.serve import")
    for name, text in {
        "code/service.py": SERVICE,
        "code/echo.py": APPLICATION,
        "ray/service.py": SERVICE,
        "ray/echo.py": of_ray,
        "service.py": SERVICE,
        "bare.py": BARE,
        "client.py": CLIENT,
        "ray_server.py": RAY_SERVER,
    }.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (folder / "body").write_bytes(BODY)


def show(samples: dict[str, list[dict[str, float]]]) -> None:
    """The table: medians per second, and for each peer the ratio with the least and greatest of a round."""
    peers = [system for system in samples if system != "servd"]
    head = [f"per second, {os.cpu_count()} cores", "servd"]
    for peer in peers:
        head += [NAMES[peer], "servd / it", "aim"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for name in samples["servd"][0]:
        middle = {system: statistics.median(found[name] for found in rounds) for system, rounds in samples.items()}
        cells = [name, f"{middle['servd']:,.0f}"]
        for peer in peers:
            pairs = zip(samples["servd"], samples[peer], strict=True)
            ratios = [ours[name] / its[name] for ours, its in pairs]
            aim = AIMS[peer].get(name)
            cells += [
                f"{middle[peer]:,.0f}",
                f"{middle['servd'] / middle[peer]:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                "" if aim is None else f"{aim:g}",
            ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
