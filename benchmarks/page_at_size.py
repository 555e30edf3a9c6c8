"""The live page of a full host: `python -m benchmarks.page_at_size [--apps N] [--replicas N] [--seconds S]`. Needs Chromium.

The controller's own code shows a goal of 50 applications and 1,000 replicas that never were processes, all of which tell new
figures every 2 s. Shown are the time from the click to the first paint in a real Chromium, the time until its tables have every
deployment, and the CPU that the admin server takes for that one page, as a share of a core: the thread that serves it, alone.
"""

import argparse
import asyncio
import random
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

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
AIMS = {"first paint, ms": 1000.0, "CPU, % of a core": 2.0}


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


def full_world(apps: int, replicas: int) -> World:
    """Applications of one deployment each, all replicas RUNNING."""
    names = [f"app{number:02d}" for number in range(apps)]
    world = World(a_goal(*(an_app(name) for name in names)))
    for name in names:
        build = a_build("Model", Model={"num_replicas": replicas // apps})
        world.builds[name] = replace(build, route_prefix=f"/{name}")
    return world.run(limit=1000)


def tell(world: World, desk: FiguresDesk, rng: random.Random, turn: int) -> None:
    """Every replica has something new to say."""
    for replica in list(world.observed.replicas.values()):
        world.observed.apply(report(replica, ongoing=rng.randrange(8)), world.now)
        latencies = tuple(rng.randrange(turn + 1) for _ in range(40))
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
    world = full_world(apps, replicas)
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--apps", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    if CHROMIUM is None:
        raise SystemExit("there is no Chromium here")
    with tempfile.TemporaryDirectory(prefix="servd-page-") as folder:
        found = measured(options.apps, options.replicas, options.seconds, Path(folder))
    print(f"{options.apps} applications, {options.replicas} replicas, one page")
    for name, value in found.items():
        verdict = f"  aim {AIMS[name]:g}: {'reached' if value <= AIMS[name] else 'MISSED'}" if name in AIMS else ""
        print(f"{name:<18} {value:8.1f}{verdict}")


if __name__ == "__main__":
    main()
