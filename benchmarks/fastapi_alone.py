"""What FastAPI and Starlette take of a request by themselves, without a server: `python -m benchmarks.fastapi_alone`.

Calls the applications of `benchmarks.compare` in this process, one request after the other, with a `receive` and a `send` that do
nothing, and prints CPU time per request, median and range of the rounds. No server can spend less on the same application.
"""

import argparse
import statistics
import time
from typing import Any

import uvloop

from benchmarks.compare.apps import asgi_app

SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"127.0.0.1:8000")],
    "client": ("127.0.0.1", 50_000),
    "server": ("127.0.0.1", 8000),
}


async def receive() -> dict[str, Any]:
    """A request without a body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: dict[str, Any]) -> None:
    """The answer goes nowhere."""


async def cpu_us(app: Any, requests: int) -> float:
    """Microseconds of this process's CPU for each of so many requests."""
    began = time.process_time()
    for _ in range(requests):
        await app(dict(SCOPE), receive, send)
    return (time.process_time() - began) / requests * 1e6


async def measured(rounds: int, requests: int) -> dict[str, list[float]]:
    """Microseconds of each round of each application; they take turns."""
    apps = {"Starlette": asgi_app.starlette_app, "FastAPI": asgi_app.fastapi_app}
    found: dict[str, list[float]] = {name: [] for name in apps}
    for _ in range(rounds):
        for name, app in apps.items():
            found[name].append(await cpu_us(app, requests))
    return found


def main() -> None:
    """Print one line for each application."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=10_000, help="of a round")
    options = parser.parse_args()
    for name, times in uvloop.run(measured(options.rounds, options.requests)).items():
        print(f"{name}: {statistics.median(times):.1f} us per request ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
