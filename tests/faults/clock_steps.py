"""The wall clock is set while a daemon serves: by an hour, a day and a year, in both directions.

The machine's clock stays: the daemon's processes are given another one (`shifted_clock.c`), which steps at our word.
"""

import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servd.ground.clock import SystemClock
from tests.faults.outcome import Outcome
from tests.faults.scenarios import under_load
from tests.faults.stage import Stage
from tests.system.running_daemon import a_daemon, settings_in

HOUR_S, DAY_S, YEAR_S = 3600, 86400, 365 * 86400
STEPS = (HOUR_S, 0, -HOUR_S, 0, DAY_S, 0, -DAY_S, 0, YEAR_S, 0, -YEAR_S, 0)
"""Seconds from the true time, one after the other."""
_AGE_ERROR_S = 2.0


def why_not() -> str:
    """Why this cannot be tried here; "" if it can."""
    return "" if shutil.which("cc") else "a clock that can be set needs a C compiler (cc)"


class SteppedClock:
    """The wall clock of the processes that get `variables`."""

    def __init__(self, directory: Path) -> None:
        library = directory / "clock.so"
        source = Path(__file__).with_name("shifted_clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
        self._file = directory / "clock"
        self._file.write_bytes(struct.pack("=q", 0))
        self._clock = SystemClock()
        self._shift_s = 0
        self.variables = {"LD_PRELOAD": str(library), "SERVD_TEST_CLOCK": str(self._file)}

    def set(self, shift_s: int) -> None:
        """From now on it is so many seconds from the true one."""
        self._shift_s = shift_s
        with open(self._file, "r+b", buffering=0) as file:
            file.write(struct.pack("=q", shift_s))

    def wall_time(self) -> float:
        """What these processes take for the time."""
        return self._clock.wall_time() + self._shift_s


@contextmanager
def _a_stage(directory: Path, clock: SteppedClock) -> Iterator[Stage]:
    with a_daemon(settings_in(directory, proxies=2), clock.variables) as daemon:
        stage = Stage(daemon, directory)
        stage.deploy(replicas=2)
        yield stage


def clock_steps(directory: Path, times: int) -> Outcome:
    """After each step: nothing moves by itself, ages stay true, and whatever is killed or deployed comes as ever."""
    clock = SteppedClock(directory)
    monotonic = SystemClock()
    notes: list[str] = []
    with _a_stage(directory, clock) as stage:
        began = monotonic.now()

        def step(number: int) -> None:
            shift_s = STEPS[number % len(STEPS)]
            before = sorted(stage.daemon.pids())
            clock.set(shift_s)
            if not _are_true(stage, clock, monotonic.now() - began):
                notes.append(f"ages are wrong after a step to {shift_s} s: {_ages(stage, clock)}")
            stage.deploy(colour=number)
            if sorted(stage.daemon.pids()) != before:
                notes.append(f"processes came or went by a step to {shift_s} s")
            stage.deploy(version=number)
            stage.kill_and_replace("replica", stage.idle())
            stage.kill_controller()
            if not _are_true(stage, clock, monotonic.now() - began):
                notes.append(f"ages are wrong with a controller that began at {shift_s} s: {_ages(stage, clock)}")

        outcome = under_load(stage, times, step, post_pause_s=0.1)
        outcome.judge(set(stage.begun()))
        outcome.notes += notes
        return outcome


def _ages(stage: Stage, clock: SteppedClock) -> list[float]:
    return [round(clock.wall_time() - replica["start_time_s"], 1) for replica in stage.running()]


def _are_true(stage: Stage, clock: SteppedClock, oldest_s: float) -> bool:
    # the stage took a moment to come
    limit_s = oldest_s + 10 * _AGE_ERROR_S
    return all(-_AGE_ERROR_S < age < limit_s for age in _ages(stage, clock))
