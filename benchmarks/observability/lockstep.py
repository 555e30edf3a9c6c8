"""What the code itself costs: proxy and replica on one loop in one process, once per mode, `Server-Timing` on top of the others.

32 connections ask in lockstep, and the CPU time per request is compared, the client's part left out. Shows small differences
that drown in whole daemons, and shows them too large: nothing else stands beside them, no load, no kernel's work for clients.
"""

import asyncio
import gc
import random
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import uvloop

from servd import deployment
from servd.calls.caller import Caller
from servd.context import ReplicaContext
from servd.observability import logs
from servd.observability.access_log import AccessLog, place_of
from servd.observability.journal import Journal
from servd.observability.log_file import LogFile
from servd.proxy.forwarder import Forwarder
from servd.proxy.http1 import HttpConnection
from servd.proxy.limits import Limits
from servd.proxy.listener import Listener
from servd.replica import exchange
from servd.replica.grpc.service import GrpcService
from servd.replica.notes import noter
from servd.replica.server import ReplicaServer
from servd.replica.user_callable import UserCallable
from servd.wire.messages import DeploymentTargets, Endpoint, Route, Routing

CONNECTIONS = 32
BATCHES = 16
REQUEST = b"GET / HTTP/1.1\r\nhost: 127.0.0.1:8000\r\nuser-agent: bench\r\naccept: */*\r\n\r\n"
MODES = ("off", "logs and metrics", "and Server-Timing")


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
        for component, place in (("http_proxy", HttpConnection.on_response), ("replica", noter)):
            file = LogFile(directory / f"{component}-{mode}.log")
            journal = Journal(loop, AccessLog(file, component, component, place_of(place)), counts=is_on)
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


def measured(directory: Path, rounds: int) -> list[dict[str, Any]]:
    """Figures of every mode. directory: an empty one. Open connections end with the process."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return summary(runner.run(measure(directory, rounds)))
