"""The handlers as deployments: one file for Ray Serve and for servd, whose replicas know the same names under `ray`."""

import asyncio
import time
from typing import Any

import asgi_app
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

OPTIONS: Any = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0}}


@serve.deployment(**OPTIONS)
class Noop:
    """A word."""

    async def __call__(self, request: Request) -> bytes:  # noqa: ARG002 - both pass it
        return b"hello"


@serve.deployment(**OPTIONS)
@serve.ingress(asgi_app.fastapi_app)
class Fast:
    """The FastAPI application."""


@serve.deployment(**OPTIONS)
class More:
    """JSON, large bodies and streams, by the last word of the path."""

    async def __call__(self, request: Request) -> Any:
        match request.url.path.rpartition("/")[2]:
            case "json":
                return await request.json()
            case "length":
                return await asgi_app.length(request)
            case "download":
                return await asgi_app.download(request)
            case _:
                return await asgi_app.stream(request)


@serve.deployment(**OPTIONS)
class Inner:
    """The called one."""

    async def __call__(self, value: Any) -> Any:
        return value


@serve.deployment(**OPTIONS)
class Outer:
    """Calls the other: once a request, or as often as it can for a while."""

    def __init__(self, inner: DeploymentHandle) -> None:
        self.inner = inner

    async def __call__(self, request: Request) -> Any:
        if "seconds" not in request.query_params:
            return await self.inner.remote("hello")
        return await self.calls(int(request.query_params["in_flight"]), float(request.query_params["seconds"]))

    async def calls(self, in_flight: int, seconds: float) -> dict[str, float]:
        """Calls per second and their latencies."""
        now = time.perf_counter
        began = now()
        taken: list[float] = []

        async def work() -> None:
            while (sent := now()) < began + seconds:
                await self.inner.remote(1)
                taken.append(now() - sent)

        await asyncio.gather(*(work() for _ in range(in_flight)))
        rate = len(taken) / (now() - began)
        taken.sort()
        return {
            "calls": len(taken),
            "calls_per_s": rate,
            "p50_ms": 1000 * taken[len(taken) // 2],
            "p99_ms": 1000 * taken[len(taken) * 99 // 100],
        }


noop = Noop.bind()
fast = Fast.bind()
more = More.bind()
compose = Outer.bind(Inner.bind())
