"""Ray clusters in network namespaces of their own, one node in each, with a servd beside the head; one cluster at a time."""

import asyncio
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from servd.daemon import launch
from tests.fakes import wait_until
from tests.system.running_daemon import RunningDaemon, settings_in

ROOT = Path(__file__).parents[2]
RAY = os.environ.get("SERVD_TEST_RAY", "")
HEAD, TOKEN = "http://127.0.0.1:8265", "token-of-the-test-0123456789"
RAY_PORT, SERVD_PORT, SERVD_ADMIN_PORT = 8000, 8100, 52400
CPUS = 32
"""That the cluster believes it has."""
START_LIMIT_S = 300.0
RAY_START = f"""\
from functools import partial
from types import FunctionType
from ray._private import services
from ray.scripts.scripts import main

# with names of its own: it asks what is replaced here
wait_for_node = FunctionType(services.get_node_with_retry.__code__, dict(vars(services)))
services.get_node = partial(wait_for_node, timeout_s={START_LIMIT_S}, retry_interval_s=0.1)
main()
"""
"""`ray start`, which gives a node 30 s to join as it comes: too little beside other work on the machine."""
needs_ray = [
    pytest.mark.long,
    pytest.mark.skipif(not RAY, reason="SERVD_TEST_RAY names no environment with ray[serve]"),
    pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="network namespaces need root"),
]
"""Marks of a file whose tests need a cluster."""

Answer = tuple[int, str, str]
"""Status, content type and body, one letter a byte."""


class Machine:
    """A network namespace with a Ray node in it, which begins once `begin` was called.

    hidden: folders that are empty there.
    """

    def __init__(self, folder: Path, name: str, ray_start: str, hidden: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            # idle processes that the first program would find ready, one a CPU
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_worker_prestart": "0",
            # 15 as it comes: beside other work on the machine they would never start
            "RAY_worker_niceness": "0",
            # as many at a time as there are cores: the head has to answer meanwhile
            "RAY_worker_maximum_startup_concurrency": str(os.cpu_count() or 1),
            # its parts may be slow to start beside other work on the machine
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": f"{START_LIMIT_S:.0f}",
            "RAY_agent_register_timeout_ms": f"{START_LIMIT_S * 1000:.0f}",
            "SERVD_ENGINE": "ray",
            "SERVD_ADDRESS": HEAD,
        }
        hide = "".join(f"mount -t tmpfs tmpfs {path} && " for path in hidden)
        # ports that the node need not wait for its agents to tell
        agents = (
            "--runtime-env-agent-port 6381 --dashboard-agent-listen-port 6382 --dashboard-agent-grpc-port 6383 "
            "--metrics-export-port 6384"
        )
        # not with --block, which ends all once the server for Ray's own client has given up waiting, after 30 s too
        ray = f"{RAY}/python -c {shlex.quote(RAY_START)} start {agents} {ray_start}"
        # what follows `read` comes once its network is there
        start = f"ip link set lo up && {hide}read _ && {ray} && sleep infinity"
        with open(folder / f"{name}.log", "wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", start],
                env={**self.environment, "RAY_AUTH_TOKEN": TOKEN},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )

    def begin(self) -> None:
        """Start the node."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.close()

    def inside(self, *command: str) -> list[str]:
        """A command in its network."""
        return ["nsenter", "-t", str(self.process.pid), "-n", *command]

    def run(self, *command: str, token: str = TOKEN, text: str = "") -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command in its network; text: its input."""
        # not for the cluster: its own `servd` would be ours
        environment = {**self.environment, "PYTHONPATH": str(ROOT), **({"RAY_AUTH_TOKEN": token} if token else {})}
        done = subprocess.run(
            self.inside(*command),
            env=environment, input=text, capture_output=True, text=True, timeout=600, check=False, cwd=self.folder,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


class Head(Machine):
    """The node that others join. ray_start: added to its options."""

    def __init__(self, folder: Path, ray_start: str, hidden: Sequence[Path] = ()) -> None:
        ports = "--port 6379 --dashboard-port 8265 --disable-usage-stats --object-store-memory 100000000"
        super().__init__(folder, "head", f"--head --no-monitor {ports} --temp-dir {folder}/r {ray_start}", hidden)

    async def until_it_answers(self) -> None:
        await wait_until(lambda: self.process.poll() is not None or self.servd("status")[0] == 0, START_LIMIT_S)
        assert self.process.poll() is None, (self.folder / "head.log").read_text()

    def servd(self, *arguments: str, token: str = TOKEN) -> tuple[int, str, str]:
        """What a command of servd's does with the cluster."""
        return self.run(sys.executable, "-m", "servd", *arguments, token=token)

    def deploy(self, path: object, *more: str) -> str:
        """Deploy there and wait; what it printed."""
        code, out, err = self.servd("deploy", str(path), "--wait", "--timeout", "500", *more)
        assert code == 0, out + err
        return out

    def do(self, what: str, **order: Any) -> Any:
        """What `tests.engines.asking` finds."""
        code, out, err = self.run(
            sys.executable, "-m", "tests.engines.asking", text=json.dumps({"do": what, "port": RAY_PORT, **order})
        )
        assert code == 0, err
        return json.loads(out)

    def get(self, path: str, **ask: Any) -> Answer:
        """One request to the cluster."""
        (found,) = self.do("in_turn", asks=[{"path": path, **ask}])
        return tuple(found)

    def at_once(self, path: str, count: int) -> list[str]:
        """Bodies of so many requests that go out together."""
        return [body for _, _, body in self.do("at_once", asks=[{"path": path}] * count)]

    def status(self) -> dict[str, Any]:
        """Name of an application -> what the cluster says of it."""
        return dict(json.loads(self.servd("status", "--format", "json")[1]))

    def replicas(self) -> list[dict[str, Any]]:
        return [
            replica
            for app in self.status().values()
            for one in app["deployments"].values()
            for replica in one["replicas"]
        ]

    def pids(self) -> list[int]:
        return sorted(replica["pid"] for replica in self.replicas())


@contextlib.contextmanager
def a_folder() -> Iterator[Path]:
    """One with a short path, for sockets; nobody else has a cluster meanwhile."""
    with open(Path(tempfile.gettempdir(), "servd-test-cluster.lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(tempfile.mkdtemp(prefix="sray-", dir="/tmp"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def one_node() -> Iterator[Head]:
    """A cluster that wants a token."""
    with a_folder() as folder:
        head = Head(folder, f"--node-ip-address 127.0.0.1 --num-cpus {CPUS}")
        try:
            head.begin()
            asyncio.run(head.until_it_answers())
            yield head
        finally:
            head.end()


@contextlib.contextmanager
def two_nodes(hidden: Sequence[Path]) -> Iterator[Head]:
    """A head that runs no replicas, and a node that has none of the folders; their networks are joined."""
    with a_folder() as folder:
        head = Head(folder, "--node-ip-address 10.77.0.1 --num-cpus 0")
        other = Machine(
            folder,
            "other",
            f"--address 10.77.0.1:6379 --node-ip-address 10.77.0.2 --num-cpus {CPUS}",
            [*hidden, folder],
        )
        try:
            _join(head, other)
            head.begin()
            asyncio.run(head.until_it_answers())
            other.begin()
            yield head
        finally:
            other.end()
            head.end()


def _join(first: Machine, second: Machine) -> None:
    pids = first.process.pid, second.process.pid
    own = os.readlink("/proc/self/ns/net")
    # each has left ours once `unshare` has done its work
    asyncio.run(wait_until(lambda: own not in {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}, 20))
    link = ["ip", "link", "add", "veth0", "netns", str(pids[0]), "type", "veth", "peer", "name", "veth0"]
    subprocess.run([*link, "netns", str(pids[1])], check=True)
    for number, machine in enumerate((first, second), 1):
        for command in (f"ip address add 10.77.0.{number}/24 dev veth0", "ip link set veth0 up"):
            code, _, err = machine.run(*command.split())
            assert code == 0, err


@contextlib.contextmanager
def servd_beside(head: Head) -> Iterator[RunningDaemon]:
    """A daemon in the head's network."""
    folder = head.folder / "own"
    folder.mkdir()
    settings = settings_in(folder, http_port=SERVD_PORT, admin_port=SERVD_ADMIN_PORT)
    daemon = RunningDaemon(settings, command=head.inside(*launch.daemon_command(settings)))
    try:
        yield daemon.ready()
    finally:
        daemon.stop()
