"""The systems: how each serves a model with so many replicas, and how it gets more of them while it runs."""

import http.client
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.launcher import descendants
from benchmarks.compare.peers import PEERS_DIR, python_of, sees_packages_of
from benchmarks.compare.systems import Endpoint, Setup, free_ports

APPS_DIR = Path(__file__).parent / "apps"
REPOSITORY = Path(__file__).parents[2]
MOST = 8
"""Replicas that a system grows to."""
GROW_LIMIT_S = 60.0
ADMIN_LIMIT_S = 30.0
AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": MOST,
    "target_num_ongoing_requests_per_replica": 1,
    "metrics_interval_s": 0.1,
    "look_back_period_s": 0.2,
    "upscale_delay_s": 0,
}


@dataclass(frozen=True, slots=True)
class Work:
    """What to serve, and with what. is_autoscaled: from one replica to `MOST`, as the load wants."""

    model: str
    replicas: int
    threads: int = 1
    is_autoscaled: bool = False


@dataclass(frozen=True, slots=True)
class Up:
    """A system that runs. launcher: pid above all of its processes, itself none of them. imports: file with a line for each."""

    setup: Setup
    launcher: int
    imports: Path

    @property
    def endpoint(self) -> Endpoint:
        """Where it answers."""
        return self.setup.endpoints["model"]

    def imported(self) -> int:
        """How often the model's library was imported so far."""
        return len(self.imports.read_text().splitlines())


Starter = Callable[[str, Path, Work], Setup]
"""Takes the interpreter, an empty directory and the work."""
Grow = Callable[[Up, int], None]


@dataclass(frozen=True, slots=True)
class System:
    """A system under test.

    peer: whose environment it needs. grow: orders so many replicas and does not wait for them; None: it cannot while it runs.
    may_pause: its processes are stopped while others are measured.
    """

    name: str
    about: str
    peer: str
    start: Starter
    grow: Grow | None = None
    has_autoscaling: bool = False
    may_pause: bool = True


def interpreter(system: System, home: Path = PEERS_DIR, torch: str = "torch") -> str:
    """The interpreter of its environment, which sees the one environment with the libraries, so that all run the same ones.

    Args:
        home: folder of the environments. torch: what pip shall install as PyTorch.

    Raises:
        NotInstallableError: pip could not.
    """
    libraries = python_of("libraries", home, (torch, "scikit-learn", "numpy"))
    own = ("-e", str(REPOSITORY)) if system.peer == "servd" else None
    python = python_of(system.peer, home, own)
    sees_packages_of(python, libraries)
    return python


def start_servd(tree: Path | None = None, **options: Any) -> Starter:
    """The daemon, and a document whose deployment has these options. tree: of another checkout, for its servd."""

    def start(python: str, directory: Path, work: Work) -> Setup:
        port, admin_port = free_ports(2)
        document = {
            "http_options": {"host": "127.0.0.1", "port": port},
            "applications": [
                {
                    "name": "default",
                    "import_path": "serve_models:app",
                    "route_prefix": "/",
                    "runtime_env": {"working_dir": str(APPS_DIR)},
                    "deployments": [{"name": "Model", **options, **_options(work)}],
                }
            ],
        }
        path = directory / "document.yaml"
        path.write_text(json.dumps(document))
        state = str(directory / "state")
        servd = [str(Path(python).parent / "servd")] if tree is None else [python, "-m", "servd"]
        start = [*servd, "start", "--http-port", str(port), "--admin-port", str(admin_port), "--state-dir", state]
        then = [*servd, "deploy", "--wait", str(path), "--address", f"http://127.0.0.1:{admin_port}"]
        environment = {
            "TMPDIR": str(directory),
            "SERVD_STATE_DIR": state,
            **({"PYTHONPATH": str(tree)} if tree else {}),
        }
        return Setup([start], {"model": Endpoint(port, "/")}, environment, then, admin_port)

    return start


def servd_of(tree: Path) -> System:
    """The servd of another checkout, as `before`, with `preload`; it runs on what is installed for this one."""
    start = start_servd(tree, preload=True)
    about = f"servd as it is in {tree.name}, with `preload`"
    return System("before", about, "servd", start, grow_servd, has_autoscaling=True, may_pause=False)


def grow_servd(up: Up, count: int) -> None:
    """By its admin port."""
    connection = http.client.HTTPConnection("127.0.0.1", up.setup.opens, timeout=ADMIN_LIMIT_S)
    path = "/api/v1/applications/default/deployments/Model/scale"
    connection.request("POST", path, json.dumps({"target_num_replicas": count}))
    response = connection.getresponse()
    text = response.read()
    connection.close()
    assert response.status == 200, text


def start_ray(python: str, directory: Path, work: Work) -> Setup:
    """One node of its own."""
    [port] = free_ports(1)
    # threads come by OMP_NUM_THREADS, as for all systems; no CPUs: more replicas than there are cores
    options = json.dumps({**_options(work), "ray_actor_options": {"num_cpus": 0}})
    command = [python, str(APPS_DIR / "ray_models.py"), str(port), str(directory / "r"), options, str(MOST)]
    return Setup([command], {"model": Endpoint(port, "/")}, {"RAY_USAGE_STATS_ENABLED": "0"})


def grow_ray(up: Up, _: int) -> None:
    """Deploys again, with another count."""
    os.kill(_first(up), signal.SIGUSR1)


def start_gunicorn(python: str, _: Path, work: Work) -> Setup:
    """The master loads the model, its workers are forked."""
    [port] = free_ports(1)
    options = ["--preload", "--workers", str(work.replicas), "--worker-class", "uvicorn_worker.UvicornWorker"]
    where = ["--chdir", str(APPS_DIR), "--bind", f"127.0.0.1:{port}", "--log-level", "error"]
    return Setup([[python, "-m", "gunicorn", *options, *where, "asgi_models:app"]], {"model": Endpoint(port, "/")})


def grow_gunicorn(up: Up, count: int) -> None:
    """A signal to the master for each worker, once the one before is there."""
    master = _first(up)
    deadline = time.monotonic() + GROW_LIMIT_S
    there = len(descendants(master))
    while there < count and time.monotonic() < deadline:
        os.kill(master, signal.SIGTTIN)
        while len(descendants(master)) == there and time.monotonic() < deadline:
            time.sleep(0.001)
        there += 1


def start_mosec(*, is_forked: bool) -> Starter:
    """One server."""

    def start(python: str, directory: Path, work: Work) -> Setup:
        [port] = free_ports(1)
        options = ["--address", "127.0.0.1", "--port", str(port), "--path", f"{directory}/m", "--log-level", "error"]
        command = [python, str(APPS_DIR / "mosec_models.py"), *options, "--timeout", "60000"]
        environment = {"BENCH_WORKERS": str(work.replicas), "BENCH_FORK": str(int(is_forked))}
        return Setup([command], {"model": Endpoint(port, "/inference", b"x")}, environment)

    return start


def start_litserve(python: str, _: Path, work: Work) -> Setup:
    """One API server in front of the workers."""
    [port] = free_ports(1)
    command = [python, str(APPS_DIR / "litserve_models.py"), str(port), str(work.replicas)]
    return Setup([command], {"model": Endpoint(port, "/", b"{}", "application/json")})


def _options(work: Work) -> dict[str, Any]:
    # few at a time, as for any model: what has come before a burst is met then waits for replicas that are to come
    common = {"max_ongoing_requests": 2}
    return common | ({"autoscaling_config": AUTOSCALING} if work.is_autoscaled else {"num_replicas": work.replicas})


def _first(up: Up) -> int:
    return descendants(up.launcher)[0]


SYSTEMS = (
    System(
        "servd-preload",
        "the model is constructed once, replicas are forked with it (`preload`)",
        "servd",
        start_servd(preload=True),
        grow_servd,
        has_autoscaling=True,
        # its supervision would take a pause for a fault
        may_pause=False,
    ),
    System(
        "servd",
        "the import happens once, each replica constructs its model",
        "servd",
        start_servd(),
        grow_servd,
        has_autoscaling=True,
        may_pause=False,
    ),
    System(
        "servd-spawn",
        "each replica is a fresh interpreter (`start_method: spawn`), which is how all with PyTorch were started before",
        "servd",
        start_servd(start_method="spawn"),
        grow_servd,
        may_pause=False,
    ),
    System("ray", "Ray Serve, without dashboard", "ray", start_ray, grow_ray, has_autoscaling=True),
    System("mosec", "workers spawned, as it comes", "mosec", start_mosec(is_forked=False)),
    System("mosec-fork", "the model is loaded before its workers are forked", "mosec", start_mosec(is_forked=True)),
    System("litserve", "1 API server, fast_queue=True", "litserve", start_litserve),
    System("gunicorn", "--preload, uvicorn workers", "gunicorn", start_gunicorn, grow_gunicorn),
)
