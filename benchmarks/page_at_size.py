"""The live page and the status of a full host: `python -m benchmarks.page_at_size [--apps N] [--replicas N] [--seconds S]`.

The controller's own code shows a goal of 50 applications and 1,000 replicas that never were processes, all of which tell new
figures every 2 s. Shown are the time from the click to the first paint in a real Chromium, the time until its tables have every
deployment, and the CPU that the admin server takes for that one page, as a share of a core: the thread that serves it, alone.
Before that, and without Chromium nothing else: `GET /api/serve/applications/` in the shape of 2.5 and in today's, by turns over
one connection each, with 4 deployments in each application; medians, the 10th and 90th percentile of their ratio, and the CPU
time of the admin server for each, which hardly depends on what else the machine does.
"""

import argparse
import asyncio
import http.client
import random
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from servd.controller.shown.figures import FiguresDesk
from servd.controller.shown.status import Identity, instance_view
from servd.documents.control_plane import InstanceView
from servd.ground.clock import SystemClock
from servd.observability.figures import FiguresReport
from servd.rest.access import AccessRules
from tests.browser import CHROMIUM, a_browser
from tests.core.build import World, a_build, a_goal, an_app, report
from tests.wire.fake_plane import FakePlane, Server

TELL_EVERY_S = 2.0
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
TODAY, RATIO = "GET of today's shape, ms", "today's, times 2.5's"
AIMS = {"first paint, ms": 1000.0, "CPU, % of a core": 2.0, TODAY: 30.0, RATIO: 1.5}
ROUNDS, WARM_UP = 200, 20


@dataclass
class FullPlane(FakePlane):
    """Shows a world as the controller does."""

    world: World = field(default_factory=World)
    version: int = 1

    def view(self) -> InstanceView:
        identity = Identity(1, "a" * 32, "b" * 56, "c" * 56, "127.0.0.1")
        world = self.world
        return instance_view(world.goal, world.observed, world.settings, identity, version=self.version, now=world.now)

    async def changed(self, seen: int, timeout_s: float) -> int:
        """As often as figures change."""
        await asyncio.sleep(min(timeout_s, TELL_EVERY_S) if seen == self.version else 0)
        return self.version


def full_world(apps: int, replicas: int, *deployments: str) -> World:
    """Applications of these deployments each, all replicas RUNNING. replicas: in all."""
    names = [f"app{number:02d}" for number in range(apps)]
    world = World(a_goal(*(an_app(name) for name in names)))
    for name in names:
        each: dict[str, Any] = {one: {"num_replicas": replicas // apps // len(deployments)} for one in deployments}
        build = a_build(*deployments, **each)
        world.builds[name] = replace(build, route_prefix=f"/{name}")
    return world.run(limit=1000)


def tell(world: World, desk: FiguresDesk, rng: random.Random, turn: int) -> None:
    """Every replica has something new to say."""
    for replica in list(world.observed.replicas.values()):
        world.observed.apply(report(replica, ongoing=rng.randrange(8)), world.now)
        # what was counted never becomes less
        latencies = tuple(turn * (bucket % 5) for bucket in range(40))
        told = FiguresReport(
            replica.replica_id,
            requests=100 * turn,
            errors=turn,
            latencies=latencies,
            cpu_s=float(turn),
            cpu_share=rng.random(),
            memory_bytes=rng.randrange(10**8, 2 * 10**8),
            descriptors=30,
            threads=5,
        )
        desk.heard(replica, told)
    desk.tend()


def feed(plane: FullPlane, desk: FiguresDesk, over: threading.Event) -> None:
    """New figures every `TELL_EVERY_S` until it is over."""
    rng, turn = random.Random(3), 1
    while not over.wait(TELL_EVERY_S):
        plane.world.now = SystemClock().now()
        tell(plane.world, desk, rng, turn)
        plane.version += 1
        turn += 1


def cpu_s(thread: threading.Thread) -> float:
    """CPU time of a thread so far, seconds."""
    return int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]) / 1e9


def measured(apps: int, replicas: int, seconds: float, folder: Path) -> dict[str, float]:
    """The figures of one run."""
    world = full_world(apps, replicas, "Model")
    assert len(world.observed.replicas) == replicas // apps * apps
    world.now = SystemClock().now()
    plane = FullPlane(world=world)
    plane.figures = desk = FiguresDesk(world.observed, SystemClock())  # type: ignore[assignment]
    tell(world, desk, random.Random(1), 1)
    over = threading.Event()
    feeder = threading.Thread(target=feed, args=(plane, desk, over))
    with Server(plane, AccessRules("127.0.0.1"), folder).running() as server, a_browser(folder) as tab:
        began = time.monotonic()
        tab.go(f"{server.url}/")
        tab.wait(f"document.querySelectorAll('#apps table tbody tr').length >= {apps}", 60.0)
        complete_ms = 1000 * (time.monotonic() - began)
        paint_ms = float(tab.run(PAINT))
        feeder.start()
        time.sleep(TELL_EVERY_S)
        before, began = cpu_s(server._thread), time.monotonic()
        time.sleep(seconds)
        share = (cpu_s(server._thread) - before) / (time.monotonic() - began)
        over.set()
        feeder.join()
    return {"first paint, ms": paint_ms, "all tables, ms": complete_ms, "CPU, % of a core": 100 * share}


def answered(apps: int, folder: Path) -> dict[str, float]:
    """Times of both shapes of the status, milliseconds, and today's by that of 2.5."""
    plane = FullPlane(world=full_world(apps, 4 * apps, "Front", "Model", "Store", "Log"))
    took: dict[int, list[float]] = {}
    spent: dict[int, float] = {}
    with Server(plane, AccessRules("127.0.0.1"), folder).running() as server:
        lines = [http.client.HTTPConnection("127.0.0.1", port) for port in (server.port, server.today_port)]
        for _ in range(WARM_UP + ROUNDS):
            for line in lines:
                before, began = cpu_s(server._thread), time.perf_counter()
                line.request("GET", "/api/serve/applications/")
                answer = line.getresponse()
                body = answer.read()
                took.setdefault(line.port, []).append(1000 * (time.perf_counter() - began))
                spent[line.port] = spent.get(line.port, 0.0) + 1000 * (cpu_s(server._thread) - before)
                assert answer.status == 200, body
        seed, today = (took[line.port][WARM_UP:] for line in lines)
        for line in lines:
            line.close()
    ratios = statistics.quantiles([t / s for s, t in zip(seed, today, strict=True)], n=10)
    return {
        "GET of 2.5's shape, ms": statistics.median(seed),
        TODAY: statistics.median(today),
        RATIO: statistics.median(today) / statistics.median(seed),
        "ratio, 10th percentile": ratios[0],
        "ratio, 90th percentile": ratios[-1],
        "CPU for 2.5's shape, ms": spent[server.port] / (WARM_UP + ROUNDS),
        "CPU for today's, ms": spent[server.today_port] / (WARM_UP + ROUNDS),
    }


def shown(found: dict[str, float]) -> None:
    """Print figures."""
    for name, value in found.items():
        verdict = f"  aim {AIMS[name]:g}: {'reached' if value <= AIMS[name] else 'MISSED'}" if name in AIMS else ""
        print(f"{name:<24} {value:8.2f}{verdict}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--apps", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="servd-status-") as folder:
        answers = answered(options.apps, Path(folder))
    print(f"{options.apps} applications, {4 * options.apps} deployments and replicas, the status")
    shown(answers)
    if CHROMIUM is None:
        raise SystemExit("there is no Chromium here, which the page needs")
    with tempfile.TemporaryDirectory(prefix="servd-page-") as folder:
        found = measured(options.apps, options.replicas, options.seconds, Path(folder))
    print(f"{options.apps} applications, {options.replicas} replicas, one page")
    shown(found)


if __name__ == "__main__":
    main()
