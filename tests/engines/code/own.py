"""Applications written with `import servd`, one for each thing that differs on a Ray cluster unless servd's package runs them."""

import asyncio
import time
from typing import Any

from fastapi import FastAPI, WebSocket
from starlette.requests import Request

import servd
from servd.handle import DeploymentHandle, RayServeDeploymentHandle

api = FastAPI()
LITTLE = {"num_cpus": 0.1}


class Counted:
    """How many requests ran at the same time."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def begin(self) -> None:
        self.now += 1
        self.peak = max(self.peak, self.now)

    def end(self) -> int:
        self.now -= 1
        return self.peak


@servd.deployment(ray_actor_options=LITTLE)
class Sync(Counted):
    def __call__(self, request: Request) -> int:
        self.begin()
        time.sleep(0.05)
        return self.end()


@servd.deployment(ray_actor_options=LITTLE)
class Async(Counted):
    async def __call__(self, request: Request) -> int:
        self.begin()
        count = int(request.query_params.get("count", 8))
        deadline = time.monotonic() + 20
        while self.peak < count and time.monotonic() < deadline:  # noqa: ASYNC110 - any of them may be the last
            await asyncio.sleep(0.01)
        return self.end()


@servd.deployment(ray_actor_options=LITTLE, request_timeout_s=0.5)
class Slow:
    async def __call__(self) -> None:
        await asyncio.Event().wait()


@servd.deployment(ray_actor_options=LITTLE)
class Inner:
    def echo(self, value: Any) -> Any:
        return value

    def fail(self, value: str) -> None:
        raise LookupError(f"no {value}")

    def numbers(self, limit: int) -> Any:
        yield from range(limit)

    async def path(self, request: Request) -> str:
        return request.url.path


@servd.deployment(ray_actor_options=LITTLE, user_config={"word": "code"})
class Outer:
    def __init__(self, inner: DeploymentHandle, old: RayServeDeploymentHandle) -> None:
        self.inner, self.old = inner, old
        self.word = ""

    def reconfigure(self, config: dict[str, str]) -> None:
        self.word = config["word"]

    async def __call__(self, request: Request) -> dict[str, Any]:
        found: dict[str, Any] = {"word": self.word, "name": servd.get_replica_context().deployment}
        found["echo"] = await self.inner.echo.remote(self.inner.echo.remote([3]))
        found["two steps"] = await (await self.old.echo.remote(4))
        found["request"] = await self.inner.path.remote(request)
        found["stream"] = [item async for item in self.inner.options(stream=True).numbers.remote(3)]
        try:
            await self.inner.fail.remote("x")
        except LookupError as error:
            found["error"] = str(error)
        return found


@servd.deployment(ray_actor_options=LITTLE)
class Ticks:
    async def __call__(self) -> Any:
        for number in range(3):
            yield {"tick": number}


@servd.deployment(ray_actor_options=LITTLE)
@servd.ingress(api)
class Fast:
    @api.get("/number")
    def number(self, value: int) -> dict[str, int]:
        return {"value": value}

    @api.websocket("/echo")
    async def echo(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()


@api.get("/late")
def late() -> str:
    return "late"


@servd.deployment(ray_actor_options=LITTLE, preload=True, num_replicas=2)
class Model:
    def __init__(self) -> None:
        self.table = [number * number for number in range(1000)]

    def __call__(self, request: Request) -> dict[str, int]:
        return {"square": self.table[int(request.query_params["row"])]}


inner = Inner.bind()
model = Model.bind()
sync, together, slow, ticks, fast = Sync.bind(), Async.bind(), Slow.bind(), Ticks.bind(), Fast.bind()
outer = Outer.bind(inner, inner)
