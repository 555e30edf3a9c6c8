"""gRPC on a whole daemon: the example, what it costs those who do not want it, and what faults cost its clients."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ports import free_port
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("grpc") is None, reason="needs grpcio: pip install 'servd-serve[grpc]'"
    ),
]
ROOT = Path(__file__).parents[2]
LOAD = ROOT / "tests" / "system" / "grpc_load.py"


def the_document(folder: Path, port: int, **options: Any) -> dict[str, Any]:
    """That of the example, with code in `folder`."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "grpc.yaml").read_text())
    document["grpc_options"]["port"] = port
    app = document["applications"][0]
    app["runtime_env"] = {"working_dir": str(folder)}
    app["deployments"] = [{"name": "FruitStand", **options}]
    return document


def deploy(daemon: RunningDaemon, document: dict[str, Any]) -> None:
    """Send it, and wait until it runs."""
    code, text = daemon.ask("PUT", "/api/serve/applications/", document)
    assert code == 200, text

    def runs() -> bool:
        status = daemon.status()
        app = status["applications"].get("stand", {"status": ""})
        assert app["status"] != "DEPLOY_FAILED", app
        return app["status"] == "RUNNING"

    eventually(runs)


def loads_grpc(pid: int) -> bool:
    """Whether a process has the library in memory."""
    return "cygrpc" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.long
def test_the_example_on_a_daemon_that_had_no_grpc(tmp_path: Path) -> None:
    port = free_port()
    with a_daemon(settings_in(tmp_path)) as daemon:
        (before,) = daemon.pids("proxy")
        assert not loads_grpc(before)
        deploy(daemon, the_document(ROOT / "examples" / "grpc", port))
        eventually(lambda: before not in daemon.pids("proxy"))
        (after,) = daemon.pids("proxy")
        assert loads_grpc(after)
        told = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "grpc" / "buy.py"), f"127.0.0.1:{port}"],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert (told.returncode, told.stderr) == (0, "")
        assert re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", told.stdout).splitlines() == [
            "2 mangos: 6.0, request ID",
            "1 to 3 pears: [1.0, 2.0, 3.0]",
            "a mango and 2 oranges: 7.0",
            "one by one: [3.0, 4.0]",
            "a kiwi: NOT_FOUND, no kiwi today",
        ]
        # forked all the same: importing gRPC starts no thread
        deployments = daemon.status()["applications"]["stand"]["deployments"].values()
        assert {r["start_method"] for d in deployments for r in d["replicas"]} == {"fork"}


def has_successor(daemon: RunningDaemon, title: str, victim: int, count: int) -> bool:
    """Whether that process has ended and there are as many as before."""
    pids = daemon.pids(title)
    return len(pids) == count and victim not in pids


@contextmanager
def under_load(port: int, method: str = "Price", *options: str) -> Iterator[Callable[[], dict[str, int]]]:
    """Clients that call all the while; gives what stops them and tells how their calls ended."""
    client = subprocess.Popen(
        [sys.executable, str(LOAD), f"127.0.0.1:{port}", "8", method, *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert client.stdout is not None
    assert client.stdout.readline() == "begun\n"

    def stop() -> dict[str, int]:
        out, _ = client.communicate(timeout=60)
        return dict(json.loads(out))

    try:
        yield stop
    finally:
        client.kill()
        client.wait()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[RunningDaemon, Path, int]]:
    """One that serves a copy of the example with two proxies; the folder of that, and the port."""
    folder, port = tmp_path / "code", free_port()
    shutil.copytree(ROOT / "examples" / "grpc", folder)
    with a_daemon(settings_in(tmp_path, proxies=2, grpc_port=port)) as made:
        deploy(made, the_document(folder, port, num_replicas=3))
        yield made, folder, port


@pytest.mark.long
@pytest.mark.parametrize("method", ["Price", "Quotes"])
def test_no_call_fails_in_rolling_updates(daemon: tuple[RunningDaemon, Path, int], method: str) -> None:
    made, folder, port = daemon
    with under_load(port, method) as stop:
        for number in range(5):
            (folder / "version.py").write_text(f"VERSION = {number}\n")
            code = (folder / "stand.py").read_text()
            (folder / "stand.py").write_text(re.sub(r"\n# \d+\n$|\n$", f"\n# {number}\n", code))
            deploy(made, the_document(folder, port, num_replicas=2 + number % 2))
        counts = stop()
    assert counts.keys() == {"OK"}
    assert counts["OK"] > 100


@pytest.mark.long
def test_no_call_that_may_be_repeated_fails_when_replicas_are_killed(daemon: tuple[RunningDaemon, Path, int]) -> None:
    made, _, port = daemon
    with under_load(port) as stop:
        for _ in range(5):
            victim = made.pids("replica")[0]
            os.kill(victim, signal.SIGKILL)
            eventually(partial(has_successor, made, "replica", victim, 3))
        counts = stop()
    assert counts.keys() == {"OK"}


@pytest.mark.long
def test_a_dead_controller_costs_no_call_and_a_dead_proxy_those_of_its_connections(
    daemon: tuple[RunningDaemon, Path, int],
) -> None:
    made, _, port = daemon
    with under_load(port) as stop:
        (controller,) = made.pids("controller")
        os.kill(controller, signal.SIGKILL)
        eventually(lambda: made.pids("controller") not in ([], [controller]))
        eventually(made.is_ready)
        counts = stop()
    assert counts.keys() == {"OK"}
    with under_load(port, "Price", "patient") as stop:
        victim = made.pids("proxy")[0]
        os.kill(victim, signal.SIGKILL)
        eventually(partial(has_successor, made, "proxy", victim, 2))
        counts = stop()
    # one call at a time on each of eight connections; one may come back to the dying proxy once more
    assert sum(number for name, number in counts.items() if name != "OK") <= 16
    assert all(name.startswith(("OK", "UNAVAILABLE")) for name in counts)


@pytest.mark.long
def test_no_call_fails_when_proxies_are_told_to_end(tmp_path: Path) -> None:
    port = free_port()
    # so that clients move soon
    with a_daemon(settings_in(tmp_path, proxies=2, grpc_port=port), {"SERVD_GRPC_MAX_CONNECTION_AGE_S": "1"}) as made:
        deploy(made, the_document(ROOT / "examples" / "grpc", port))
        with under_load(port) as stop:
            for number in range(4):
                victim = made.pids("proxy")[number % 2]
                os.kill(victim, signal.SIGTERM)
                eventually(partial(has_successor, made, "proxy", victim, 2))
                # one that has just been started is no help yet
                eventually(lambda: all(listens(pid, port) for pid in made.pids("proxy")))
            counts = stop()
    assert counts.keys() == {"OK"}
    assert counts["OK"] > 100


def listens(pid: int, port: int) -> bool:
    """Whether a process listens at a port of this host."""
    # the library likes to listen at IPv4 addresses in IPv6
    tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        # some come and go
        with suppress(OSError):
            if os.readlink(path) in sockets:
                return True
    return False


@pytest.mark.long
def test_no_call_fails_where_the_deployment_scales_to_zero(daemon: tuple[RunningDaemon, Path, int]) -> None:
    made, folder, port = daemon
    scaled = {
        "min_replicas": 0, "max_replicas": 2, "target_num_ongoing_requests_per_replica": 1,
        "look_back_period_s": 0.3, "upscale_delay_s": 0, "downscale_delay_s": 0.1,
    }  # fmt: skip
    deploy(made, the_document(folder, port, num_replicas=None, autoscaling_config=scaled))
    for method in ("Price", "Quotes", "Price"):
        eventually(lambda: not made.pids("replica"))
        with under_load(port, method) as stop:
            eventually(lambda: made.pids("replica"))
            counts = stop()
        assert counts.keys() == {"OK"}


@pytest.mark.long
def test_without_the_library_it_is_refused_with_how_to_install_it(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", _WITHOUT, "start", "--grpc-port", str(free_port()), "--state-dir", str(tmp_path / "s")],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert told.returncode != 0
    assert "--grpc-port: gRPC needs the package grpcio: pip install 'servd-serve[grpc]'" in told.stderr


_WITHOUT = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "grpc" else real(name, *rest)
from servd.__main__ import main
main()
"""
