"""Processes that stand still for some seconds, and several that die in one moment."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from servd.ground.clock import block_for
from tests.faults.outcome import Outcome
from tests.faults.scenarios import a_stage, under_load
from tests.faults.stage import Stage
from tests.system.running_daemon import eventually

STOPPED = ("daemon", "controller", "fork server", "replica", "proxy", "all")
SECONDS = (5, 20)
_OFF_THE_PATH = ("daemon", "controller", "fork server")
_AT_ONCE_S = 2.0
"""No request takes longer because of somebody who has no part in it."""
TWO = (
    ("controller", "replica"),
    ("controller", "proxy"),
    ("controller", "fork server"),
    ("fork server", "replica"),
    ("proxy", "replica"),
    ("proxy", "fork server"),
    ("replica", "replica"),
)
THREE = (
    ("controller", "fork server", "replica"),
    ("controller", "proxy", "replica"),
    ("controller", "proxy", "fork server"),
    ("proxy", "fork server", "replica"),
    ("controller", "replica", "replica"),
)
_TITLES = ("controller", "proxy", "fork server", "replica")


def stop(title: str, seconds: int, directory: Path, times: int) -> Outcome:
    """SIGSTOP of one process of a kind (of all of all kinds: "all") under load, SIGCONT after so many seconds."""
    with a_stage(directory, replicas=2, proxies=2) as stage:
        own: set[int] = set()
        before = _counts(stage)

        def once(_: int) -> None:
            pids = stage.daemon.pids() if title == "all" else stage.daemon.pids(title)[:1]
            ports = stage.ports_of(pids[0]) if title == "proxy" else set()
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            block_for(seconds)
            alive = [pid for pid in pids if pid in stage.daemon.pids()]
            for pid in alive:
                os.kill(pid, signal.SIGCONT)
            if alive != pids:
                # servd ended who gave no sign of life: what lay there is as lost as after any death
                own.update(ports)
            with stage.recovery():
                eventually(lambda: _is_whole(stage, before))

        outcome = under_load(stage, times, once, post_pause_s=0.1)
        outcome.judge(set(stage.begun()), own)
        if title in _OFF_THE_PATH and outcome.counts.slowest_s > _AT_ONCE_S:
            outcome.notes.append(f"a request took {outcome.counts.slowest_s:.1f} s while the {title} stood still")
        return outcome


def killed_together(groups: Sequence[Sequence[str]], directory: Path, times: int) -> Outcome:
    """`kill -9` of several processes in one moment, group after group."""
    with a_stage(directory, replicas=4, proxies=2) as stage:
        own: set[int] = set()
        before = _counts(stage)

        def once(number: int) -> None:
            group = groups[number % len(groups)]
            victims: list[int] = []
            for title in group:
                if title == "controller":
                    victim = stage.controller_to_kill()
                else:
                    victim = next(pid for pid in sorted(stage.daemon.pids(title)) if pid not in victims)
                if title == "proxy":
                    own.update(stage.ports_of(victim))
                victims.append(victim)
            with stage.recovery():
                for victim in victims:
                    stage.kill(victim)
                eventually(lambda: not set(victims) & set(stage.daemon.pids()) and _is_whole(stage, before))

        outcome = under_load(stage, times, once, post_pause_s=0.1)
        outcome.judge(set(stage.begun()), own)
        return outcome


def _counts(stage: Stage) -> dict[str, int]:
    return {title: len(stage.daemon.pids(title)) for title in _TITLES}


def _is_whole(stage: Stage, counts: dict[str, int]) -> bool:
    return _counts(stage) == counts and stage.is_settled()
