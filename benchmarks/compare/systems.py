"""The systems: how each is configured and started, and where it answers which case."""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compare.cases import MEGABYTE

APPS_DIR = Path(__file__).parent / "apps"
LIMIT_DIR = Path(__file__).parents[1] / "limit"
SERVD = str(Path(sys.executable).parent / "servd")

SERVE_PATHS = {
    "noop": "/noop",
    "fastapi": "/fast/",
    "json": "/more/json",
    "up1": "/more/length",
    "down1": f"/more/download?bytes={MEGABYTE}",
    "up100": "/more/length",
    "down100": f"/more/download?bytes={100 * MEGABYTE}",
    "stream": "/more/stream",
    "compose": "/compose",
    "calls": "/compose",
    "websocket": "/fast/ws",
    "websocket64": "/fast/ws",
}
ASGI_PATHS = {
    "noop": "/",
    "json": "/json",
    "up1": "/length",
    "down1": f"/download?bytes={MEGABYTE}",
    "up100": "/length",
    "down100": f"/download?bytes={100 * MEGABYTE}",
    "stream": "/stream",
}
FASTAPI_PATHS = {"fastapi": "/", "websocket": "/ws", "websocket64": "/ws"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a case is asked for. body, content_type: instead of the case's own."""

    port: int
    path: str
    body: bytes | None = None
    content_type: str | None = None

    @property
    def url(self) -> str:
        """With host and port."""
        return f"http://127.0.0.1:{self.port}{self.path}"


@dataclass(slots=True)
class Setup:
    """What starts a system. then: a command to run when the port `opens` listens."""

    commands: list[list[str]]
    endpoints: dict[str, Endpoint]
    environment: dict[str, str] = field(default_factory=dict)
    then: list[str] | None = None
    opens: int = 0


Starter = Callable[[str, Path, set[str]], Setup]
"""Takes the interpreter, an empty directory and the cases."""


@dataclass(frozen=True, slots=True)
class System:
    """A system under test.

    peer: whose virtual environment it needs; None = servd's own.
    may_pause: its processes are stopped while others are measured.
    least_seconds: of a run with many connections: shorter ones would end before the first answers.
    """

    name: str
    about: str
    cases: frozenset[str]
    start: Starter
    peer: str | None = None
    may_pause: bool = True
    least_seconds: int = 1


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def start_limit(python: str, directory: Path, cases: set[str]) -> Setup:
    """A pair of processes for each handler."""
    commands: list[list[str]] = []
    endpoints: dict[str, Endpoint] = {}
    for case, mode in (("noop", "plain"), ("fastapi", "fastapi")):
        if case in cases:
            [port] = free_ports(1)
            address = f"ipc://{directory}/{mode}.sock"
            commands += [[python, f"{LIMIT_DIR}/replica_h.py", address, mode]]
            commands += [[python, f"{LIMIT_DIR}/proxy_raw.py", str(port), address]]
            endpoints[case] = Endpoint(port, "/")
    return Setup(commands, endpoints)


def serve_applications(cases: set[str]) -> list[str]:
    """Names of the applications in `serve_app` that answer these cases."""
    return sorted({SERVE_PATHS[case].split("/")[1] for case in cases})


def start_servd(_: str, directory: Path, cases: set[str]) -> Setup:
    """The daemon, and one document with all applications."""
    port, admin_port = free_ports(2)
    document = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": name,
                "import_path": f"serve_app:{name}",
                "route_prefix": f"/{name}",
                "runtime_env": {"working_dir": str(APPS_DIR)},
            }
            for name in serve_applications(cases)
        ],
    }
    path = directory / "document.yaml"
    path.write_text(json.dumps(document))
    state = ["--state-dir", str(directory / "state")]
    start = [SERVD, "start", "--http-port", str(port), "--admin-port", str(admin_port), *state]
    environment = {"TMPDIR": str(directory), "SERVD_STATE_DIR": str(directory / "state")}
    then = [SERVD, "deploy", "--wait", str(path), "--address", f"http://127.0.0.1:{admin_port}"]
    return Setup([start], _at(port, SERVE_PATHS, cases), environment, then, admin_port)


def servd_of(tree: Path) -> System:
    """The servd of another checkout, as `before`; it runs on what is installed for this one."""

    def start(python: str, directory: Path, cases: set[str]) -> Setup:
        setup = start_servd(python, directory, cases)
        own = [sys.executable, "-m", "servd"]
        commands = [[*own, *command[1:]] for command in (*setup.commands, setup.then or [])]
        return Setup(
            commands[:1], setup.endpoints, {**setup.environment, "PYTHONPATH": str(tree)}, commands[1], setup.opens
        )

    return System("before", f"servd as it is in {tree.name}", _cases(SERVE_PATHS, ENDS), start, may_pause=False)


def start_ray(environment: dict[str, str]) -> Starter:
    """One node of its own, with all applications; HAProxy's own ports are moved to free ones."""

    def start(python: str, directory: Path, cases: set[str]) -> Setup:
        port, metrics, stats = free_ports(3)
        own = {
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{directory}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{directory}/haproxy.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{directory}/haproxy-state",
            "PYTHONPATH": str(APPS_DIR),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [python, f"{APPS_DIR}/ray_server.py", str(port), f"{directory}/r", *serve_applications(cases)]
        return Setup([command], _at(port, SERVE_PATHS, cases), {**own, **environment})

    return start


def start_uvicorn(workers: int) -> Starter:
    """A server for the Starlette application, another for the FastAPI one."""

    def start(python: str, _: Path, cases: set[str]) -> Setup:
        commands: list[list[str]] = []
        endpoints: dict[str, Endpoint] = {}
        for app, paths in (("starlette_app", ASGI_PATHS), ("fastapi_app", FASTAPI_PATHS)):
            if cases & set(paths):
                [port] = free_ports(1)
                options = ["--app-dir", str(APPS_DIR), "--port", str(port), "--workers", str(workers)]
                quiet = ["--no-access-log", "--log-level", "warning"]
                commands.append([python, "-m", "uvicorn", f"asgi_app:{app}", *options, *quiet])
                endpoints |= _at(port, paths, cases)
        return Setup(commands, endpoints)

    return start


def start_hypercorn(python: str, _: Path, cases: set[str]) -> Setup:
    """As with uvicorn."""
    commands: list[list[str]] = []
    endpoints: dict[str, Endpoint] = {}
    for app, paths in (("starlette_app", ASGI_PATHS), ("fastapi_app", FASTAPI_PATHS)):
        if cases & set(paths):
            [port] = free_ports(1)
            options = ["--bind", f"127.0.0.1:{port}", "--workers", "1", "--worker-class", "uvloop"]
            commands.append([python, "-m", "hypercorn", f"asgi_app:{app}", *options])
            endpoints |= _at(port, paths, cases)
    return Setup(commands, endpoints, {"PYTHONPATH": str(APPS_DIR)})


def start_mosec(noop: str) -> Starter:
    """One server, a route for each handler."""
    return partial(_start_mosec, noop)


def _start_mosec(noop: str, python: str, directory: Path, cases: set[str]) -> Setup:
    [port] = free_ports(1)
    paths: dict[str, tuple[str, bytes | None]] = {
        "noop": (noop, b"x"),
        "json": ("json", None),
        "up1": ("body", None),
        "up100": ("body", None),
        "down1": ("download", b"%d" % MEGABYTE),
        "down100": ("download", b"%d" % (100 * MEGABYTE)),
        "compose": ("compose", b"x"),
        "stream": ("stream", b"x"),
    }
    endpoints = {case: Endpoint(port, f"/{name}", body) for case, (name, body) in paths.items() if case in cases}
    names = sorted({paths[case][0] for case in endpoints})
    options = ["--address", "127.0.0.1", "--port", str(port), "--path", f"{directory}/m", "--log-level", "error"]
    limits = ["--timeout", "60000", "--max-request-size", str(200 * MEGABYTE)]
    command = [python, f"{APPS_DIR}/mosec_app.py", *options, *limits]
    return Setup([command], endpoints, {"BENCH_APPS": ",".join(names)})


def start_litserve(python: str, _: Path, cases: set[str]) -> Setup:
    """One server, an API for each handler."""
    [port] = free_ports(1)
    bodies = {"noop": b"{}", "json": None, "stream": b"{}"}
    found = {case: body for case, body in bodies.items() if case in cases}
    endpoints = {case: Endpoint(port, f"/{case}", body, "application/json") for case, body in found.items()}
    return Setup([[python, f"{APPS_DIR}/litserve_app.py", str(port), *found]], endpoints)


def _at(port: int, paths: dict[str, str], cases: Iterable[str]) -> dict[str, Endpoint]:
    return {case: Endpoint(port, path) for case, path in paths.items() if case in cases}


def _cases(*names: Any) -> frozenset[str]:
    return frozenset(name for group in names for name in ([group] if isinstance(group, str) else group))


ENDS = ("start", "memory")
RAY_FAST = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}
SYSTEMS = (
    System("limit", "the bare pipeline of benchmarks/limit", _cases("noop", "fastapi"), start_limit),
    System(
        "servd",
        "one proxy, one replica a deployment, max_ongoing_requests=1000, everything else as it comes (logs and metrics on)",
        _cases(SERVE_PATHS, ENDS),
        start_servd,
        # its supervision would take a pause for a fault
        may_pause=False,
    ),
    System(
        "uvicorn",
        "bare, 1 worker, uvloop, httptools, no access log; Starlette, in the FastAPI and WebSocket cases FastAPI",
        _cases(ASGI_PATHS, FASTAPI_PATHS, ENDS),
        start_uvicorn(1),
        "uvicorn",
    ),
    System("uvicorn x2", "the same with 2 workers", _cases("noop", "fastapi"), start_uvicorn(2), "uvicorn"),
    System(
        "hypercorn",
        "1 worker, uvloop, no access log; applications as uvicorn's",
        _cases(ASGI_PATHS, FASTAPI_PATHS, ENDS),
        start_hypercorn,
        "hypercorn",
    ),
    System(
        "mosec",
        "1 worker a stage, raw bytes; POST (it answers no other method); chunks are events",
        _cases("noop", "json", "up1", "up100", "down1", "down100", "compose", "stream", ENDS),
        start_mosec("noop"),
        "mosec",
    ),
    System(
        "mosec-batch",
        "the same in dynamic batches: at most 64, at most 1 ms",
        _cases("noop"),
        start_mosec("batch"),
        "mosec",
    ),
    System(
        "litserve",
        "1 worker, 2 API servers, fast_queue=True; POST of JSON (it answers no other)",
        _cases("noop", "json", "stream", ENDS),
        start_litserve,
        "litserve",
    ),
    System(
        "ray",
        "Ray Serve, defaults, without dashboard, max_ongoing_requests=1000",
        _cases(SERVE_PATHS, ENDS),
        start_ray({}),
        "ray",
        least_seconds=3,
    ),
    System(
        "ray-haproxy",
        "Ray Serve with " + " ".join(f"{name}={value}" for name, value in RAY_FAST.items()),
        _cases(SERVE_PATHS, ENDS),
        start_ray(RAY_FAST),
        "ray",
    ),
)


def environment_of(setup: Setup) -> dict[str, str]:
    """Of the system's processes: ours, with its own changes."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SERVD_", "RAY_"))}
    inherited.pop("XDG_RUNTIME_DIR", None)
    return {**inherited, **setup.environment}
