"""Calls of gRPC beside a bare `grpc.aio` server: `python -m benchmarks.grpc_calls [--rounds N] [--seconds S] [--json FILE]`.

Unary calls that give their few bytes back, at 1, 32 and 128 in flight, and streams of 1,000 messages; the client is another
process, of Python too, on one channel. Where `h2load` is there, unary calls from it as well: that client costs next to nothing.
Shown are medians over interleaved rounds; machines differ, so compare ratios of one run.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IN_FLIGHT = (1, 32, 128)
MESSAGES = 1000
BODY = b"\0\0\0\0\x05hello"
AIMS = {"unary, 32 in flight": 0.7, "messages of streams": 0.8}

SERVICE = """
import grpc

def add_EchoServicer_to_server(servicer, server):
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(servicer.Echo, bytes, bytes),
        "Count": grpc.unary_stream_rpc_method_handler(servicer.Count, bytes, bytes),
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
CLIENT = """
import asyncio, sys, time
import grpc.aio

async def main(port, kind, in_flight, seconds):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        one, many = channel.unary_unary("/bench.Echo/Echo"), channel.unary_stream("/bench.Echo/Count")
        await one(b"hello", wait_for_ready=True)
        count, end = 0, time.perf_counter() + seconds

        async def calls():
            nonlocal count
            while time.perf_counter() < end:
                if kind == "unary":
                    await one(b"hello")
                    count += 1
                else:
                    async for _ in many(b"hello"):
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


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """A daemon with one proxy and one replica; gives its port for gRPC."""
    port, http, admin = free_port(), free_port(), free_port()
    command = [sys.executable, "-m", "servd"]
    where = ["--state-dir", str(folder / "state")]
    ports = ["--http-port", str(http), "--admin-port", str(admin), "--dashboard-port", "0", "--grpc-port", str(port)]
    servicers = ["--grpc-servicer-functions", "service.add_EchoServicer_to_server"]
    subprocess.run([*command, "start", "--detach", *where, *ports, *servicers], check=True, stdout=subprocess.DEVNULL)
    try:
        document = folder / "echo.yaml"
        document.write_text(f"import_path: echo:app\nruntime_env:\n  working_dir: {folder / 'code'}\n")
        subprocess.run([*command, "deploy", "--wait", *where, str(document)], check=True, stdout=subprocess.DEVNULL)
        yield port
    finally:
        subprocess.run([*command, "stop", *where], check=True, stdout=subprocess.DEVNULL)


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


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement; whole ones for h2load")
    parser.add_argument("--json", type=Path, help="where to leave all samples")
    options = parser.parse_args()
    samples: dict[str, list[dict[str, float]]] = {"bare": [], "servd": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code = folder / "code"
        code.mkdir()
        for path, text in {"service": SERVICE, "echo": APPLICATION}.items():
            (code / f"{path}.py").write_text(text)
        for path, text in {"service": SERVICE, "bare": BARE, "client": CLIENT}.items():
            (folder / f"{path}.py").write_text(text)
        (folder / "body").write_bytes(BODY)
        for _ in range(options.rounds):
            for system, server in (("bare", bare), ("servd", served)):
                with server(folder) as port:
                    samples[system].append(measure(folder, port, options.seconds))
    show(samples)
    if options.json:
        options.json.write_text(json.dumps({"cores": os.cpu_count(), "samples": samples}, indent=1))


def show(samples: dict[str, list[dict[str, float]]]) -> None:
    """The table: medians per second, and their ratio."""
    print(
        f"| per second, {os.cpu_count()} cores | bare grpc.aio | servd | ratio | aim |\n| --- | --- | --- | --- | --- |"
    )
    for name in samples["bare"][0]:
        middle: dict[str, Any] = {
            system: statistics.median(found[name] for found in rounds) for system, rounds in samples.items()
        }
        ratio = middle["servd"] / middle["bare"]
        aim = f"{AIMS[name]:.1f}" if name in AIMS else ""
        print(f"| {name} | {middle['bare']:,.0f} | {middle['servd']:,.0f} | {ratio:.2f} | {aim} |")


if __name__ == "__main__":
    main()
