"""Calls between two replicas: `python -m benchmarks.handles [--rounds N] [--seconds S] [--json FILE]`.

One replica calls another through a handle: single values at 1, 16 and 64 in flight, a 10 MB numpy array there and back (beside a
bare ZeroMQ pair in the same rounds), a stream of small items, and a batch handler at 256 callers. Shown are medians and the
range over interleaved rounds; machines differ, so compare ratios of one run. CPU time is that of all threads of a process, so
it holds on a busy machine as well.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

import servd
from servd.handle import DeploymentHandle

IN_FLIGHT = (1, 16, 64)
BATCH_CALLERS = 256
ARRAY_BYTES = 10_000_000
ARRAYS = 20
CHUNKS = 20_000
BARE_ECHO = """
import sys, zmq
socket = zmq.Context(1).socket(zmq.ROUTER)
socket.bind(sys.argv[1])
print(flush=True)
while True:
    identity, frame = socket.recv_multipart()
    socket.send(identity, zmq.SNDMORE)
    socket.send(frame, copy=False)
"""
AIMS = {
    "calls/s at 64 in flight": (60_000, "at least"),
    "p50 ms at 1 in flight": (0.25, "at most"),
    "array / bare link": (1.2, "at most"),
    "stream items/s": (100_000, "at least"),
}


@servd.deployment(max_ongoing_requests=1000)
class Echo:
    """The called one."""

    async def echo(self, value: Any) -> Any:
        """What it got."""
        return value

    async def cpu_s(self) -> float:
        """CPU seconds of this process so far."""
        return time.process_time()

    async def items(self, count: int) -> Any:
        """A stream of small strings."""
        for _ in range(count):
            yield "token "

    @servd.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def batched(self, values: list[int]) -> list[int]:
        """Size of the batch that each was in."""
        return [len(values)] * len(values)


@servd.deployment(max_ongoing_requests=1000)
class Bench:
    """The calling one. Every method gives the figures of one round."""

    def __init__(self, other: DeploymentHandle) -> None:
        self.other = other

    async def calls(self, in_flight: int, seconds: float) -> dict[str, float]:
        """Calls per second and, of one in flight, latencies."""
        call = self.other.echo.remote
        now = time.perf_counter
        end = now() + seconds
        taken: list[float] = []

        async def work() -> None:
            while (began := now()) < end:
                await call(1)
                taken.append(now() - began)

        cpu_there, cpu_here = await self.other.cpu_s.remote(), time.process_time()
        began = now()
        await asyncio.gather(*(work() for _ in range(in_flight)))
        rate = len(taken) / (now() - began)
        cpu_here = time.process_time() - cpu_here
        cpu_there = await self.other.cpu_s.remote() - cpu_there
        taken.sort()
        return {
            "CPU us per call, calling": 1e6 * cpu_here / len(taken),
            "CPU us per call, called": 1e6 * cpu_there / len(taken),
            "calls/s": rate,
            "p50 ms": 1000 * taken[len(taken) // 2],
            "p99 ms": 1000 * taken[len(taken) * 99 // 100],
        }

    async def array(self, count: int) -> float:
        """Milliseconds of one array there and back, the median."""
        array = np.arange(ARRAY_BYTES // 8, dtype=np.int64)
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            back = await self.other.echo.remote(array)
            taken.append(time.perf_counter() - began)
            assert back[-1] == array[-1]
        return 1000 * statistics.median(taken)

    async def bare(self, address: str, count: int) -> float:
        """The same over two sockets and nothing else."""
        array = np.arange(ARRAY_BYTES // 8, dtype=np.int64)
        socket = zmq.Context.instance().socket(zmq.DEALER)
        socket.connect(address)
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            socket.send(memoryview(array))
            back = np.frombuffer(socket.recv(), np.int64)
            taken.append(time.perf_counter() - began)
            assert back[-1] == array[-1]
        socket.close(0)
        return 1000 * statistics.median(taken)

    async def stream(self, count: int) -> float:
        """Items per second."""
        began = time.perf_counter()
        seen = 0
        async for _ in self.other.options(stream=True).items.remote(count):
            seen += 1
        assert seen == count
        return count / (time.perf_counter() - began)

    async def batches(self, callers: int, seconds: float) -> dict[str, float]:
        """Calls per second and mean size of their batches."""
        end = time.perf_counter() + seconds
        sizes: list[int] = []

        async def work() -> None:
            while time.perf_counter() < end:
                sizes.append(await self.other.batched.remote(1))

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(callers)))
        return {"calls/s": len(sizes) / (time.perf_counter() - began), "mean size": statistics.mean(sizes)}


def one_round(bench: Any, address: str, seconds: float) -> dict[str, float]:
    """Figures by name."""
    figures: dict[str, float] = {}
    for in_flight in IN_FLIGHT:
        for name, value in bench.calls.remote(in_flight, seconds).result().items():
            figures[f"{name} at {in_flight} in flight"] = value
    figures["10 MB array, ms"] = bench.array.remote(ARRAYS).result()
    figures["10 MB bare link, ms"] = bench.bare.remote(address, ARRAYS).result()
    figures["array / bare link"] = figures["10 MB array, ms"] / figures["10 MB bare link, ms"]
    figures["stream items/s"] = bench.stream.remote(CHUNKS).result()
    batches = bench.batches.remote(BATCH_CALLERS, seconds).result()
    figures[f"batched calls/s at {BATCH_CALLERS} callers"] = batches["calls/s"]
    figures["mean batch"] = batches["mean size"]
    return figures


def measured(rounds: int, seconds: float) -> list[dict[str, float]]:
    """One dict of figures per round, on a daemon of its own."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["SERVD_STATE_DIR"] = str(Path(directory, "state"))
        servd.start(http_options={"port": 0, "location": "NoServer"})
        bench = servd.run(Bench.bind(Echo.bind()), route_prefix=None)
        address = f"ipc://{directory}/bare"
        echo = subprocess.Popen([sys.executable, "-c", BARE_ECHO, address], stdout=subprocess.PIPE)
        try:
            assert echo.stdout is not None
            echo.stdout.readline()
            one_round(bench, address, min(seconds, 0.5))
            return [one_round(bench, address, seconds) for _ in range(rounds)]
        finally:
            echo.kill()
            echo.communicate()
            servd.shutdown()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each part of a round")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    rounds = measured(given.rounds, given.seconds)
    print(f"{'':40} {'median':>12} {'lowest':>12} {'highest':>12}   aim")
    for name in rounds[0]:
        values = [figures[name] for figures in rounds]
        aim = "{1} {0:,}".format(*AIMS[name]) if name in AIMS else ""
        print(f"{name:40} {statistics.median(values):12,.3f} {min(values):12,.3f} {max(values):12,.3f}   {aim}")
    if given.json is not None:
        about = {"python": platform.python_version(), "cpus": os.cpu_count(), "rounds": rounds}
        given.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
