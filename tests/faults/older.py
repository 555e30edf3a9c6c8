"""A start with what an older servd left when the power went: its state directory, and the facts beside its sockets."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from servd.ground.clock import SystemClock
from servd.ground.settings import Settings
from tests.faults.outcome import Outcome
from tests.faults.stage import Stage
from tests.system.kept_state.unpack import unpacked
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in, titles

COMMITS = 60
_ROOT = Path(__file__).parents[2]
_FIRST = Path(__file__).parents[1] / "system/kept_state/0.1.0.tar.gz"


def first_release(directory: Path, times: int) -> Outcome:
    """What version 0.1.0 left is served."""
    outcome = Outcome()
    clock = SystemClock()
    with unpacked(_FIRST) as home:
        began = clock.now()
        with a_daemon(settings_in(home)) as daemon:
            eventually(lambda: daemon.get("/words") == (200, "snapshot!"))
            outcome.normal_after_s = outcome.seconds = clock.now() - began
    return outcome


def why_not() -> str:
    """Why older commits are not at hand; "" if they are."""
    done = _git("rev-parse", "--verify", "--quiet", f"HEAD~{COMMITS}^{{commit}}")
    return "" if done.returncode == 0 else f"there is no git history of {COMMITS} commits here"


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True)


def commits_ago(directory: Path, times: int) -> Outcome:
    """A daemon of 60 commits ago is killed while it serves, with all its processes; today's starts in its place."""
    old = directory / "old"
    _unpack_older(old)
    settings = settings_in(directory, proxies=2)
    clock = SystemClock()
    outcome = Outcome()
    own = {"PYTHONPATH": str(old)}
    asked = subprocess.run(
        [sys.executable, "-P", "-c", "import servd; print(servd.__file__)"],
        env={**os.environ, **own},
        capture_output=True,
    )
    assert asked.stdout.decode().startswith(str(old)), f"it would run the code of today: {asked}"
    daemon = RunningDaemon(settings, own, command=_start(settings)).ready()
    try:
        stage = Stage(daemon, directory)
        stage.deploy(version=1, replicas=2)
    finally:
        daemon.cut_the_power()
    eventually(lambda: not list(titles(settings.state_dir)), 5.0)
    began = clock.now()
    with a_daemon(settings) as stage.daemon:
        stage.wait()
        outcome.normal_after_s = outcome.seconds = clock.now() - began
        if stage.daemon.get()[1].split()[2] != "1":
            outcome.notes.append("the application is another one")
        stage.deploy(version=2)
    return outcome


def _unpack_older(directory: Path) -> None:
    # not every commit is whole: some keep what was half done
    for number in range(COMMITS, 2 * COMMITS):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        archive = _git("archive", f"HEAD~{number}", "servd")
        assert archive.returncode == 0, archive.stderr
        subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
        if not subprocess.run(
            [sys.executable, "-m", "compileall", "-q", str(directory)], capture_output=True
        ).returncode:
            return
    raise AssertionError(f"none of the commits from {COMMITS} ago on can be compiled")


def _start(settings: Settings) -> list[str]:
    """Today's way to start a daemon process need not be that of then; the command line is."""
    ports = ["--http-port", str(settings.http_port), "--admin-port", str(settings.admin_port)]
    return [sys.executable, "-P", "-m", "servd", "start", "--state-dir", settings.state_dir, "--proxies", "2", *ports]
