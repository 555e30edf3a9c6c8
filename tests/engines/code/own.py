"""Applications written with `import servd`, one for each thing that differs on a Ray cluster unless servd's package runs them."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, WebSocket
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

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

    @api.get("/stream")
    async def stream(self, count: int, type: str = "text/plain") -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            for number in range(count):
                yield f"part {number} of {count}, \u00e9\n"

        return StreamingResponse(parts(), media_type=type, headers={"x-count": str(count)})

    @api.get("/bytes")
    async def some_bytes(self, size: int) -> Response:
        return Response(bytes(range(256)) * (size // 256), 203, media_type="application/x-own")

    @api.websocket("/echo")
    async def echo(self, socket: WebSocket) -> None:
        await socket.accept("own" if "own" in socket.scope["subprotocols"] else None)
        while (message := await socket.receive()).get("text") != "bye":
            if message.get("bytes") is not None:
                await socket.send_bytes(message["bytes"][::-1])
            else:
                await socket.send_text(message["text"].upper())
        await socket.close(4001, "said bye")


@api.get("/late")
def late() -> str:
    return "late"


@servd.deployment(ray_actor_options=LITTLE)
class Answers:
    """One kind of value that a handler may return, by its name."""

    KINDS: dict[str, Any] = {
        "none": None, "text": "text \u00e9", "bytes": b"\x00\xff", "int": 7, "float": 0.1, "nan": float("nan"), "bool": True,
        "dict": {"a": [1, None, "\u00e9"]}, "list": [1, 2.5], "tuple": (1, 2), "empty": "",
    }  # fmt: skip

    async def __call__(self, request: Request) -> Any:
        kind = request.query_params["kind"]
        if kind == "request":
            body = (await request.body()).decode()
            return [request.method, request.url.path, request.scope["root_path"], str(request.query_params), body]
        if kind == "response":
            return Response("teapot", 418, {"x-own": "1"}, "text/x-own")
        if kind == "error":
            raise LookupError("no such kind")
        return self.KINDS[kind]


@servd.deployment(ray_actor_options=LITTLE)
class Batched:
    @servd.batch(max_batch_size=16, batch_wait_timeout_s=60)
    async def many(self, items: list[int]) -> list[int]:
        return [len(items)] * len(items)

    async def __call__(self, request: Request) -> int:
        return await self.many(1)


async def held(request: Request) -> str:
    """Makes a file in a folder, and waits for another one."""
    folder = Path(request.query_params["folder"])
    (folder / "began").touch()
    try:
        while not (folder / "go").exists():  # noqa: ASYNC110 - other processes make it
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        (folder / "cancelled").touch()
        raise
    (folder / "finished").touch()
    return "done"


held_cancelled = servd.deployment(name="Cancelled", ray_actor_options=LITTLE)(held)
held_kept = servd.deployment(name="Kept", ray_actor_options=LITTLE, cancel_on_disconnect=False)(held)
held_alone = servd.deployment(name="Alone", ray_actor_options=LITTLE, max_concurrent_queries=1, max_queued_requests=1)(
    held
)


@servd.deployment(ray_actor_options=LITTLE, preload=True, num_replicas=2)
class Model:
    def __init__(self) -> None:
        self.table = [number * number for number in range(1000)]
        self.starts = 0

    def on_replica_start(self) -> None:
        self.starts += 1

    def __call__(self, request: Request) -> dict[str, int]:
        return {"square": self.table[int(request.query_params["row"])], "starts": self.starts}


@servd.deployment(ray_actor_options=LITTLE, memory_limit_bytes=700_000_000, health_check_period_s=1)
class Growing:
    def __init__(self) -> None:
        self.held = b""

    async def __call__(self, request: Request) -> int:
        if size := int(request.query_params.get("bytes", 0)):
            self.held = b"x" * size
        return os.getpid()


@servd.deployment(ray_actor_options=LITTLE)
class Versioned:
    def __init__(self) -> None:
        time.sleep(float(os.environ["START_S"]))

    async def __call__(self) -> str:
        return os.environ["VERSION"]


inner = Inner.bind()
sync, together, slow, ticks, fast = Sync.bind(), Async.bind(), Slow.bind(), Ticks.bind(), Fast.bind()
outer = Outer.bind(inner, inner)
answers, batched, model, growing, versioned = (
    Answers.bind(), Batched.bind(), Model.bind(), Growing.bind(), Versioned.bind(),
)  # fmt: skip
cancelled, kept, alone = held_cancelled.bind(), held_kept.bind(), held_alone.bind()
