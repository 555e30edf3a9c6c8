"""Processes that user code starts end with their replica, however that ends, and hide its death from nobody."""

import http.client
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from servd.ground.clock import SystemClock
from tests.processes import Process, alive, command_line, offspring, pids, process
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.long

KINDS = {
    "forked": "context('fork').Process(target=wait_long).start()",
    "spawned": "context('spawn').Process(target=wait_long).start()",
    "from a fork server": "context('forkserver').Process(target=wait_long).start()",
    "a pool": "self.pool = context('fork').Pool(2)",
    "shared memory and its tracker": "self.memory = shared_memory.SharedMemory(create=True, size=64)",
    "a program": "subprocess.Popen(['sleep', '600'])",
    "a program in a session of its own": "subprocess.Popen(['sleep', '600'], start_new_session=True)",
    "a program in the background": "subprocess.run('setsid sleep 600 & sleep 600 &', shell=True)",
    "forked, in a session of its own": "context('fork').Process(target=leave_session).start()",
    "one that ignores signals": "subprocess.Popen(['sh', '-c', 'trap \"\" TERM HUP INT; sleep 600; sleep 600'])",
}
APP = """
import multiprocessing, os, subprocess, threading
from multiprocessing import get_context as context, shared_memory
from servd import deployment

IMPORTED = subprocess.Popen(["sleep", "600"])

def wait_long():
    threading.Event().wait()

def leave_session():
    os.setsid()
    os.close(2)
    threading.Event().wait()

@deployment(graceful_shutdown_timeout_s=1, ray_actor_options={"num_cpus": 0})
class Parent:
    def __init__(self):
        BODY
    def __call__(self, request):
        if request.method == "POST":
            threading.Event().wait()
        return os.getpid()

app = Parent.bind()
"""


def marked() -> set[Process]:
    """Programs that wait for ten minutes, as those of this test do, wherever they hang."""
    waiting = b"\0".join((b"sleep", b"600", b""))
    return {found for pid in pids() if command_line(pid) == waiting and (found := process(pid)) is not None}


def replica_of(daemon: RunningDaemon) -> int:
    """The one replica: what it starts bears its title too for a moment, until it is another program."""

    def only() -> int | None:
        found = daemon.pids("replica")
        return found[0] if len(found) == 1 else None

    return int(eventually(only))


def deploy(daemon: RunningDaemon, code: Path, body: str) -> set[Process]:
    """Serve it; gives all that its replica and its import started."""
    code.mkdir()
    (code / "parent.py").write_text(APP.replace("BODY", body))
    before = marked()
    daemon.deploy(code, "parent:app")
    pid = replica_of(daemon)
    return offspring(pid) | (marked() - before)


def test_a_killed_replica_and_a_drain_leave_nothing_of_any_kind_and_callers_learn_at_once(tmp_path: Path) -> None:
    with a_daemon(settings_in(tmp_path)) as daemon:
        started = deploy(daemon, tmp_path / "code", "; ".join(KINDS.values()))
        pid = replica_of(daemon)
        (fork_server,) = daemon.pids("fork server")
        imports = offspring(fork_server) - offspring(pid)
        started -= imports
        assert len(alive(started)) >= len(KINDS)
        answers: list[int] = []
        caller = threading.Thread(target=post, args=(daemon, answers))
        caller.start()
        eventually(lambda: _ongoing(daemon))
        clock = SystemClock()
        killed_at = clock.now()
        os.kill(pid, signal.SIGKILL)
        caller.join()
        assert answers == [502]
        assert clock.now() - killed_at < 3.0, "though its children live"
        eventually(lambda: not alive(started), 6.0)
        assert alive({each for each in imports if each[0] != pid}), "what the import started belongs to all replicas"
        eventually(lambda: daemon.pids("replica") not in ([], [pid]))
        daemon.wait_until_running()
        started = offspring(fork_server)
        assert len(alive(started)) >= len(KINDS)
        assert daemon.ask("DELETE", "/api/serve/deployments/") == (200, "")
        eventually(lambda: not alive(started), 15.0)


def test_the_death_and_the_stop_of_the_daemon_leave_nothing(tmp_path: Path) -> None:
    killed = RunningDaemon(settings_in(tmp_path))
    before = marked()
    try:
        started = deploy(killed.ready(), tmp_path / "code", "; ".join(KINDS.values()))
    finally:
        killed.process.kill()
        killed.process.wait()
    eventually(lambda: not alive(started), 15.0)
    # the next one clears up behind it, and serves what it had
    with a_daemon(killed.settings) as daemon:
        daemon.wait_until_running()
        started = {child for pid in daemon.pids("fork server") for child in offspring(pid)} | (marked() - before)
        daemon.stop()
        eventually(lambda: not alive(started), 5.0)


def post(daemon: RunningDaemon, answers: list[int]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.http_port, timeout=30)
    connection.request("POST", "/")
    answers.append(connection.getresponse().status)
    connection.close()


def _ongoing(daemon: RunningDaemon) -> bool:
    return '"ongoing_requests": 1' in json.dumps(daemon.status()) or '"ongoing": 1' in json.dumps(daemon.status())
