"""Faults and changes under load, each as often as asked for; what they may cost is said in `allowed`."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from servd.ground.clock import SystemClock, block_for
from tests.faults.outcome import Outcome
from tests.faults.stage import Stage
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in, titles

HOLD_S = 0.02
PATIENT_REPLICAS = 7
"""So many may die 20 times within a minute before the next start waits; how long that waits is not measured here."""


@contextmanager
def a_stage(directory: Path, *, replicas: int, proxies: int = 1, is_graph: bool = False) -> Iterator[Stage]:
    """A daemon that serves the application with so many replicas."""
    with a_daemon(settings_in(directory, proxies=proxies)) as daemon:
        stage = Stage(daemon, directory, is_graph=is_graph)
        stage.deploy(replicas=replicas)
        yield stage


def under_load(stage: Stage, times: int, once: Callable[[int], object], path: str = "/", **options: Any) -> Outcome:
    """Do `once` so many times, with its number, under load; no request may fail. options: of the load."""
    clock = SystemClock()
    began = clock.now()
    load = stage.load(path, **options)
    try:
        for number in range(1, times + 1):
            once(number)
    except BaseException:
        load.kill()
        raise
    counts = load.stop()
    return Outcome(
        times,
        counts,
        clock.now() - began,
        unexpected=counts.failures,
        normal_after_s=stage.slowest_recovery_s,
        errors=stage.daemon.errors,
    )


def rolling_updates(directory: Path, times: int) -> Outcome:
    """A new code version, again and again."""
    with a_stage(directory, replicas=3) as stage:
        return under_load(stage, times, lambda number: stage.deploy(version=number))


def updates_of_one_replica(directory: Path, times: int) -> Outcome:
    """A new code version of a deployment of one replica."""
    with a_stage(directory, replicas=1) as stage:
        return under_load(stage, times, lambda number: stage.deploy(version=number))


def updates_while_busy(directory: Path, times: int) -> Outcome:
    """A new code version while handlers take their time: drains have something to wait for."""
    with a_stage(directory, replicas=3) as stage:
        path = f"/?hold={HOLD_S}"
        return under_load(stage, times, lambda number: stage.deploy(version=number), path)


def updates_of_a_graph(directory: Path, times: int) -> Outcome:
    """A new code version of two deployments, one of which calls the other by its handle, and another count."""
    with a_stage(directory, replicas=2, is_graph=True) as stage:
        return under_load(
            stage,
            times,
            lambda number: stage.deploy(version=number, replicas=2 + number % 3),
        )


def reconfigures(directory: Path, times: int) -> Outcome:
    """A new `user_config` in place; every process stays."""
    with a_stage(directory, replicas=3) as stage:
        before = sorted(stage.daemon.pids("replica"))
        outcome = under_load(stage, times, lambda number: stage.deploy(colour=number))
        if sorted(stage.daemon.pids("replica")) != before:
            outcome.notes.append("a replica was replaced")
        if outcome.is_good and stage.daemon.get()[1].split()[3] != str(times):
            outcome.notes.append("the last user_config is not in effect")
        return outcome


def scale_changes(directory: Path, times: int) -> Outcome:
    """Up to four replicas and down to one."""
    with a_stage(directory, replicas=1) as stage:

        def up_and_down(_: int) -> None:
            stage.deploy(replicas=4)
            stage.deploy(replicas=1)

        return under_load(stage, times, up_and_down)


def controller_kills(directory: Path, times: int) -> Outcome:
    """`kill -9` of the controller; every other process stays."""
    with a_stage(directory, replicas=2, proxies=2) as stage:
        before = _data_plane(stage)
        outcome = under_load(stage, times, lambda _: stage.kill_controller())
        if _data_plane(stage) != before:
            outcome.notes.append(f"processes were {before}, are {_data_plane(stage)}")
        return outcome


def _data_plane(stage: Stage) -> list[int]:
    pids = stage.daemon.pids
    return sorted(pids("replica") + pids("proxy") + pids("fork server"))


def controller_kills_in_updates(directory: Path, times: int) -> Outcome:
    """`kill -9` of the controller at any moment of a rolling update: also between an intent and its effect."""
    rng = random.Random(times)
    with a_stage(directory, replicas=3) as stage:

        def update_and_kill(number: int) -> None:
            old = stage.controller()
            stage.put(version=number, replicas=rng.choice([2, 3, 4]))
            block_for(rng.uniform(0.0, 1.0))
            stage.kill(old)
            eventually(lambda: stage.says(lambda status: status["controller_info"]["pid"] != old))
            stage.wait()

        outcome = under_load(stage, times, update_and_kill)
        left = len(stage.daemon.pids("replica")), len(stage.daemon.pids("fork server"))
        if left != (stage.replicas, 1):
            outcome.notes.append(f"strays: {left} replicas and fork servers, wanted {(stage.replicas, 1)}")
        return outcome


def fork_server_kills(directory: Path, times: int) -> Outcome:
    """`kill -9` of a fork server that serves; its replicas go on, and its successor makes more of them."""
    lost: set[int] = set()
    with a_stage(directory, replicas=2) as stage:

        def kill(_: int) -> None:
            (pid,) = stage.daemon.pids("fork server")
            before = set(stage.daemon.pids("replica"))
            stage.kill_and_replace("fork server", pid)
            lost.update(before - set(stage.daemon.pids("replica")))
            # one that is killed again and again before it is ready is a start that fails, and tried ever more seldom
            stage.deploy(replicas=3)
            # which of them goes is the idlest, not always the newest
            stage.deploy(replicas=2)

        outcome = under_load(stage, times, kill)
        if lost:
            outcome.notes.append(f"replicas {sorted(lost)} went with their fork server")
        return outcome


def fork_server_kills_in_updates(directory: Path, times: int) -> Outcome:
    """`kill -9` of a fork server at any moment of a rolling update: while it imports, while it forks."""
    rng = random.Random(times)
    with a_stage(directory, replicas=3) as stage:

        def update_and_kill(number: int) -> None:
            stage.put(version=number, replicas=rng.choice([2, 3, 4]))
            block_for(rng.uniform(0.0, 1.0))
            # a very young one has no title yet
            stage.kill(rng.choice(eventually(lambda: stage.daemon.pids("fork server"))))
            stage.wait()

        outcome = under_load(stage, times, update_and_kill)
        eventually(lambda: len(stage.daemon.pids("fork server")) == 1)
        return outcome


def idle_replica_kills(directory: Path, times: int) -> Outcome:
    """`kill -9` of a replica whose reported count is 0, among seven.

    POSTs are few, because a report is a moment old: one that the victim has begun just now must fail, since it may not run twice.
    """
    with a_stage(directory, replicas=PATIENT_REPLICAS) as stage:
        outcome = under_load(
            stage,
            times,
            lambda _: stage.kill_and_replace("replica", stage.idle()),
            post_pause_s=0.1,
        )
        return _without_begun_posts(outcome, stage)


def busy_replica_kills(directory: Path, times: int) -> Outcome:
    """`kill -9` of busy replicas: no GET fails; a POST fails with 502 only, and only after a handler had begun it."""
    with a_stage(directory, replicas=PATIENT_REPLICAS) as stage:
        outcome = under_load(
            stage,
            times,
            lambda _: stage.kill_and_replace("replica", stage.busy()),
            f"/?hold={HOLD_S}",
            keep=8,
        )
        return _without_begun_posts(outcome, stage)


def _without_begun_posts(outcome: Outcome, stage: Stage) -> Outcome:
    marks = stage.begun()
    begun = set(marks)
    outcome.judge(begun, at_the_border=max(1, outcome.times // 10))
    if len(begun) < len(marks):
        outcome.notes.append(f"{len(marks) - len(begun)} POSTs ran twice")
    return outcome


def proxy_kills(directory: Path, times: int) -> Outcome:
    """`kill -9` of one of two proxies: only requests on its own connections fail."""
    with a_stage(directory, replicas=2, proxies=2) as stage:
        own: set[int] = set()

        def kill(number: int) -> None:
            proxies = sorted(stage.daemon.pids("proxy"))
            victim = proxies[number % len(proxies)]
            own.update(stage.ports_of(victim))
            stage.kill_and_replace("proxy", victim)

        outcome = under_load(stage, times, kill, keep=8)
        outcome.unexpected = [failure for failure in outcome.counts.failures if failure.port not in own]
        return outcome


def proxies_told_to_go(directory: Path, times: int) -> Outcome:
    """SIGTERM for one of two proxies: its successor accepts before it has gone, and no request fails."""
    with a_stage(directory, replicas=2, proxies=2) as stage:

        def end(number: int) -> None:
            proxies = sorted(stage.daemon.pids("proxy"))
            os.kill(proxies[number % 2], signal.SIGTERM)
            eventually(lambda: proxies[number % 2] not in stage.daemon.pids("proxy"))
            stage.wait()

        return under_load(stage, times, end, keep=8)


def daemon_kills(directory: Path, times: int) -> Outcome:
    """`kill -9` of the daemon under load: nobody outlives it for 5 s, nothing is left, the next one serves the same."""
    settings = settings_in(directory, proxies=2)
    # whose shared memory it is cannot be told; others' comes now and then, ours would come each time
    shared, leaks = set(os.listdir("/dev/shm")), 0
    clock = SystemClock()
    outcome = Outcome(times)
    began, stage = clock.now(), None
    for number in range(times):
        daemon = RunningDaemon(settings).ready()
        if stage is None:
            stage = Stage(daemon, directory)
            stage.deploy(replicas=3)
        stage.daemon = daemon
        stage.wait()
        load = stage.load("/?hold=0.02")
        daemon.process.kill()
        daemon.process.wait()
        eventually(lambda: not list(titles(settings.state_dir)), 5.0)
        load.kill()
        if left := os.listdir(settings.socket_dir):
            outcome.notes.append(f"after kill {number} there are {left}")
        leaks += bool(set(os.listdir("/dev/shm")) - shared)
        shared |= set(os.listdir("/dev/shm"))
    if 2 * leaks > times:
        outcome.notes.append(f"shared memory was left {leaks} times")
    with a_daemon(settings) as daemon:
        assert stage is not None
        stage.daemon = daemon
        stage.wait()
        if daemon.get()[0] != 200:
            outcome.notes.append("the goal is not served again")
    outcome.seconds = clock.now() - began
    return outcome


UNDER_LOAD: dict[str, tuple[Callable[[Path, int], Outcome], int, int]] = {
    "rolling_updates": (rolling_updates, 0, 50),
    "updates_of_one_replica": (updates_of_one_replica, 0, 20),
    "updates_while_busy": (updates_while_busy, 0, 20),
    "updates_of_a_graph": (updates_of_a_graph, 0, 20),
    "reconfigures": (reconfigures, 1, 50),
    "scale_changes": (scale_changes, 0, 20),
    "controller_kills": (controller_kills, 0, 20),
    "controller_kills_in_updates": (controller_kills_in_updates, 0, 20),
    "fork_server_kills": (fork_server_kills, 0, 20),
    "fork_server_kills_in_updates": (fork_server_kills_in_updates, 0, 20),
    "idle_replica_kills": (idle_replica_kills, 0, 20),
    "busy_replica_kills": (busy_replica_kills, 0, 20),
    "proxy_kills": (proxy_kills, 1, 20),
    "proxies_told_to_go": (proxies_told_to_go, 0, 20),
    "daemon_kills": (daemon_kills, 0, 20),
}
"""name -> (scenario, repetitions in `make test` (0 = not there), repetitions in `make faults` and `make test-all`)."""
