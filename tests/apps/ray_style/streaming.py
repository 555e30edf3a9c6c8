"""Streams over HTTP and over handles."""

import asyncio
import time
from typing import AsyncGenerator, Generator

from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.requests import Request
from starlette.responses import StreamingResponse


@serve.deployment
class Numbers:
    def generate_numbers(self, limit: int) -> Generator[int, None, None]:
        for i in range(limit):
            yield i
            time.sleep(0.001)

    async def break_off(self, limit: int) -> AsyncGenerator[int, None]:
        for i in range(limit):
            yield i
        raise ValueError(f"broken off after {limit}")


@serve.deployment
class Streamer:
    def __init__(self, numbers: DeploymentHandle):
        self.numbers = numbers.options(stream=True)

    async def text(self, limit: int) -> AsyncGenerator[str, None]:
        r: DeploymentResponseGenerator = self.numbers.generate_numbers.remote(limit)
        async for i in r:
            yield f"{i} "

    async def __call__(self, request: Request):
        limit = int(request.query_params.get("max", "5"))
        if "broken" in request.query_params:
            seen = []
            try:
                async for i in self.numbers.break_off.remote(limit):
                    seen.append(i)
            except ValueError as error:
                return {"seen": seen, "error": str(error)}
        if "generator" in request.query_params:
            return self.text(limit)
        return StreamingResponse(self.text(limit), media_type="text/event-stream", status_code=200)


@serve.deployment
class Ticker:
    async def __call__(self, request: Request):
        for i in range(3):
            yield {"tick": i}
            await asyncio.sleep(0)


app = Streamer.bind(Numbers.bind())
ticker = Ticker.bind()
